//! Every key there is: name, type, bounds, default and meaning, in one place.
//!
//! The macro makes a struct for each table, its defaults, and the walk that the reader, the writer and the tests share, so a key cannot be
//! read but not printed. Spelling is upstream's, CamelCase under `[http]` included.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Where a value goes, with what it may be.
#[derive(Debug)]
pub enum Slot<'a> {
    /// `true` or `false`.
    Bool(&'a mut bool),
    /// A whole number within bounds.
    Int(&'a mut i64, RangeInclusive<i64>),
    /// Any string.
    Text(&'a mut String),
    /// One of these, in any case.
    Choice(&'a mut String, &'static [&'static str]),
    /// A size: empty, or a number with an optional fraction and `b`, `kb`, `mb` or `gb` (1024-based).
    Size(&'a mut String),
    /// `[resolver.host."<host>"]` tables.
    Hosts(&'a mut BTreeMap<String, Vec<Mirror>>),
    /// `[….decompress_streams.<gzip|zstd>]` tables.
    Streams(&'a mut BTreeMap<String, Decompressor>),
}

/// Sees every key.
pub trait Visit {
    /// `path` is dotted, from the top; `meaning` is one line.
    fn key(&mut self, path: &'static str, meaning: &'static str, slot: Slot<'_>);
}

/// Another host that serves the same repositories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// Host with optional port, or a URL.
    pub host: String,
    /// Plain HTTP, or HTTPS without checking the certificate.
    pub insecure: bool,
    /// Seconds for a request; 0 for the default, negative for no limit.
    pub request_timeout_sec: i64,
}

/// A program that inflates a stream from its standard input to its standard output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decompressor {
    /// Absolute path of an executable file.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
}

macro_rules! kind {
    (Bool) => { bool };
    (Int) => { i64 };
    (Text) => { String };
    (Choice) => { String };
    (Size) => { String };
    (Hosts) => { BTreeMap<String, Vec<Mirror>> };
    (Streams) => { BTreeMap<String, Decompressor> };
}

macro_rules! tables {
    ($($(#[doc = $about:literal])+ $table:ident $member:ident {
        $(#[doc = $meaning:literal] $field:ident $path:literal: $kind:ident$(($bound:expr))? = $default:expr;)*
    })*) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $table { $(#[doc = $meaning] pub $field: kind!($kind),)* }

            impl Default for $table {
                fn default() -> $table {
                    $table { $($field: <kind!($kind)>::from($default),)* }
                }
            }
        )*

        /// What the daemon goes by, a field for each table.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Config { $($(#[doc = $about])+ pub $member: $table,)* }

        impl Config {
            /// Shows every key to `visitor`, tables in the order of the example file.
            pub fn visit(&mut self, visitor: &mut dyn Visit) {
                $($(visitor.key($path, $meaning.trim_ascii(), Slot::$kind(&mut self.$member.$field $(, $bound)?));)*)*
            }
        }
    };
}

const ANY: RangeInclusive<i64> = i64::MIN..=i64::MAX;
const NATURAL: RangeInclusive<i64> = 0..=i64::MAX;
const SECONDS: RangeInclusive<i64> = 1..=86_400;

tables! {
    /// Keys outside every table.
    General general {
        /// Accepted for upstream's sake: HTTP responses are not cached.
        http_cache_type "http_cache_type": Text = "";
        /// Accepted for upstream's sake: what was fetched is always kept in the layer file, on disk.
        filesystem_cache_type "filesystem_cache_type": Text = "";
        /// Images whose index is remembered at the same time (0: 256).
        resolve_result_entry "resolve_result_entry": Int(NATURAL) = 0;
        /// Accepted for upstream's sake: request tracing comes with --log-level trace.
        debug "debug": Bool = false;
        /// Accepted for upstream's sake, with a warning: what a container reads is always verified.
        disable_verification "disable_verification": Bool = false;
        /// Requests to registries at the same time, for the whole daemon (0: no limit, negative: 100).
        max_concurrency "max_concurrency": Int(ANY) = 100;
        /// Turns metrics off.
        no_prometheus "no_prometheus": Bool = false;
        /// Seconds that one layer may take to be mounted before it is unpacked instead (0: 30).
        mount_timeout_sec "mount_timeout_sec": Int(0..=3_600) = 30;
        /// Accepted for upstream's sake.
        fuse_metrics_emit_wait_duration_sec "fuse_metrics_emit_wait_duration_sec": Int(ANY) = 60;
        /// Where metrics are served, as host:port or path of a socket; empty for nowhere.
        metrics_address "metrics_address": Text = "";
        /// What kind of address that is.
        metrics_network "metrics_network": Choice(&["tcp", "unix"]) = "tcp";
        /// Where debugging data is served; empty for nowhere (not used yet).
        debug_address "debug_address": Text = "";
        /// Accepted for upstream's sake: a layer's metadata is in its layer file.
        metadata_store "metadata_store": Choice(&["db", "db-multi"]) = "db";
        /// Accepted for upstream's sake.
        metadata_db_no_sync "metadata_db_no_sync": Bool = false;
        /// Accepted for upstream's sake.
        metadata_insertion_chunk_size "metadata_insertion_chunk_size": Int(ANY) = 0;
        /// Starts even where the file system under the root cannot carry overlays.
        skip_check_snapshotter_supported "skip_check_snapshotter_supported": Bool = false;
    }
    /// Talking to registries.
    Http http {
        /// Retries of a request (0: 8; negative: none).
        max_retries "http.MaxRetries": Int(ANY) = 8;
        /// Milliseconds before the first retry (0: 30).
        min_wait_msec "http.MinWaitMsec": Int(NATURAL) = 30;
        /// Milliseconds before a retry at most (0: 300000).
        max_wait_msec "http.MaxWaitMsec": Int(NATURAL) = 300_000;
        /// Milliseconds for a connection to be made (0: 3000).
        dial_timeout_msec "http.DialTimeoutMsec": Int(NATURAL) = 3_000;
        /// Milliseconds until a response begins (0: 3000).
        response_header_timeout_msec "http.ResponseHeaderTimeoutMsec": Int(NATURAL) = 3_000;
        /// Milliseconds for a whole request; a download that takes longer goes on with another (0: 300000).
        request_timeout_msec "http.RequestTimeoutMsec": Int(NATURAL) = 300_000;
    }
    /// Reading layers.
    Blob blob {
        /// Accepted for upstream's sake: a layer is checked by reading it.
        valid_interval "blob.valid_interval": Int(ANY) = 60;
        /// Accepted for upstream's sake.
        check_always "blob.check_always": Bool = false;
        /// Seconds after which a blocked read ends with EIO (0: 300).
        fetching_timeout_sec "blob.fetching_timeout_sec": Int(0..=86_400) = 300;
        /// Accepted for upstream's sake: every request asks for a single range.
        force_single_range_mode "blob.force_single_range_mode": Bool = false;
        /// Retries of a ranged request that failed for a passing reason (0: until fetching_timeout_sec; negative: none).
        max_retries "blob.max_retries": Int(ANY) = 0;
        /// Milliseconds before the first retry; each further pause is twice as long (0: 50).
        min_wait_msec "blob.min_wait_msec": Int(NATURAL) = 0;
        /// Milliseconds before a retry at most (0: 5000).
        max_wait_msec "blob.max_wait_msec": Int(NATURAL) = 0;
        /// Further downloads of a span that did not match its digest (negative: 3).
        max_span_verification_retries "blob.max_span_verification_retries": Int(ANY) = 0;
    }
    /// Upstream's cache of spans, which this daemon has no need of.
    DirectoryCache directory_cache {
        /// Accepted for upstream's sake.
        max_lru_cache_entry "directory_cache.max_lru_cache_entry": Int(ANY) = 0;
        /// Accepted for upstream's sake.
        max_cache_fds "directory_cache.max_cache_fds": Int(ANY) = 0;
        /// Accepted for upstream's sake.
        sync_add "directory_cache.sync_add": Bool = false;
        /// Accepted for upstream's sake.
        direct "directory_cache.direct": Bool = true;
    }
    /// The file system that containers see.
    Fuse fuse {
        /// Accepted for upstream's sake: layers never change, so attributes never expire.
        attr_timeout "fuse.attr_timeout": Int(ANY) = 1;
        /// Accepted for upstream's sake: layers never change, so names never expire.
        entry_timeout "fuse.entry_timeout": Int(ANY) = 1;
        /// Accepted for upstream's sake: layers never change, so missing names never expire.
        negative_timeout "fuse.negative_timeout": Int(ANY) = 1;
        /// Mounts layers as EROFS by way of loop devices, above FUSE, where the machine can ("auto"); or has containers read FUSE itself ("off") (ours).
        kernel "fuse.kernel": Choice(&["auto", "off"]) = "auto";
        /// Threads that answer the kernel, for each layer (ours).
        threads "fuse.threads": Int(1..=64) = 1;
        /// KiB that the kernel reads ahead of a reader while data comes by way of FUSE (0: what the kernel takes of itself) (ours).
        read_ahead_kib "fuse.read_ahead_kib": Int(0..=65_536) = 1_024;
        /// KiB that the kernel reads ahead of a reader of a layer that is complete on the local disk (ours).
        local_read_ahead_kib "fuse.local_read_ahead_kib": Int(0..=65_536) = 1_024;
        /// Logs each file system request, where --log-level is debug or trace.
        log_fuse_operations "fuse.log_fuse_operations": Bool = false;
    }
    /// Fetching what nobody asked for yet.
    BackgroundFetch background_fetch {
        /// Turns it off.
        disable "background_fetch.disable": Bool = false;
        /// Milliseconds during which no read had to wait and no layer came before it begins (upstream: 30000): what a starting program waits for next should not have to share the link.
        silence_period_msec "background_fetch.silence_period_msec": Int(0..=86_400_000) = 1_000;
        /// Milliseconds between the beginnings of two fetches (upstream: 500); 0 for the speed of the link: what a reader waits for goes first in any case.
        fetch_period_msec "background_fetch.fetch_period_msec": Int(0..=86_400_000) = 0;
        /// Layers that wait at most (-1: no limit); those that do not fit stay lazy until they are mounted again.
        max_queue_size "background_fetch.max_queue_size": Int(-1..=i64::MAX) = 1_024;
        /// Which layer is dropped from a full queue.
        drop_policy "background_fetch.drop_policy": Choice(&["newest", "oldest"]) = "newest";
        /// Bytes a second at most, such as "10mb"; empty for the speed of the link (ours).
        bytes_per_sec "background_fetch.bytes_per_sec": Size = "";
        /// Accepted for upstream's sake.
        emit_metric_period_sec "background_fetch.emit_metric_period_sec": Int(NATURAL) = 10;
    }
    /// Where indices and zTOCs are.
    ContentStore content_store {
        /// "containerd"; "soci", upstream's store of its own, is read as "containerd" too.
        kind "content_store.type": Choice(&["containerd", "soci"]) = "containerd";
        /// containerd's socket.
        containerd_address "content_store.containerd_address": Text = "/run/containerd/containerd.sock";
    }
    /// Fetching what a prefetch artifact lists.
    Prefetch prefetch {
        /// Turns it on (not used yet).
        enable "prefetch.enable": Bool = false;
        /// Layers at the same time (0: no limit) (not used yet).
        max_concurrency "prefetch.max_concurrency": Int(NATURAL) = 0;
    }
    /// Indices found through the registry's referrers.
    SociV1 soci_v1 {
        /// Looks for them.
        enable "pull_modes.soci_v1.enable": Bool = true;
    }
    /// Indices named by the image's manifest.
    SociV2 soci_v2 {
        /// Looks for them.
        enable "pull_modes.soci_v2.enable": Bool = true;
    }
    /// Downloading and unpacking whole images in parallel.
    Parallel parallel {
        /// Turns it on (not used yet).
        enable "pull_modes.parallel_pull_unpack.enable": Bool = false;
        /// Uses it for images without an index (not used yet).
        as_fallback "pull_modes.parallel_pull_unpack.experimental_parallel_pull_as_fallback": Bool = false;
        /// Downloads at the same time, all images together (-1: no limit) (not used yet).
        max_concurrent_downloads "pull_modes.parallel_pull_unpack.max_concurrent_downloads": Int(-1..=i64::MAX) = -1;
        /// Downloads at the same time for one image (-1: no limit) (not used yet).
        max_concurrent_downloads_per_image "pull_modes.parallel_pull_unpack.max_concurrent_downloads_per_image": Int(-1..=i64::MAX) = 3;
        /// Size of one ranged request, such as "8mb"; empty for the whole layer (not used yet).
        concurrent_download_chunk_size "pull_modes.parallel_pull_unpack.concurrent_download_chunk_size": Size = "";
        /// Layers unpacked at the same time, all images together (-1: no limit) (not used yet).
        max_concurrent_unpacks "pull_modes.parallel_pull_unpack.max_concurrent_unpacks": Int(-1..=i64::MAX) = -1;
        /// Layers unpacked at the same time for one image (-1: no limit) (not used yet).
        max_concurrent_unpacks_per_image "pull_modes.parallel_pull_unpack.max_concurrent_unpacks_per_image": Int(-1..=i64::MAX) = 1;
        /// Keeps nothing of a layer in containerd's content store once it is unpacked (not used yet).
        discard_unpacked_layers "pull_modes.parallel_pull_unpack.discard_unpacked_layers": Bool = false;
        /// Programs that inflate gzip or zstd: tables with path and args (not used yet).
        decompress_streams "pull_modes.parallel_pull_unpack.decompress_streams": Streams = BTreeMap::new();
    }
    /// Credentials from the image pull secrets of a Kubernetes cluster.
    KubeconfigKeychain kubeconfig_keychain {
        /// Turns them on (not used yet).
        enable_keychain "kubeconfig_keychain.enable_keychain": Bool = false;
        /// File that says how to reach the cluster (not used yet).
        kubeconfig_path "kubeconfig_keychain.kubeconfig_path": Text = "";
    }
    /// Credentials that the kubelet sends with its pulls.
    CriKeychain cri_keychain {
        /// Turns them on: the daemon's socket then serves the CRI's image service too (not used yet).
        enable_keychain "cri_keychain.enable_keychain": Bool = false;
        /// Socket of the image service that requests are passed to (not used yet).
        image_service_path "cri_keychain.image_service_path": Text = "/run/containerd/containerd.sock";
    }
    /// How registries are reached.
    Resolver resolver {
        /// Accepted for upstream's sake: a token lives as long as the registry says.
        auth_client_ttl_sec "resolver.auth_client_ttl_sec": Int(ANY) = 3_600;
        /// Accepted for upstream's sake: clients are always shared.
        enable_auth_client_sharing "resolver.enable_auth_client_sharing": Bool = false;
        /// Mirrors of a host: tables with mirrors = [{host, insecure, request_timeout_sec}], asked before those of config_path.
        host "resolver.host": Hosts = BTreeMap::new();
        /// Directories with containerd's <host>/hosts.toml files, separated by colons as in containerd's key of this name; the first that has the host wins, empty for none (ours).
        config_path "resolver.config_path": Text = "";
    }
    /// What becomes a lazy mount, and what happens at a restart.
    Snapshotter snapshotter {
        /// Layers with fewer compressed bytes are never mounted lazily.
        min_layer_size "snapshotter.min_layer_size": Int(NATURAL) = 0;
        /// Accepted for upstream's sake: the daemon starts in any case, and a layer that could not be restored is Unavailable.
        allow_invalid_mounts_on_restart "snapshotter.allow_invalid_mounts_on_restart": Bool = false;
    }
    /// How long things may take (ours).
    Deadlines deadlines {
        /// Seconds to find an image's index before containerd pulls it the ordinary way.
        resolve_sec "deadlines.resolve_sec": Int(SECONDS) = 5;
        /// Seconds that an answer of containerd's may take.
        containerd_sec "deadlines.containerd_sec": Int(SECONDS) = 2;
        /// Seconds for a layer's EROFS mount before containers read FUSE itself.
        attach_sec "deadlines.attach_sec": Int(SECONDS) = 5;
        /// Seconds without a byte after which a request for spans is given up and made anew.
        fetch_stall_sec "deadlines.fetch_stall_sec": Int(SECONDS) = 30;
        /// Seconds without a byte after which unpacking a layer here is given up.
        unpack_stall_sec "deadlines.unpack_stall_sec": Int(SECONDS) = 30;
        /// Seconds for requests in flight and mounts to end when the daemon is stopped.
        drain_sec "deadlines.drain_sec": Int(SECONDS) = 10;
        /// Seconds that "this image has no index" and a registry's failure are remembered.
        negative_ttl_sec "deadlines.negative_ttl_sec": Int(0..=3_600) = 5;
        /// Seconds that an image's index is believed to be the newest.
        found_ttl_sec "deadlines.found_ttl_sec": Int(1..=3_600) = 60;
    }
    /// The disk that layer files take (ours).
    Cache cache {
        /// Bytes that all layer files may take, such as "50gb"; empty for any number. Beyond, layers that are not mounted go, those unused longest first; then what is read is no longer kept.
        max_size "cache.max_size": Size = "";
        /// Bytes of the file system that are left free, with the same consequences.
        min_free "cache.min_free": Size = "256mb";
    }
    /// How much at the same time (ours).
    Limits limits {
        /// Calls of one client (containerd is one) at the same time; more wait.
        calls "limits.calls": Int(1..=65_536) = 1_024;
        /// Threads that check and inflate spans (0: one for each CPU).
        inflate_threads "limits.inflate_threads": Int(0..=1_024) = 0;
        /// Requests for spans that readers wait for at the same time, for the whole daemon.
        fetches "limits.fetches": Int(1..=4_096) = 32;
        /// Requests to one registry at the same time for spans that nobody waits for; begins with 4, more are taken while they bring more.
        connections_per_host "limits.connections_per_host": Int(1..=1_024) = 16;
        /// Compressed bytes of the longest range that is asked for in one request.
        range_bytes "limits.range_bytes": Size = "16mb";
        /// Compressed bytes that are fetched ahead of one sequence of reads at most (0b: none).
        read_ahead_bytes "limits.read_ahead_bytes": Size = "16mb";
        /// Compressed bytes on their way ahead of readers while another read waits.
        ahead_while_waiting_bytes "limits.ahead_while_waiting_bytes": Size = "2mb";
        /// Compressed bytes in memory that are not inflated yet; with so many, no more are taken from the network.
        in_flight_bytes "limits.in_flight_bytes": Size = "16mb";
        /// Bytes of the largest span, compressed or not, that a zTOC may have.
        span_bytes "limits.span_bytes": Size = "256mb";
        /// Reads that may wait for one span; another one ends with EIO.
        waiting_reads "limits.waiting_reads": Int(1..=1_048_576) = 4_096;
        /// Layers being unpacked by the daemon at the same time.
        unpacks "limits.unpacks": Int(1..=256) = 4;
        /// Layers being mounted again at the same time when the daemon starts.
        restores "limits.restores": Int(1..=1_024) = 16;
        /// Layer files being made at the same time from an image's zTOCs before containerd asks for the layers (0: none).
        layers_ahead "limits.layers_ahead": Int(0..=256) = 4;
        /// Bytes of the largest zTOC that is read.
        ztoc_bytes "limits.ztoc_bytes": Size = "512mb";
    }
}
