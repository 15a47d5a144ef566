//! Artifacts that lie. Whoever can push an index must not be able to change what a container reads.

use serde_json::Value;
use soci_tests::forgery::{publish_forged, replace};
use soci_tests::image::digest;
use soci_tests::rootfs::{self, BIG, SECRET};
use soci_tests::stack::Stack;

/// Either it is unpacked whole, or the changed name gives EIO; the other files read right.
#[test]
fn a_renamed_file_is_never_served() {
    let stack = Stack::start();
    let change = |ztoc: &mut Vec<u8>| replace(ztoc, b"secret", b"public");
    let (_, reference, index) = publish_forged(&stack, change);
    stack.rpull(&["--soci-index-digest", &index], &reference).ok();
    let said = stack.ctr_run("soci", &[], &reference, &["cat", "/public"]);
    assert!(!said.success && said.out.is_empty(), "{}", said.out);
    let wanted = digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
    let said = stack.ctr_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
    assert!(said.out.starts_with(&wanted));
}

/// Two names swapped, so that the setuid row has the name of an ordinary program: it must not run with other rights.
#[test]
fn a_setuid_bit_cannot_be_invented() {
    let stack = Stack::start();
    let change = |ztoc: &mut Vec<u8>| {
        replace(ztoc, b"bin/cat-suid", b"bin/cat-swap");
        replace(ztoc, b"bin/cat-evil", b"bin/cat-suid");
        replace(ztoc, b"bin/cat-swap", b"bin/cat-evil");
    };
    let (_, reference, index) = publish_forged(&stack, change);
    stack.rpull(&["--soci-index-digest", &index], &reference).ok();
    let options = ["--user", "1000", "--allow-new-privs"];
    let said = stack.soci_run("soci", &options, &reference, &["cat-evil", "/secret"]);
    assert!(!said.out.contains(SECRET), "a forged row gave a program the rights of root");
}

/// Bytes of the registry's ztoc that do not have the digest of the index: the layer is unpacked instead.
#[test]
fn a_ztoc_with_a_wrong_digest_is_not_used() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, index) = stack.publish(&image, "small:1", 64 * 1024);
    let manifest: Value =
        serde_json::from_str(&stack.registry.get(&format!("small/manifests/{index}"))).unwrap();
    let slot = if manifest["layers"].is_array() { "layers" } else { "blobs" };
    let ztoc = manifest[slot][0]["digest"].as_str().unwrap();
    let hex = ztoc.trim_start_matches("sha256:");
    let data = stack
        .folder()
        .join("registry/data/docker/registry/v2/blobs/sha256")
        .join(&hex[..2])
        .join(hex)
        .join("data");
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes).unwrap();

    let pulled = stack.rpull(&["--soci-index-digest", &index], &reference).ok();
    assert_eq!(stack.mounts(), Vec::<String>::new(), "{}", pulled.out);
    assert_eq!(stack.ctr_run("soci", &[], &reference, &["cat", "/secret"]).ok().out, SECRET);
}

/// A layer that the registry serves with other bytes than those that were indexed: EIO, never wrong bytes.
#[test]
fn changed_layer_bytes_are_an_error() {
    let mut stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    let hex = image.layers[0].digest.trim_start_matches("sha256:");
    let data = stack
        .folder()
        .join("registry/data/docker/registry/v2/blobs/sha256")
        .join(&hex[..2])
        .join(hex)
        .join("data");
    let mut bytes = std::fs::read(&data).unwrap();
    // The big file is incompressible in the middle of the layer: flip one bit in every 4096 bytes of the second half.
    let half = bytes.len() / 2;
    for at in (half..bytes.len()).step_by(4096) {
        bytes[at] ^= 1;
    }
    std::fs::write(&data, bytes).unwrap();
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts().len(), 1);
    let view = stack.view("soci", &image);
    let mut broken = 0;
    for name in ["bin/busybox", "bin/cat", BIG.0, "secret", "etc/passwd"] {
        let genuine = std::fs::read(stack.folder().join("small/programs").join(name)).unwrap();
        match std::fs::read(view.path().join(name)) {
            Ok(found) => assert!(found == genuine, "{name}: wrong bytes"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
                broken += 1;
            }
        }
    }
    assert!(broken > 0, "nothing was broken");
    drop(view);
    assert!(stack.daemon.runs());
}
