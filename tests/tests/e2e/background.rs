//! What nobody reads comes too, and is checked when all of it is here.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use soci_tests::forgery::{publish_forged, replace};
use soci_tests::rootfs;
use soci_tests::stack::Stack;

const AHEAD: &str = "[background_fetch]\nsilence_period_msec = 100\n[limits]\nread_ahead_bytes = \"16mb\"\n";

/// The state of the only layer, when all of it is here and was checked.
fn settled(stack: &Stack) -> Value {
    let start = Instant::now();
    loop {
        let said = stack.soci(&["image", "status", "--json"]).ok().out;
        let layers: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(layers.as_array().unwrap().len(), 1, "{layers}");
        if layers[0]["state"] != "incomplete" && layers[0]["state"] != "unchecked" {
            return layers[0].clone();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{layers}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_layer_completes_and_is_what_the_image_says() {
    let stack = Stack::with_config(AHEAD);
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let layer = settled(&stack);
    assert_eq!(layer["state"], "complete", "{layer}");
    assert_eq!(layer["present"], layer["size"]);
    let blob = &image.layers[0];
    let downloaded = stack.registry.downloaded_of(&blob.digest);
    // The archive's end may be fetched once more, and a byte is, to see where the layer is.
    assert!(downloaded <= blob.size + 256 * 1024, "{downloaded} of {} bytes", blob.size);
    stack.soci_run("soci", &[], &reference, &["sha256sum", rootfs::BIG.0]).ok();
    assert_eq!(stack.registry.downloaded_of(&blob.digest), downloaded, "all was here");
}

/// A shell is here before anybody has asked for it.
#[test]
fn what_starts_need_comes_with_the_layers() {
    let stack = Stack::with_config("[limits]\nread_ahead_bytes = \"0b\"\n");
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let blob = &image.layers[0];
    // All of busybox, which is the shell, and not the large file beside it.
    let busybox = fs::metadata("/bin/busybox").unwrap().len();
    let start = Instant::now();
    let present = loop {
        let layers: Value =
            serde_json::from_str(&stack.soci(&["image", "status", "--json"]).ok().out).unwrap();
        assert_eq!(layers[0]["fetched"]["on_demand"], 0, "{layers}");
        match layers[0]["present"].as_u64().unwrap() {
            present if present >= busybox => break present,
            present => assert!(start.elapsed() < Duration::from_secs(30), "{present} of {busybox}: {layers}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(present < busybox + rootfs::BIG.1 as u64, "{present} bytes are here");
    let downloaded = stack.registry.downloaded_of(&blob.digest);
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "up"]).ok().out, "up\n");
    // Nothing but what is small and peculiar to this image.
    let more = stack.registry.downloaded_of(&blob.digest) - downloaded;
    assert!(more < busybox / 4, "{more} bytes were read besides");
}

/// One name of the index is not the layer's: the file cannot be read, and when all is here, neither can the others.
#[test]
fn a_forged_index_is_found_out() {
    let stack = Stack::with_config(AHEAD);
    let change = |ztoc: &mut Vec<u8>| replace(ztoc, b"secret", b"public");
    let (_, reference, index) = publish_forged(&stack, change);
    stack.rpull(&["--soci-index-digest", &index], &reference).ok();
    assert_eq!(settled(&stack)["state"], "refused");
    assert!(!stack.ctr_run("soci", &[], &reference, &["cat", "/public"]).success);
    assert!(!stack.ctr_run("soci", &[], &reference, &["true"]).success);
}
