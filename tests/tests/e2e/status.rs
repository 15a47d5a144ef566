//! What `soci image status` tells of layers that were read in part.

use std::fs;

use serde_json::Value;
use soci_tests::rootfs;
use soci_tests::stack::Stack;

fn number(layer: &Value, path: &str) -> u64 {
    layer.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {layer}"))
}

#[test]
fn the_figures_of_a_layer_add_up() {
    let mut stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["true"]).ok();

    let status = |arguments: &[&str]| stack.soci(&[&["image", "status"], arguments].concat());
    let layers: Value = serde_json::from_str(&status(&["--json", &reference]).ok().out).unwrap();
    let layers = layers.as_array().unwrap();
    assert_eq!(layers.len(), 1, "{layers:?}");
    let layer = &layers[0];
    let text = |name: &str| layer[name].as_str().unwrap_or_else(|| panic!("{name} in {layer}")).to_owned();
    assert_eq!((text("image"), text("layer")), (reference.clone(), image.layers[0].digest.clone()));
    assert_eq!(text("namespace"), stack.namespace());
    // tar ends with a record of zeros, which no file lies in.
    let tar = fs::metadata(&image.layers[0].tar).unwrap().len();
    assert!((tar - 10240..=tar).contains(&number(layer, "/size")), "{layer} of {tar} bytes");
    assert!((1..=number(layer, "/size")).contains(&number(layer, "/present")), "{layer}");
    assert!((1..=number(layer, "/spans")).contains(&number(layer, "/spans_present")), "{layer}");
    assert_eq!(text("state"), "incomplete", "nobody has read the big file: {layer}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let has_erofs = mounts.contains(&text("mount_point").replace("/fs", "/erofs"));
    assert_eq!(text("front_end"), if has_erofs { "kernel over fuse" } else { "fuse" }, "{layer}");

    // Every byte that came has a reason, and a span is fetched once.
    let reasons = ["on_demand", "read_ahead", "trace", "fill"];
    let fetched: u64 = reasons.iter().map(|reason| number(layer, &format!("/fetched/{reason}"))).sum();
    assert!(number(layer, "/fetched/on_demand") > 0, "{layer}");
    assert!(fetched <= image.layers[0].size, "{layer}");
    assert!(fetched <= stack.registry.downloaded_of(&image.layers[0].digest), "{layer}");

    // The reads are over, so all that waited were answered.
    let waited = number(layer, "/waits/count");
    assert!(waited > 0 && waited == number(layer, "/reads_that_waited"), "{layer}");
    let [p50, p99, longest] =
        ["p50_us", "p99_us", "longest_us"].map(|name| number(layer, &format!("/waits/{name}")));
    assert!(0 < p50 && p50 <= p99 && p99 <= longest, "{layer}");
    assert!(mounts.contains(&format!(" {} ", text("mount_point"))), "{layer}");

    let table = status(&[]).ok().out;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((lines.len(), lines[0][..3].to_vec()), (2, vec!["REF", "LAYER", "STATE"]), "{table}");
    assert_eq!(lines[1][0], reference);
    assert_eq!(lines[1].len(), lines[0].len(), "{table}");
    assert_eq!(*lines[1].last().unwrap(), text("mount_point"));

    // Its layer is the same under another name, also when the one that it was mounted for is gone.
    let other = stack.reference("other:1");
    stack.ctr(&["image", "tag", &reference, &other]).ok();
    stack.ctr(&["image", "rm", &reference]).ok();
    let tagged: Value = serde_json::from_str(&status(&["--json", &other]).ok().out).unwrap();
    assert_eq!(tagged[0]["mount_point"], layer["mount_point"], "{tagged}");
    assert_eq!(status(&["localhost/no/such:1"]).code, Some(1), "any image would do");

    assert_eq!(stack.soci_elsewhere(&["image", "status", "--json"]).ok().out, "[]\n");
    let unknown = status(&["localhost/no/such:1"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("localhost/no/such:1"), "{}", unknown.err);

    stack.daemon.stop(rustix::process::Signal::TERM);
    let silent = stack.soci(&["image", "status"]);
    assert_eq!(silent.code, Some(1));
    assert!(
        silent.err.contains("does not answer on") && silent.err.contains("soci-snapshotter-grpc.sock"),
        "{}",
        silent.err
    );
}
