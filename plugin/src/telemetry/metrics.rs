//! Metrics in Prometheus' text format, made anew from the daemon's state each time somebody asks: what is gone has no series any more.
//!
//! | name | type | labels | |
//! |---|---|---|---|
//! | `soci_fs_operation_count` | counter | `operation_type`, `layer` | upstream's name; `fuse_mount_failure_count` and `local_mount_failure_count`, `layer` empty |
//! | `soci_fs_layer_size_bytes` | gauge | `digest`, `mountpoint` | upstream's name; uncompressed bytes of a mounted layer |
//! | `soci_fs_layer_fetched_size_bytes` | gauge | `digest`, `mountpoint` | upstream's name; how many of them are here |
//! | `soci_layers_prepared` | counter | `outcome` | what became of each layer that containerd asked for |
//! | `soci_layer_setbacks` | counter | `reason` | why layers with an index were not mounted |
//! | `soci_build_info` | gauge | `version` | always 1 |
//!
//! Upstream labels its counters with layer digests, which grow with every image ever pulled; here that label is there and empty.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, TextEncoder};

use crate::snapshot::{Outcome, Setback, Snapshotter};

/// What the answer is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The daemon's metrics at this moment.
///
/// # Errors
/// Where a name or label is none that Prometheus takes.
pub fn render(snapshotter: &Snapshotter) -> Result<String, prometheus::Error> {
    let mut families = Vec::new();
    build_info(&mut families)?;
    outcomes(snapshotter, &mut families)?;
    layers(snapshotter, &mut families)?;
    // A family without a series cannot be written.
    families.retain(|family| !family.get_metric().is_empty());
    TextEncoder::new().encode_to_string(&families)
}

fn build_info(families: &mut Vec<MetricFamily>) -> Result<(), prometheus::Error> {
    let info = IntGaugeVec::new(Opts::new("soci_build_info", "The daemon that runs."), &["version"])?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    families.extend(info.collect());
    Ok(())
}

fn outcomes(snapshotter: &Snapshotter, families: &mut Vec<MetricFamily>) -> Result<(), prometheus::Error> {
    let counts = snapshotter.outcomes();
    let prepared = IntCounterVec::new(
        Opts::new("soci_layers_prepared", "What became of each layer that containerd asked for."),
        &["outcome"],
    )?;
    for outcome in Outcome::ALL {
        prepared.with_label_values(&[outcome.name()]).inc_by(counts.count(outcome));
    }
    families.extend(prepared.collect());
    let setbacks = IntCounterVec::new(
        Opts::new("soci_layer_setbacks", "Why layers with an index were not mounted."),
        &["reason"],
    )?;
    for setback in Setback::ALL {
        setbacks.with_label_values(&[setback.name()]).inc_by(counts.setbacks(setback));
    }
    families.extend(setbacks.collect());
    let operations = IntCounterVec::new(
        Opts::new("soci_fs_operation_count", "Count of operations, by upstream's names."),
        &["operation_type", "layer"],
    )?;
    let mount_failures =
        counts.setbacks(Setback::MountFailed).saturating_add(counts.setbacks(Setback::Stuck));
    operations.with_label_values(&["fuse_mount_failure_count", ""]).inc_by(mount_failures);
    operations
        .with_label_values(&["local_mount_failure_count", ""])
        .inc_by(counts.count(Outcome::LocalFailed));
    families.extend(operations.collect());
    Ok(())
}

fn layers(snapshotter: &Snapshotter, families: &mut Vec<MetricFamily>) -> Result<(), prometheus::Error> {
    let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["digest", "mountpoint"]);
    let size = gauge("soci_fs_layer_size_bytes", "Uncompressed bytes of a mounted layer.")?;
    let here =
        gauge("soci_fs_layer_fetched_size_bytes", "Uncompressed bytes of a mounted layer that are here.")?;
    for layer in snapshotter.layers() {
        let mount_point = layer.mount_point.display().to_string();
        let labels = [layer.lazy.layer.as_str(), mount_point.as_str()];
        size.with_label_values(&labels).set(i64::try_from(layer.status.size).unwrap_or(i64::MAX));
        here.with_label_values(&labels).set(i64::try_from(layer.status.present).unwrap_or(i64::MAX));
    }
    families.extend(size.collect());
    families.extend(here.collect());
    Ok(())
}
