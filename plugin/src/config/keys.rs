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
const MILLISECONDS: RangeInclusive<i64> = 1..=86_400_000;
const COUNT: RangeInclusive<i64> = 1..=1_048_576;

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
        /// Requests to registries at the same time, for the whole daemon: so many for what containers read, where the background gives way, and so many of all other kinds (0 or negative: no limit).
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
        /// Further downloads of a span that did not match its digest (negative: 3; upstream: 0, so that one wrong byte of a registry is an error of the container).
        max_span_verification_retries "blob.max_span_verification_retries": Int(ANY) = -1;
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
        /// Reads of one layer that the kernel may have under way ahead of their readers and for the loop device above; those that wait for data must leave room for those that do not (ours).
        max_background "fuse.max_background": Int(16..=65_535) = 256;
        /// Loop devices that are tried for one layer while others are faster with them (ours).
        loop_attempts "fuse.loop_attempts": Int(1..=65_536) = 64;
        /// Files of one layer that keep what the kernel has cached of them when the layer leaves FUSE; each is open for a moment (ours).
        held_files "fuse.held_files": Int(0..=1_000_000) = 65_536;
        /// Seconds after that for which new containers share what is cached; then they get the layer's file without a loop device, where the kernel can (Linux 6.12), which is faster with cold caches (ours).
        shared_cache_sec "fuse.shared_cache_sec": Int(0..=86_400) = 30;
        /// Logs each file system request, where --log-level is debug or trace.
        log_fuse_operations "fuse.log_fuse_operations": Bool = false;
    }
    /// Fetching what nobody asked for yet.
    BackgroundFetch background_fetch {
        /// Turns it off.
        disable "background_fetch.disable": Bool = false;
        /// Milliseconds during which no read had to wait and no layer came before it begins (upstream: 30000): what a starting program waits for next should not have to share the link. Who reads everything is not kept waiting.
        silence_period_msec "background_fetch.silence_period_msec": Int(0..=86_400_000) = 1_000;
        /// Milliseconds between the beginnings of two fetches (upstream: 500); 0 for the speed of the link: what a reader waits for goes first in any case.
        fetch_period_msec "background_fetch.fetch_period_msec": Int(0..=86_400_000) = 0;
        /// Layers that wait at most (-1: no limit); those that do not fit stay lazy until they are mounted again.
        max_queue_size "background_fetch.max_queue_size": Int(-1..=i64::MAX) = 1_024;
        /// Which layer is dropped from a full queue.
        drop_policy "background_fetch.drop_policy": Choice(&["newest", "oldest"]) = "newest";
        /// Bytes a second at most, such as "10mb"; empty for the speed of the link (ours).
        bytes_per_sec "background_fetch.bytes_per_sec": Size = "";
        /// Milliseconds before a layer is looked at again of which everything missing has failed lately, or whose registry has failed; then twice as long after each further failure, up to 256 times (ours).
        retry_msec "background_fetch.retry_msec": Int(MILLISECONDS) = 1_000;
        /// Accepted for upstream's sake.
        emit_metric_period_sec "background_fetch.emit_metric_period_sec": Int(NATURAL) = 10;
    }
    /// Where indices and zTOCs are.
    ContentStore content_store {
        /// "containerd"; "soci", upstream's store of its own, is read as "containerd" too.
        kind "content_store.type": Choice(&["containerd", "soci"]) = "containerd";
        /// containerd's socket.
        containerd_address "content_store.containerd_address": Text = "/run/containerd/containerd.sock";
        /// Seconds between finding an index and putting it into containerd's store: what its layers need arrives meanwhile (ours).
        keep_after_sec "content_store.keep_after_sec": Int(0..=3_600) = 3;
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
        /// Seconds that the directories of config_path are not looked at again (ours).
        config_ttl_sec "resolver.config_ttl_sec": Int(0..=86_400) = 10;
        /// Seconds that a blob is looked for where it was found, before mirrors that come earlier are asked again (ours).
        place_ttl_sec "resolver.place_ttl_sec": Int(0..=86_400) = 300;
        /// Seconds that a host which could not be reached comes after the others of its registry (ours).
        demotion_sec "resolver.demotion_sec": Int(0..=86_400) = 30;
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
        /// Seconds that looking for an index goes on for the next who asks, when nobody waits for it any more.
        find_sec "deadlines.find_sec": Int(SECONDS) = 30;
        /// Seconds that a registry may take to answer what is asked before anybody needs it.
        greet_sec "deadlines.greet_sec": Int(SECONDS) = 10;
        /// Seconds that a credential helper of docker's may take.
        credential_helper_sec "deadlines.credential_helper_sec": Int(SECONDS) = 30;
        /// Seconds that a registry is left alone at most, whatever its Retry-After says; so long one that has refused a layer is asked for that only by who waits and has no other.
        retry_after_sec "deadlines.retry_after_sec": Int(SECONDS) = 60;
        /// Seconds that putting an index into containerd's store may wait for another who does, and that it is protected from garbage collection meanwhile.
        store_sec "deadlines.store_sec": Int(SECONDS) = 600;
        /// Seconds that an answer of containerd's may take.
        containerd_sec "deadlines.containerd_sec": Int(SECONDS) = 2;
        /// Seconds after the start in which it is tried to find out which snapshots containerd does not know.
        agree_sec "deadlines.agree_sec": Int(SECONDS) = 300;
        /// Seconds that containerd may take to collect those.
        collect_sec "deadlines.collect_sec": Int(SECONDS) = 120;
        /// Seconds for a layer's EROFS mount before containers read FUSE itself.
        attach_sec "deadlines.attach_sec": Int(SECONDS) = 5;
        /// Seconds without a byte after which a request for spans is given up and made anew.
        fetch_stall_sec "deadlines.fetch_stall_sec": Int(SECONDS) = 30;
        /// Seconds that a connection to a registry is kept though nothing is asked by way of it.
        idle_connection_sec "deadlines.idle_connection_sec": Int(SECONDS) = 60;
        /// Bytes a second of the slowest link that a request for spans is given time for, on top of that.
        slowest_link "deadlines.slowest_link": Size = "64kb";
        /// Seconds without a byte after which unpacking a layer here is given up.
        unpack_stall_sec "deadlines.unpack_stall_sec": Int(SECONDS) = 30;
        /// Seconds for requests in flight and mounts to end when the daemon is stopped.
        drain_sec "deadlines.drain_sec": Int(SECONDS) = 10;
        /// Seconds that each part of unmounting a layer may take: its process, its threads.
        unmount_sec "deadlines.unmount_sec": Int(SECONDS) = 10;
        /// Seconds for a complete layer's local file to take the place of its FUSE mount.
        exchange_sec "deadlines.exchange_sec": Int(SECONDS) = 60;
        /// Milliseconds that an unmount waits for the mount's last users before it takes the mount out of their sight, and for their end after that.
        in_use_msec "deadlines.in_use_msec": Int(MILLISECONDS) = 500;
        /// Milliseconds that an unmount waits for what the kernel began to read ahead for nobody.
        kernel_reads_msec "deadlines.kernel_reads_msec": Int(MILLISECONDS) = 200;
        /// Milliseconds that what is still under way is waited for when layer files are removed, and when the daemon ends.
        release_msec "deadlines.release_msec": Int(MILLISECONDS) = 1_000;
        /// Seconds that "this image has no index" and a registry's failure are remembered.
        negative_ttl_sec "deadlines.negative_ttl_sec": Int(0..=3_600) = 5;
        /// Seconds that an image's index is believed to be the newest.
        found_ttl_sec "deadlines.found_ttl_sec": Int(1..=3_600) = 60;
    }
    /// What is fetched before a container that starts asks for it (ours).
    Start start {
        /// Files that nearly every start reads, absolute, with blanks between them; of a program, what it needs, too.
        files "start.files": Text = "/etc/passwd /etc/group /bin/sh /etc/nsswitch.conf /etc/ld.so.cache";
        /// Files that many starts read, likewise: fetched when nothing more certain is to come.
        likely_files "start.likely_files": Text = "/usr/lib/locale/C.utf8/LC_CTYPE /etc/localtime";
    }
    /// The disk that layer files take (ours).
    Cache cache {
        /// Bytes that all layer files may take, such as "50gb"; empty for any number. Beyond, layers that are not mounted go, those unused longest first; then what is read is no longer kept.
        max_size "cache.max_size": Size = "";
        /// Bytes of the file system that are left free, with the same consequences.
        min_free "cache.min_free": Size = "256mb";
        /// Seconds that the background leaves a full disk alone, and that the log does not say again that it is full.
        full_pause_sec "cache.full_pause_sec": Int(SECONDS) = 30;
        /// Seconds between two looks for layers that can go.
        trim_pause_sec "cache.trim_pause_sec": Int(SECONDS) = 5;
    }
    /// Who holds what must not end with the daemon; a keeper that runs already goes on with what it was started with (ours).
    KeeperTable keeper {
        /// Things that it holds: one for each mounted layer, and one for all credentials.
        names "keeper.names": Int(COUNT) = 65_536;
        /// Daemons that are connected to it at the same time: the one that is there, and one that comes.
        daemons "keeper.daemons": Int(2..=1_024) = 8;
        /// Bytes of all credentials together that the next daemon takes back.
        secrets_bytes "keeper.secrets_bytes": Size = "64mb";
        /// Seconds that it (or systemd) may take to answer, that it is looked for at the start, and until the next attempt to replace one that died.
        answer_sec "keeper.answer_sec": Int(SECONDS) = 5;
        /// Seconds that it waits for a daemon that does not take its answer.
        send_sec "keeper.send_sec": Int(SECONDS) = 1;
        /// Seconds that it waits for a daemon as long as it holds nothing.
        alone_sec "keeper.alone_sec": Int(SECONDS) = 10;
    }
    /// Starting a daemon that died again, with --supervise (ours).
    SuperviseTable supervise {
        /// Milliseconds before it is started again; each further pause is twice as long.
        first_pause_msec "supervise.first_pause_msec": Int(MILLISECONDS) = 100;
        /// Seconds of the longest pause.
        longest_pause_sec "supervise.longest_pause_sec": Int(SECONDS) = 30;
        /// Seconds after which one has not died of its start: the pauses begin anew.
        stable_sec "supervise.stable_sec": Int(SECONDS) = 10;
    }
    /// Serving metrics at metrics_address (ours).
    MetricsTable metrics {
        /// Connections at the same time; a scraper needs one.
        connections "metrics.connections": Int(COUNT) = 16;
        /// Seconds that a connection may take, requests and answers together.
        connection_sec "metrics.connection_sec": Int(SECONDS) = 30;
        /// Seconds that a request's head may take.
        head_sec "metrics.head_sec": Int(SECONDS) = 5;
        /// Milliseconds before another connection is taken where one could not be, for want of descriptors.
        retry_msec "metrics.retry_msec": Int(MILLISECONDS) = 1_000;
    }
    /// Lines of the log that a registry or an image can cause at will, but for debug lines (ours).
    LogTable log {
        /// Lines of one kind that pass at once.
        burst "log.burst": Int(COUNT) = 20;
        /// Lines about one mounted layer's failing reads that pass at once.
        mount_burst "log.mount_burst": Int(COUNT) = 5;
        /// Milliseconds after which one more passes.
        pause_msec "log.pause_msec": Int(MILLISECONDS) = 2_000;
    }
    /// How much at the same time, and how much is remembered (ours).
    Limits limits {
        /// Calls of one client (containerd is one) at the same time; more wait. As many layers may be being made, and clean-ups be waited for.
        calls "limits.calls": Int(1..=65_536) = 1_024;
        /// Threads that check and inflate spans (0: one for each CPU).
        inflate_threads "limits.inflate_threads": Int(0..=1_024) = 0;
        /// Threads for what waits for the disk or the kernel: transactions, directories, mounts, unpacking.
        blocking_threads "limits.blocking_threads": Int(16..=65_536) = 512;
        /// Requests for spans that readers wait for at the same time, for the whole daemon; a registry that has fewer than an eighth of that is asked all the same.
        fetches "limits.fetches": Int(1..=4_096) = 32;
        /// Requests to one registry at the same time for spans that nobody waits for; begins with 4, more are taken while they bring more.
        connections_per_host "limits.connections_per_host": Int(1..=1_024) = 16;
        /// Connections to one registry that are kept though nothing is asked by way of them.
        idle_connections "limits.idle_connections": Int(0..=1_024) = 32;
        /// Registries that are remembered: how many connections they bear, how they are reached.
        hosts "limits.hosts": Int(COUNT) = 1_024;
        /// Blobs of which it is remembered where their registry redirects to.
        redirects "limits.redirects": Int(COUNT) = 4_096;
        /// Tokens that are remembered, one for each repository of a registry.
        tokens "limits.tokens": Int(COUNT) = 1_024;
        /// Repositories whose credentials are remembered; past that, those handed over first are forgotten.
        credentials "limits.credentials": Int(COUNT) = 4_096;
        /// Registries that are greeted at the same time when credentials are handed over; one more is not greeted.
        greetings "limits.greetings": Int(COUNT) = 16;
        /// Indices of one image that are looked at, newest first, before it counts as one without; each costs a round trip.
        referrers "limits.referrers": Int(1..=1_024) = 4;
        /// Digests that images give for one layer, uncompressed, that are remembered until it is checked; honest images give one.
        diff_ids "limits.diff_ids": Int(COUNT) = 16;
        /// Compressed bytes of a layer's end that are fetched once more, in memory, where that takes more than zeros to check the layer; with more it is not checked as a whole.
        tail_bytes "limits.tail_bytes": Size = "64mb";
        /// Compressed bytes of the longest range that is asked for in one request.
        range_bytes "limits.range_bytes": Size = "16mb";
        /// Compressed bytes that are fetched ahead of one sequence of reads at most (0b: none).
        read_ahead_bytes "limits.read_ahead_bytes": Size = "16mb";
        /// Sequences of reads that are followed in one layer.
        read_ahead_streams "limits.read_ahead_streams": Int(1..=1_024) = 8;
        /// Spans of one layer that may wait to be fetched ahead of readers, and reads that may wait to be looked at for that.
        read_ahead_queue "limits.read_ahead_queue": Int(1..=65_536) = 256;
        /// Compressed bytes on their way ahead of readers while another read waits.
        ahead_while_waiting_bytes "limits.ahead_while_waiting_bytes": Size = "2mb";
        /// Spans that follow what was read and are fetched by guess in one layer before one proved useful; later, three for each that did (0: none).
        guesses "limits.guesses": Int(0..=65_536) = 4;
        /// Files that a program that starts is followed to (its libraries, the modules that it imports, theirs, and so on), fetched ahead of it (0: none, nor start.files); as many may wait for that.
        start_files "limits.start_files": Int(0..=65_536) = 1_024;
        /// Bytes of such files that are fetched because of one program.
        start_bytes "limits.start_bytes": Size = "128mb";
        /// Files of one layer, as long as it is mounted, that programs are followed to; past that, none is any more.
        followed_files "limits.followed_files": Int(1..=1_048_576) = 4_096;
        /// Compressed bytes in memory that are not inflated yet; with so many, no more are taken from the network.
        in_flight_bytes "limits.in_flight_bytes": Size = "16mb";
        /// Bytes of the largest span, compressed or not, that a zTOC may have.
        span_bytes "limits.span_bytes": Size = "256mb";
        /// Spans that the background compares with their checksums at the same time, after the machine went down with some not on the disk yet.
        rechecks "limits.rechecks": Int(1..=1_024) = 2;
        /// Idle buffers that are kept for reads (0: two for each CPU, at least 8).
        idle_buffers "limits.idle_buffers": Int(0..=65_536) = 0;
        /// Bytes of the largest buffer that is kept, by those and by each inflate thread.
        idle_buffer_bytes "limits.idle_buffer_bytes": Size = "1mb";
        /// Reads that may wait for one span; another one ends with EIO.
        waiting_reads "limits.waiting_reads": Int(1..=1_048_576) = 4_096;
        /// Layers being unpacked by the daemon at the same time.
        unpacks "limits.unpacks": Int(1..=256) = 4;
        /// Pieces of a layer between its download and its unpacking, as the network gives them.
        unpack_pieces "limits.unpack_pieces": Int(1..=65_536) = 16;
        /// Layers being mounted again at the same time when the daemon starts.
        restores "limits.restores": Int(1..=1_024) = 16;
        /// Layers of an image that are made ready at the same time before containerd asks for them: found in the registry, their files made (0: no files).
        layers_ahead "limits.layers_ahead": Int(0..=256) = 4;
        /// Processes that mount and unmount EROFS at the same time, as many of either kind; one that exchanges a layer's file counts as a quarter of them.
        errands "limits.errands": Int(1..=1_024) = 16;
        /// Containers that are about to run whose command lines are looked up in containerd at the same time, for what they name (0: none); another one starts without.
        commands "limits.commands": Int(0..=1_024) = 16;
        /// Bytes of the largest zTOC that is read.
        ztoc_bytes "limits.ztoc_bytes": Size = "512mb";
        /// Bytes of all zTOCs in memory at the same time, at least one of the largest; what is made of one while it is there takes about as much again.
        ztocs_bytes "limits.ztocs_bytes": Size = "1gb";
    }
}
