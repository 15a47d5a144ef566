//! The daemon's log: its shape, and the messages that people are told to look for.

use soci_tests::forgery::publish_forged;
use soci_tests::image::Packing;
use soci_tests::rootfs;
use soci_tests::stack::Stack;

/// Every line of the log that is JSON.
fn lines(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.starts_with('{')).collect()
}

#[test]
fn one_flat_object_a_line_with_sorted_keys() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let (reference, _) = stack.publish(&image, "varied:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["true"]).ok();
    let log = stack.daemon.log();
    assert!(lines(&log).len() > 3, "{log}");
    for line in lines(&log) {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let object = value.as_object().unwrap();
        let keys: Vec<&String> = object.keys().collect();
        let places: Vec<usize> = keys.iter().map(|key| line.find(&format!("\"{key}\":")).unwrap()).collect();
        let mut sorted: Vec<&&String> = keys.iter().collect();
        sorted.sort_by_key(|key| line.find(&format!("\"{key}\":")).unwrap());
        assert!(sorted.windows(2).all(|pair| pair[0] < pair[1]), "keys are not sorted ({places:?}): {line}");
        assert!(object.values().all(|value| !value.is_object() && !value.is_array()), "not flat: {line}");
        for key in ["level", "msg", "time"] {
            assert!(object.contains_key(key), "{key} is missing: {line}");
        }
        let time = object["time"].as_str().unwrap();
        assert!(time.len() == 30 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    }
    for word in ["password", "Basic ", soci_tests::registry::PASSWORD] {
        assert!(!log.contains(word), "{word} is in the log");
    }
}

/// One line for each layer of a container's chain: lazy ones and ordinary ones.
#[test]
fn the_layers_of_a_chain() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let reference = stack.push(&image, "varied:1");
    let limit = image.layers.iter().map(|layer| layer.size).max().unwrap().to_string();
    stack.index(&reference, &["--min-layer-size", &limit, "--span-size", "65536"]);
    stack.forget();
    stack.rpull(&[], &reference).ok();
    let before = stack.daemon.log().len();
    stack.soci_run("soci", &[], &reference, &["true"]).ok();
    let log = stack.daemon.log()[before..].to_owned();
    let said = |message: &str| -> Vec<serde_json::Value> {
        let message = format!("\"msg\":\"{message}\"");
        let wanted = lines(&log).into_iter().filter(|line| line.contains(&message));
        wanted.map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (lazy, normal) = (said("checking mount point"), said("layer is normal snapshot(overlayfs)"));
    assert!(
        !lazy.is_empty() && normal.len() == 2 * lazy.len(),
        "{} lazy, {} ordinary\n{log}",
        lazy.len(),
        normal.len()
    );
    for line in lazy.iter().chain(&normal) {
        assert_eq!(line["level"], "debug");
        assert!(line["key"].as_str().is_some_and(|key| !key.is_empty()), "{line}");
        let at = line["mount-point"].as_str().unwrap();
        assert!(std::path::Path::new(at).starts_with(stack.daemon.root()), "{at}");
    }
}

/// What the pull-modes documentation tells users to look for.
#[test]
fn an_image_without_index() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let reference = stack.push(&image, "small:1");
    stack.forget();
    stack.rpull(&[], &reference).ok();
    stack.logged("unable to fetch SOCI artifacts:");
}

/// A digest that names no index.
#[test]
fn an_index_that_is_not_there() {
    let stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    let wrong = "sha256:00000000000000000000000000000000000000000000000000000000deadbeef";
    stack.rpull(&["--soci-index-digest", wrong], &reference).ok();
    stack.logged("unable to fetch SOCI artifacts:");
}

/// A lazy layer that cannot be had names the reason under `error`, first of all keys.
#[test]
fn a_layer_that_cannot_be_resolved() {
    let stack = Stack::start();
    let (_, reference, index) = publish_forged(&stack, |ztoc| ztoc.fill(b'x'));
    stack.rpull(&["--soci-index-digest", &index], &reference).ok();
    stack.logged("{\"error\":\"failed to resolve layer");
    assert_eq!(stack.mounts(), Vec::<String>::new());
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "up"]).ok().out, "up\n");
}

/// Errors of the start are plain text on standard error, not JSON.
#[test]
fn errors_of_the_start_are_plain_text() {
    let stack = Stack::start();
    let second = stack.daemon.second();
    assert!(!second.err.is_empty() && !second.err.trim_start().starts_with('{'), "{}", second.err);
    for line in second.out.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}
