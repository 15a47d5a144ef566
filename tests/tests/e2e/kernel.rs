//! The front end above FUSE: the kernel's own EROFS.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use soci_tests::image::Packing;
use soci_tests::kernel;
use soci_tests::rootfs;
use soci_tests::stack::{Stack, container_name, eventually};

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

/// Every file of the container's image, by its digest.
const EVERYTHING: [&str; 3] =
    ["sh", "-c", "busybox find / -xdev -type f -exec sha256sum {} + | busybox sort -k 2"];

fn start(stack: &Stack, reference: &str) -> String {
    let name = container_name();
    stack.soci(&["run", "--detach", "--snapshotter", "soci", reference, &name, "sleep", "300"]).ok();
    name
}

/// What a running container reads.
fn read_everything(stack: &Stack, name: &str, exec: &str) -> String {
    stack.ctr(&[&["task", "exec", "--exec-id", exec, name], EVERYTHING.as_slice()].concat()).ok().out
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

/// The next daemon goes on with the very mounts of one that was killed, and containers with their reads.
#[test]
fn a_killed_daemon_leaves_its_mounts_to_the_next() {
    let mut stack = Stack::start();
    let reference = pulled(&stack);
    let name = start(&stack, &reference);
    let expected = read_everything(&stack, &name, "before");
    assert!(expected.lines().count() > 15, "{expected}");
    let before = above_fuse(&stack);
    stack.restart_daemon(Signal::KILL);
    assert_eq!(above_fuse(&stack), before);
    assert_eq!(stack.mounts().len(), 3);
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(read_everything(&stack, &name, "after"), expected);
}

/// Who runs when the last byte comes needs nothing of ours from then on: the daemon is stopped, its program gone, every cache dropped.
#[test]
fn a_complete_image_needs_no_daemon() {
    needs_no_daemon(30);
}

/// Nor do those that start later, on the layers' files themselves, and the first goes on beside them.
#[test]
fn a_complete_image_needs_no_loop_device() {
    if kernel::mounts_files() {
        needs_no_daemon(0);
    }
}

fn needs_no_daemon(shared_cache_sec: u32) {
    let config = format!(
        "[background_fetch]\nsilence_period_msec = 100\n[fuse]\nshared_cache_sec = {shared_cache_sec}\n"
    );
    let mut stack = Stack::with_config(&config);
    stack.daemon.run_a_copy();
    stack.restart_daemon(Signal::INT);
    let reference = pulled(&stack);
    let name = start(&stack, &reference);
    let expected = read_everything(&stack, &name, "before");
    assert!(expected.lines().count() > 15, "{expected}");
    eventually("all layers are complete", Duration::from_secs(60), || {
        stack.daemon.log().matches("a complete layer needs FUSE no longer").count() == 3
    });
    let mut names = vec![name];
    if shared_cache_sec == 0 {
        eventually("all layers are mounted without a loop device", Duration::from_secs(60), || {
            stack.daemon.log().matches("a complete layer needs its loop device no longer").count() == 3
        });
        let mounts = above_fuse(&stack);
        assert_eq!(mounts.iter().filter(|line| line.contains("/layer.erofs on ")).count(), 3, "{mounts:?}");
        names.push(start(&stack, &reference));
    }
    stack.daemon.stop(Signal::INT);
    stack.daemon.remove_copy();
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    for name in names {
        assert_eq!(read_everything(&stack, &name, "after"), expected);
    }
}
