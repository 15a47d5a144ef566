//! Indices and ztocs are containerd content: they stay as long as their image, and go with it.

use std::time::Duration;

use soci_tests::registry::user;
use soci_tests::rootfs;
use soci_tests::stack::{Stack, eventually};

/// Digests of an index and of what it refers to.
fn artifacts(stack: &Stack, index: &str) -> Vec<String> {
    let info: serde_json::Value =
        serde_json::from_str(&stack.soci(&["index", "info", index]).ok().out).unwrap();
    let slot = if info["layers"].is_array() { "layers" } else { "blobs" };
    let ztocs = info[slot].as_array().unwrap().iter().map(|ztoc| ztoc["digest"].as_str().unwrap().to_owned());
    ztocs.chain([index.to_owned()]).collect()
}

/// What anybody may do to containerd's store: prune references, collect synchronously.
fn collect(stack: &Stack) {
    stack.ctr(&["content", "prune", "references"]).ok();
    // Removing any image with --sync runs the collector before it returns.
    let other = rootfs::small(&stack.folder().join("other"));
    stack.ctr(&["image", "import", "--no-unpack", other.archive.to_str().unwrap()]).ok();
    stack.ctr(&["image", "rm", "--sync", &other.name]).ok();
}

fn survives_and_goes(stack: &Stack, index: &str) {
    let wanted = artifacts(stack, index);
    assert!(wanted.len() > 1);
    collect(stack);
    let content = stack.content();
    for digest in &wanted {
        assert!(content.contains(digest), "{digest} is gone although its image is there");
    }
    stack.forget();
    eventually("artifacts go with their image", Duration::from_secs(10), || stack.content().is_empty());
    assert_eq!(stack.soci(&["index", "list", "--quiet"]).ok().out.trim(), "");
    assert_eq!(stack.soci(&["ztoc", "list", "--quiet"]).ok().out.trim(), "");
}

#[test]
fn after_create() {
    let stack = Stack::start();
    let reference = stack.push(&rootfs::small(stack.folder()), "small:1");
    stack.soci(&["create", "--min-layer-size", "0", &reference]).ok();
    let index = stack.indices(&reference).remove(0);
    survives_and_goes(&stack, &index);
}

#[test]
fn after_rpull() {
    let stack = Stack::start();
    let (reference, index) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.indices(&reference), std::slice::from_ref(&index));
    survives_and_goes(&stack, &index);
}

/// A plain pull rewrites the labels of the image record; the artifacts must not hang on those.
#[test]
fn a_plain_pull_of_the_same_image_changes_nothing() {
    let stack = Stack::start();
    let (reference, index) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.ctr(&["image", "pull", "--plain-http", "--user", &user(), &reference]).ok();
    survives_and_goes(&stack, &index);
}

/// The same index again: `create` says that it is there, and makes the same bytes.
#[test]
fn create_twice() {
    let stack = Stack::start();
    let reference = stack.push(&rootfs::small(stack.folder()), "small:1");
    stack.soci(&["create", "--min-layer-size", "0", &reference]).ok();
    let first = stack.indices(&reference);
    let again = stack.soci(&["create", "--min-layer-size", "0", &reference]).ok().out;
    assert!(again.contains("(already exists)"), "{again}");
    let forced = stack.soci(&["create", "--min-layer-size", "0", "--force", &reference]).ok().out;
    assert!(!forced.contains("(already exists)"), "{forced}");
    for index in stack.indices(&reference) {
        assert_eq!(
            artifacts(&stack, &index)[0],
            artifacts(&stack, &first[0])[0],
            "another ztoc of the same layer"
        );
    }
}
