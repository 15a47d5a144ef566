//! What Prometheus sees.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use soci_tests::image::Packing;
use soci_tests::rootfs;
use soci_tests::stack::{Stack, eventually};

/// The answer to a request of the given path, head and body.
fn ask(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The value of a series, None if it is not there.
fn value(metrics: &str, series: &str) -> Option<u64> {
    let line = metrics.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.trim().parse().ok()
}

#[test]
fn every_way_of_a_layer_is_counted() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("metrics.sock");
    let config = format!("metrics_network = \"unix\"\nmetrics_address = \"{}\"\n", socket.display());
    let stack = Stack::with_config(&config);
    // The daemon's own socket takes connections a moment earlier.
    eventually("metrics are served", Duration::from_secs(10), || UnixStream::connect(&socket).is_ok());
    assert!(ask(&socket, "/").starts_with("HTTP/1.1 404 "));
    let first = ask(&socket, "/metrics");
    assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
    assert_eq!(value(&first, "soci_layers_prepared{outcome=\"remote\"}"), Some(0));
    assert_eq!(value(&first, "soci_fs_layer_size_bytes"), None);

    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let (reference, _) = stack.publish(&image, "varied:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let lazy = ask(&socket, "/metrics");
    assert_eq!(value(&lazy, "soci_layers_prepared{outcome=\"remote\"}"), Some(3), "{lazy}");
    let mounts = stack.mounts();
    let series = |name: &str, metrics: &str| metrics.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(series("soci_fs_layer_size_bytes{", &lazy), mounts.len());
    assert_eq!(series("soci_fs_layer_fetched_size_bytes{", &lazy), mounts.len());

    // What is gone has no series any more, and what was counted stays counted.
    stack.forget();
    let plain = stack.push(&rootfs::small(stack.folder()), "plain:1");
    stack.forget();
    stack.rpull(&[], &plain).ok();
    let last = ask(&socket, "/metrics");
    assert_eq!(series("soci_fs_layer_size_bytes{", &last), 0, "{last}");
    assert_eq!(value(&last, "soci_layers_prepared{outcome=\"remote\"}"), Some(3));
    assert!(value(&last, "soci_layers_prepared{outcome=\"no_index\"}") > Some(0), "{last}");
    assert_eq!(
        value(&last, "soci_fs_operation_count{layer=\"\",operation_type=\"local_mount_failure_count\"}"),
        Some(0)
    );
}
