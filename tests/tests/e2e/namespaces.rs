//! Two namespaces of one containerd.

use std::time::Duration;

use soci_tests::registry::user;
use soci_tests::rootfs;
use soci_tests::stack::{Stack, container_name, eventually};

/// Each has its own snapshots of the same image; what goes in one stays in the other.
#[test]
fn the_same_image_in_two() {
    let stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_elsewhere(&["image", "rpull", "--user", &user(), &reference]).ok();
    assert_eq!(stack.mounts().len(), 2);
    let name = container_name();
    let run = ["run", "--rm", "--snapshotter", "soci", &reference, &name, "echo", "elsewhere"];
    assert_eq!(stack.soci_elsewhere(&run).ok().out, "elsewhere\n");

    stack.soci_elsewhere(&["image", "rm", "--sync", &reference]).ok();
    eventually("its mount goes", Duration::from_secs(20), || stack.mounts().len() == 1);
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "here"]).ok().out, "here\n");
}

/// The daemon is told the namespace with every request, and keeps it with the layer.
#[test]
fn a_lazy_layer_says_whose_it_is() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let said = stack.ctr(&["snapshot", "--snapshotter", "soci", "info", &image.chain_id()]).ok().out;
    let wanted = format!("\"containerd.io/snapshot/remote/namespace\": \"{}\"", stack.namespace());
    assert!(said.contains(&wanted), "{said}");
}
