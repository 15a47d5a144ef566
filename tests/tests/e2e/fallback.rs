//! Lazy loading never makes an image unusable: whatever is wrong with the index, the container starts.

use std::fs;

use soci_tests::image::Packing;
use soci_tests::rootfs;
use soci_tests::stack::Stack;

const NO_SUCH: &str = "sha256:00000000000000000000000000000000000000000000000000000000deadbeef";

fn starts(stack: &Stack, reference: &str) {
    let said = stack.soci_run("soci", &[], reference, &["echo", "up"]).ok();
    assert_eq!(said.out, "up\n");
}

#[test]
fn a_wrong_index_digest_ends_in_a_full_pull() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let (reference, _) = stack.publish(&image, "varied:1", 64 * 1024);
    let before = stack.registry.downloaded();
    let pulled = stack.rpull(&["--soci-index-digest", NO_SUCH], &reference).ok();
    assert_eq!(stack.mounts(), Vec::<String>::new());
    assert!(stack.registry.downloaded() - before >= image.size());
    let layers = pulled
        .out
        .lines()
        .filter(|line| line.ends_with("... application/vnd.docker.image.rootfs.diff.tar.gzip"));
    assert_eq!(layers.count(), 3, "{}", pulled.out);
    starts(&stack, &reference);
}

/// Whoever asks containerd for a ztoc gets other bytes; the registry has the right ones.
#[test]
fn a_ztoc_that_rotted_in_containerds_store_comes_from_the_registry() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let reference = stack.push(&image, "varied:1");
    stack.index(&reference, &["--min-layer-size", "0", "--span-size", "65536"]);
    let listed = stack.soci(&["ztoc", "list", "--quiet"]).ok().out;
    let ztocs: Vec<&str> = listed.split_whitespace().collect();
    assert_eq!(ztocs.len(), 3, "{listed}");
    for ztoc in ztocs {
        let blob = stack.containerd.blob(ztoc);
        let mut bytes = fs::read(&blob).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&blob, bytes).unwrap();
    }
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts().len(), 3);
    stack.logged("containerd's copy of a ztoc is damaged");
    starts(&stack, &reference);
}

#[test]
fn an_image_without_index_is_overlayfs() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let reference = stack.push(&image, "small:1");
    stack.forget();
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts(), Vec::<String>::new());
    starts(&stack, &reference);
}

#[test]
fn a_sparse_index_makes_some_layers_lazy() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let reference = stack.push(&image, "varied:1");
    let biggest = image.layers.iter().map(|layer| layer.size).max().unwrap();
    stack.index(&reference, &["--min-layer-size", &biggest.to_string(), "--span-size", "65536"]);
    stack.forget();
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts().len(), 1);
    starts(&stack, &reference);
    let said = stack.ctr_run("soci", &[], &reference, &["cat", "/odd/linked2", "/lower/opaque/new"]).ok();
    assert_eq!(said.out, "one inode, three namesupper");
}

/// Every layer in the index, but two too small for the daemon: those are left to the client.
#[test]
fn the_daemon_has_a_least_size_too() {
    let scratch = tempfile::tempdir().unwrap();
    let image = rootfs::varied(scratch.path(), [Packing::Gzip; 3]);
    let biggest = image.layers.iter().map(|layer| layer.size).max().unwrap();
    let stack = Stack::with_config(&format!("[snapshotter]\nmin_layer_size = {biggest}\n"));
    let (reference, _) = stack.publish(&image, "varied:1", 65536);
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts().len(), 1);
    starts(&stack, &reference);
    let said = stack.ctr_run("soci", &[], &reference, &["cat", "/odd/linked2", "/lower/opaque/new"]).ok();
    assert_eq!(said.out, "one inode, three namesupper");
}

/// Every layer in a format that has no ztoc: no index can be made, everything is unpacked.
#[test]
fn an_image_of_zstd_layers_alone() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Zstd; 3]);
    let reference = stack.push(&image, "varied:1");
    let error = stack.soci(&["create", "--min-layer-size", "0", &reference]).one_line_error();
    assert!(error.contains("no ztocs created"), "{error}");
    stack.forget();
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts(), Vec::<String>::new());
    starts(&stack, &reference);
}

/// A client that knows nothing of us: the same image by `ctr` into overlayfs, and into soci, one after the other.
#[test]
fn both_snapshotters_side_by_side() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci(&["image", "pull", "--user", &soci_tests::registry::user(), &reference]).ok();
    assert_eq!(stack.soci_run("overlayfs", &[], &reference, &["echo", "up"]).ok().out, "up\n");
    starts(&stack, &reference);
}
