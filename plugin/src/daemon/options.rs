//! The configuration, as the parts of the daemon want it.

use std::num::NonZeroU64;
use std::path::Path;

use lazy_layer::{DropPolicy, FillOptions, StoreOptions};

use super::agreement::AgreementOptions;
use super::metrics::MetricsOptions;
use super::supervise::SuperviseOptions;
use crate::config::{Config, bytes, count, millis, or, seconds};
use crate::fuse::FuseOptions;
use crate::keeper::{HolderOptions, KeeperOptions};
use crate::kernel::KernelOptions;
use crate::kernel::errand::ErrandOptions;
use crate::resolve::{self, GreetOptions};
use crate::snapshot::{self, overlay::OverlayOptions};
use crate::telemetry::Brake;
use crate::unpack;

pub(super) fn layer_options(root: &Path, config: &Config) -> StoreOptions {
    let mut options = StoreOptions::new(root);
    options.max_disk = config.max_disk();
    options.min_free = config.min_free();
    options.full_pause = seconds(config.cache.full_pause_sec);
    options.trim_pause = seconds(config.cache.trim_pause_sec);
    let limits = &config.limits;
    if limits.inflate_threads > 0 {
        options.inflate_threads = count(limits.inflate_threads);
    }
    options.max_ranges = super::client::requests(config);
    options.max_fetches = count(limits.fetches).max(1);
    options.max_connections_per_host = count(limits.connections_per_host).max(1);
    options.max_hosts = count(limits.hosts);
    options.max_range = bytes(&limits.range_bytes);
    options.max_read_ahead = bytes(&limits.read_ahead_bytes);
    options.max_streams = count(limits.read_ahead_streams);
    options.max_ahead_queue = count(limits.read_ahead_queue);
    options.max_ahead_while_waiting = bytes(&limits.ahead_while_waiting_bytes);
    options.max_guesses = count(limits.guesses) as u64;
    options.max_start_files = count(limits.start_files);
    options.max_start_bytes = bytes(&limits.start_bytes);
    options.max_followed = count(limits.followed_files);
    let paths = |list: &str| list.split_ascii_whitespace().map(str::to_owned).collect();
    options.start_files = paths(&config.start.files);
    options.likely_files = paths(&config.start.likely_files);
    options.max_bytes_in_flight = bytes(&limits.in_flight_bytes).max(1);
    options.max_span = bytes(&limits.span_bytes);
    options.max_rechecks = count(limits.rechecks);
    options.max_tail = bytes(&limits.tail_bytes);
    options.max_claims = count(limits.diff_ids);
    options.max_waiters = count(limits.waiting_reads).max(1);
    if limits.idle_buffers > 0 {
        options.pooled_buffers = count(limits.idle_buffers);
    }
    options.largest_kept_buffer = size(&limits.idle_buffer_bytes);
    options.read_deadline = config.read_deadline();
    options.attempt_timeout = seconds(config.deadlines.fetch_stall_sec);
    options.slowest_link = bytes(&config.deadlines.slowest_link).max(1);
    options.longest_rest = seconds(config.deadlines.retry_after_sec);
    options.release = config.release_patience();
    options.lock_timeout = config.mount_deadline();
    let blob = &config.blob;
    options.first_backoff = millis(or(blob.min_wait_msec, 50));
    options.max_backoff = millis(or(blob.max_wait_msec, 5_000));
    options.max_retries = (blob.max_retries != 0).then(|| u32::try_from(blob.max_retries).unwrap_or(0));
    // Upstream counts what comes after the first download.
    let again = u32::try_from(blob.max_span_verification_retries);
    options.span_attempts = again.map_or(4, |again| again.saturating_add(1));
    options.fill = fill_options(config);
    options
}

fn fill_options(config: &Config) -> FillOptions {
    let keys = &config.background_fetch;
    FillOptions {
        disable: keys.disable,
        silence: millis(keys.silence_period_msec),
        period: millis(keys.fetch_period_msec),
        bytes_per_second: NonZeroU64::new(bytes(&keys.bytes_per_sec)),
        retry: millis(keys.retry_msec),
        max_queue: usize::try_from(keys.max_queue_size).unwrap_or(usize::MAX),
        drop: if keys.drop_policy == "oldest" { DropPolicy::Oldest } else { DropPolicy::Newest },
    }
}

pub(super) fn resolve_options(config: &Config) -> resolve::Options {
    let (limits, deadlines) = (&config.limits, &config.deadlines);
    resolve::Options {
        v1: config.soci_v1.enable,
        v2: config.soci_v2.enable,
        resolve_deadline: config.resolve_deadline(),
        find_deadline: seconds(deadlines.find_sec),
        locate_deadline: seconds(deadlines.greet_sec),
        mount_deadline: config.mount_deadline(),
        containerd_deadline: config.containerd_deadline(),
        store_deadline: seconds(deadlines.store_sec),
        keep_after: seconds(config.content_store.keep_after_sec),
        negative_ttl: config.negative_ttl(),
        found_ttl: config.found_ttl(),
        images: count(or(config.general.resolve_result_entry, 256)),
        layers: count(limits.calls),
        referrers: count(limits.referrers),
        max_ztoc_bytes: config.max_ztoc_bytes(),
        ztocs_bytes: bytes(&limits.ztocs_bytes).max(config.max_ztoc_bytes()),
        layers_ahead: count(limits.layers_ahead),
        commands: count(limits.commands),
    }
}

pub(super) fn greet_options(config: &Config) -> GreetOptions {
    GreetOptions { at_once: count(config.limits.greetings), deadline: seconds(config.deadlines.greet_sec) }
}

pub(super) fn unpack_options(config: &Config, overlay: OverlayOptions) -> unpack::Options {
    unpack::Options {
        at_once: count(config.limits.unpacks),
        pieces: count(config.limits.unpack_pieces).max(1),
        stall: config.unpack_stall(),
        userxattr: overlay.userxattr,
    }
}

pub(super) fn snapshot_options(config: &Config, overlay: OverlayOptions) -> snapshot::Options {
    snapshot::Options {
        min_layer_size: u64::try_from(config.snapshotter.min_layer_size).unwrap_or(0),
        restores: count(config.limits.restores),
        cleanups: count(config.limits.calls).max(1),
        restore_deadline: config.resolve_deadline(),
        overlay,
    }
}

pub(super) fn fuse_options(config: &Config, layer_file: bool) -> FuseOptions {
    FuseOptions {
        threads: count(config.fuse.threads),
        read_ahead_kib: number(config.fuse.read_ahead_kib),
        max_background: u16::try_from(config.fuse.max_background).unwrap_or(u16::MAX),
        layer_file,
        in_use: config.in_use_patience(),
        unmount: config.unmount_deadline(),
        brake: Brake { burst: number(config.log.mount_burst), pause: millis(config.log.pause_msec) },
    }
}

pub(super) fn kernel_options(config: &Config) -> KernelOptions {
    KernelOptions {
        read_ahead_kib: number(config.fuse.read_ahead_kib),
        local_read_ahead_kib: number(config.fuse.local_read_ahead_kib),
        loop_attempts: number(config.fuse.loop_attempts),
        held_files: number(config.fuse.held_files),
        // Found out.
        without_device: false,
    }
}

pub(super) fn errand_options(config: &Config) -> ErrandOptions {
    ErrandOptions {
        at_once: count(config.limits.errands),
        exchange: seconds(config.deadlines.exchange_sec),
        unmount: config.unmount_deadline(),
        reads: millis(config.deadlines.kernel_reads_msec),
    }
}

pub(super) fn keeper_options(config: &Config) -> KeeperOptions {
    let keys = &config.keeper;
    KeeperOptions {
        holder: HolderOptions {
            names: count(keys.names),
            daemons: count(keys.daemons),
            send_sec: whole(keys.send_sec),
            alone_sec: whole(keys.alone_sec),
        },
        answer: seconds(keys.answer_sec),
        secrets_bytes: size(&keys.secrets_bytes),
    }
}

pub(super) fn supervise_options(config: &Config) -> SuperviseOptions {
    let keys = &config.supervise;
    SuperviseOptions {
        first_pause: millis(keys.first_pause_msec),
        longest_pause: seconds(keys.longest_pause_sec),
        stable: seconds(keys.stable_sec),
        keeper: keeper_options(config),
    }
}

pub(super) fn metrics_options(config: &Config) -> MetricsOptions {
    let keys = &config.metrics;
    MetricsOptions {
        connections: count(keys.connections),
        connection: seconds(keys.connection_sec),
        head: seconds(keys.head_sec),
        retry: millis(keys.retry_msec),
    }
}

pub(super) fn agreement_options(config: &Config) -> AgreementOptions {
    AgreementOptions {
        patience: seconds(config.deadlines.agree_sec),
        collection: seconds(config.deadlines.collect_sec),
    }
}

/// For the whole log.
pub(super) fn brake(config: &Config) -> Brake {
    Brake { burst: number(config.log.burst), pause: millis(config.log.pause_msec) }
}

fn number(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn whole(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn size(text: &str) -> usize {
    usize::try_from(bytes(text)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Slot, Visit};
    use crate::credentials::Keyring;

    /// Changes one number or size.
    struct Change<'a>(&'a str);

    impl Visit for Change<'_> {
        fn key(&mut self, path: &'static str, _: &'static str, slot: Slot<'_>) {
            if path != self.0 {
                return;
            }
            match slot {
                Slot::Int(value, bounds) => {
                    *value = if *value < *bounds.end() { *value + 1 } else { *value - 1 };
                }
                Slot::Size(text) => *text = "12345b".to_owned(),
                other => panic!("{path} is no number: {other:?}"),
            }
        }
    }

    /// All numbers there are.
    struct Numbers(Vec<&'static str>);

    impl Visit for Numbers {
        fn key(&mut self, path: &'static str, _: &'static str, slot: Slot<'_>) {
            if matches!(slot, Slot::Int(..) | Slot::Size(_)) {
                self.0.push(path);
            }
        }
    }

    /// Everything that the parts of the daemon are told.
    fn told(config: &Config) -> String {
        let overlay = OverlayOptions::default();
        let keyring = Arc::new(Keyring::alone(1));
        let client = super::super::client::client_options(config, &keyring);
        format!(
            "{:?}",
            (
                (layer_options(Path::new("/"), config), resolve_options(config), greet_options(config)),
                (
                    unpack_options(config, overlay),
                    snapshot_options(config, overlay),
                    fuse_options(config, true)
                ),
                (kernel_options(config), errand_options(config)),
                (keeper_options(config), supervise_options(config)),
                (metrics_options(config), brake(config), client.bounds, client.idle_timeout),
                (client.header_timeout, client.connect_timeout, client.request_timeout, client.retries),
                (client.min_backoff, client.max_backoff, client.turns, config.attach_deadline()),
                (
                    config.shared_cache(),
                    config.drain_deadline(),
                    agreement_options(config),
                    super::super::client::docker(config)
                ),
            )
        )
    }

    #[test]
    fn the_first_download_of_a_span_is_no_retry() {
        for (retries, attempts) in [(-1, 4), (0, 1), (1, 2), (7, 8)] {
            let mut config = Config::default();
            config.blob.max_span_verification_retries = retries;
            assert_eq!(layer_options(Path::new("/"), &config).span_attempts, attempts, "{retries}");
        }
    }

    #[test]
    fn every_number_of_ours_reaches_its_place() {
        let mut numbers = Numbers(Vec::new());
        Config::default().visit(&mut numbers);
        let ours = ["limits.", "deadlines.", "cache.", "keeper.", "supervise.", "metrics.", "log."];
        let also =
            ["http.", "blob.", "background_fetch.", "resolver.", "content_store.", "fuse.", "snapshotter."];
        let alone = ["max_concurrency", "mount_timeout_sec", "resolve_result_entry"];
        let before = told(&Config::default());
        let mut without: Vec<&str> = Vec::new();
        let used =
            |path: &&str| ours.iter().chain(&also).any(|t| path.starts_with(t)) || alone.contains(path);
        for path in numbers.0.into_iter().filter(used) {
            let mut config = Config::default();
            config.visit(&mut Change(path));
            assert_ne!(config, Config::default(), "{path}");
            if told(&config) == before {
                without.push(path);
            }
        }
        // Accepted for upstream's sake, and those that `daemon` itself hands on.
        let expected = [
            "blob.valid_interval",
            "fuse.attr_timeout",
            "fuse.entry_timeout",
            "fuse.negative_timeout",
            "background_fetch.emit_metric_period_sec",
            "resolver.auth_client_ttl_sec",
            "limits.blocking_threads",
            "limits.credentials",
        ];
        assert_eq!(without, expected);
    }
}
