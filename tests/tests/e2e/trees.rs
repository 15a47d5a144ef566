//! What a container sees of lazy layers is what overlayfs shows of unpacked ones.

use soci_tests::image::Packing;
use soci_tests::registry::user;
use soci_tests::rootfs;
use soci_tests::stack::Stack;
use soci_tests::tree;

fn lazy_equals_unpacked(packing: [Packing; 3], span: u64, mounts: usize) {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), packing);
    let (reference, _) = stack.publish(&image, "varied:1", span);
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts().len(), mounts);
    let mut lazy = tree::read(stack.view("soci", &image).path());
    stack.forget();

    stack.ctr(&["image", "pull", "--plain-http", "--user", &user(), &reference]).ok();
    let unpacked = tree::read(stack.view("overlayfs", &image).path());
    // containerd gives the root of a layer the time at which it was unpacked.
    let root = std::path::Path::new("");
    lazy.get_mut(root).unwrap().modified = unpacked[root].modified;
    assert!(unpacked.len() > 100);
    tree::assert_equal(&lazy, &unpacked);
}

#[test]
fn gzip_layers() {
    lazy_equals_unpacked([Packing::Gzip; 3], 64 * 1024, 3);
}

#[test]
fn several_gzip_members_and_plain_tar() {
    lazy_equals_unpacked([Packing::GzipMembers, Packing::Tar, Packing::GzipMembers], 100_000, 3);
}

#[test]
fn zstd_layers_are_unpacked_and_the_rest_is_lazy() {
    lazy_equals_unpacked([Packing::Gzip, Packing::Zstd, Packing::Gzip], 64 * 1024, 2);
}

/// One layer alone, without overlay above it: the FUSE mount itself against GNU tar's extraction.
#[test]
fn a_mount_equals_what_tar_extracts() {
    let stack = Stack::start();
    let place = stack.folder().join("odd");
    let image = soci_tests::image::ImageBuilder::new(&place)
        .layer(&rootfs::rarities(&place), Packing::Gzip)
        .finish("docker.io/library/odd:1", rootfs::config());
    let (reference, _) = stack.publish(&image, "odd:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let mounts = stack.mounts();
    let at = mounts[0].split(' ').nth(2).unwrap();
    let extracted = stack.folder().join("extracted");
    std::fs::create_dir(&extracted).unwrap();
    let (tar, to) = (image.layers[0].tar.to_str().unwrap(), extracted.to_str().unwrap());
    soci_tests::process::run(
        "tar",
        &["-xpf", tar, "-C", to, "--numeric-owner", "--xattrs", "--xattrs-include=*"],
    );
    tree::assert_equal(&tree::read(at.as_ref()), &tree::read(&extracted));
}
