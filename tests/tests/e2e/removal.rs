//! Removing an image unmounts it and frees its disk space.

use std::path::Path;
use std::time::Duration;

use soci_tests::process::run;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, container_name, eventually};

/// Bytes on disk below a folder, mounts left out.
fn disk(folder: &Path) -> u64 {
    let said = run("du", &["-sxB1", folder.to_str().unwrap()]);
    said.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn an_image_leaves_nothing() {
    let stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    let empty = disk(&stack.daemon.root());
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
    assert!(disk(&stack.daemon.root()) > empty + (BIG.1 as u64), "what was fetched is kept");
    stack.soci(&["image", "rm", "--sync", &reference]).ok();
    eventually("it is unmounted", Duration::from_secs(20), || stack.mounts().is_empty());
    eventually("its disk space is free", Duration::from_secs(20), || {
        disk(&stack.daemon.root()) < empty + (1 << 20)
    });
    assert_eq!(stack.content(), Vec::<String>::new());
    // And it can be had again.
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "again"]).ok().out, "again\n");
}

/// A container that runs keeps what it stands on.
#[test]
fn not_under_a_running_container() {
    let stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let name = container_name();
    stack.soci(&["run", "--detach", "--snapshotter", "soci", &reference, &name, "sleep", "300"]).ok();
    stack.soci(&["image", "rm", "--sync", &reference]).ok();
    assert_eq!(stack.mounts().len(), 1);
    let said = stack.ctr(&["task", "exec", "--exec-id", "late", &name, "sha256sum", BIG.0]).ok();
    let wanted = soci_tests::image::digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
    assert!(said.out.starts_with(&wanted));
    stack.ctr(&["task", "rm", "--force", &name]).ok();
    stack.ctr(&["container", "rm", &name]).ok();
    eventually("then it goes", Duration::from_secs(20), || stack.mounts().is_empty());
}

/// Two images with a layer in common: one goes, the other stays usable.
#[test]
fn a_shared_layer_stays() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (first, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &first).ok();
    let second = stack.reference("small:2");
    stack.soci(&["image", "tag", &first, &second]).ok();
    stack.soci(&["image", "rm", "--sync", &first]).ok();
    assert_eq!(stack.soci_run("soci", &[], &second, &["echo", "still"]).ok().out, "still\n");
}
