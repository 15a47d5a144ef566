//! The front end above FUSE: the kernel's own EROFS.

use std::fs;
use std::time::Duration;

use soci_tests::image::Packing;
use soci_tests::rootfs;
use soci_tests::stack::{Stack, eventually};

/// EROFS mounts of a stack's daemon, and what its loop devices read.
fn above_fuse(stack: &Stack) -> Vec<String> {
    let root = stack.daemon.root();
    let ours = |text: &str| text.contains(root.to_str().unwrap());
    let mounts = soci_tests::process::run("mount", &[]);
    let mut found: Vec<String> = mounts
        .lines()
        .filter(|line| ours(line) && line.contains(" type erofs "))
        .map(str::to_owned)
        .collect();
    for entry in fs::read_dir("/sys/block").unwrap() {
        let backing = fs::read_to_string(entry.unwrap().path().join("loop/backing_file"));
        found.extend(backing.ok().filter(|backing| ours(backing)));
    }
    found
}

/// Reference of an image with three lazy layers.
fn pulled(stack: &Stack) -> String {
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let (reference, _) = stack.publish(&image, "varied:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    reference
}

/// What `mount | grep fuse` shows is what it was; containers have EROFS, and all of it goes with the image.
#[test]
fn containers_read_erofs_and_nothing_of_it_stays() {
    let stack = Stack::start();
    let reference = pulled(&stack);
    assert_eq!(stack.mounts().len(), 3);
    assert!(stack.mounts().iter().all(|line| line.contains(" type fuse.rawBridge ")));
    let found = above_fuse(&stack);
    assert_eq!(found.len(), 6, "{found:?}");
    assert!(found.iter().all(|line| line.contains("/.soci-snapshotter/") || !line.contains("fuse")));
    let said = stack.soci_run("soci", &[], &reference, &["cat", "/proc/mounts"]).ok().out;
    let overlay = said.lines().find(|line| line.starts_with("overlay / ")).unwrap();
    assert_eq!(overlay.matches("/erofs").count(), 3, "{overlay}");
    stack.forget();
    eventually("loop devices go", Duration::from_secs(10), || above_fuse(&stack).is_empty());
}

/// Switched off, everything is FUSE.
#[test]
fn switched_off() {
    let stack = Stack::with_config("[fuse]\nkernel = \"off\"");
    let reference = pulled(&stack);
    assert_eq!(stack.mounts().len(), 3);
    assert_eq!(above_fuse(&stack), [""; 0]);
    let said = stack.soci_run("soci", &[], &reference, &["cat", "/proc/mounts"]).ok().out;
    let overlay = said.lines().find(|line| line.starts_with("overlay / ")).unwrap();
    assert!(!overlay.contains("erofs"), "{overlay}");
}
