//! Bounds of the fetch engine.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

/// Where layers live and what they may use. Every queue, cache and wait of this crate has its bound here.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The daemon's root; layers live in `<root>/layers`.
    pub root: PathBuf,
    /// Bytes of disk that all layers may take; beyond, layers that nobody has open go, and what is read is not kept. 0 for any number. Default 0.
    pub max_disk: u64,
    /// Bytes of the file system that are left free, with the same consequences. Default 256 MiB.
    pub min_free: u64,
    /// Threads that check digests, inflate and write. Default: the number of cores.
    pub inflate_threads: usize,
    /// How long a read may stay blocked before it fails with [`crate::ReadError::Deadline`]. Default 300 s.
    pub read_deadline: Duration,
    /// How long one ranged read of a source may take, on top of what its bytes need at [`Self::slowest_link`]. Default 30 s.
    pub attempt_timeout: Duration,
    /// The slowest link that a ranged read is given time for, in bytes a second, at least 1. Default 64 KiB.
    pub slowest_link: u64,
    /// First pause between two tries of the same span; it doubles. Default 50 ms.
    pub first_backoff: Duration,
    /// Longest pause between two tries of the same span. Default 5 s.
    pub max_backoff: Duration,
    /// How often a span is tried again that did not come for a passing reason. Default: until the readers' deadline.
    pub max_retries: Option<u32>,
    /// How often a span whose bytes were wrong (digest, length) is fetched before its readers get the error. Default 3.
    pub span_attempts: u32,
    /// Ranged reads of sources at the same time, of all kinds; those of the background that are left alone in favour of others do not count. Default: any number.
    pub max_ranges: Option<usize>,
    /// Ranged reads of sources at the same time that somebody waits for, over all layers. When there are so many, a host is asked all the same as long as it has fewer than an eighth
    /// of that under way: others may be waiting for one that does not answer. Default 32.
    pub max_fetches: usize,
    /// Ranged reads of one host at the same time that nobody waits for. The engine begins with 4, takes more while that brings more, and fewer when
    /// the host asks for that. Default 16.
    pub max_connections_per_host: usize,
    /// Hosts that are remembered though nothing is asked of them. Default 1024.
    pub max_hosts: usize,
    /// No host is left alone for longer than this, whatever it asks for (`Retry-After`); and so long a source that has refused is asked after all others, and not for
    /// what nobody waits for. Default 60 s.
    pub longest_rest: Duration,
    /// Compressed bytes that have come and were not inflated yet, over all layers; at so many, no more are taken from the network. Each ranged read can go
    /// one piece (as the network gives them) beyond. Default 16 MiB.
    pub max_bytes_in_flight: u64,
    /// Adjacent missing spans are fetched in one range of up to this many compressed bytes, or of one span. Default 16 MiB.
    pub max_range: u64,
    /// Compressed bytes that are on their way ahead of readers while somebody waits for others, or one span. They are left alone while those come; with more, until nobody waits. None
    /// of the background's is on its way then. Default 2 MiB.
    pub max_ahead_while_waiting: u64,
    /// Compressed bytes that one sequence of reads is preceded by at most; 0 turns reading ahead off. Default 16 MiB.
    pub max_read_ahead: u64,
    /// Spans that follow what was read and are fetched by guess in one layer before any turned out to be right; 0 for no guesses. Default 4.
    pub max_guesses: u64,
    /// Sequences of reads that are followed in one layer at the same time; past that, the one that rests longest is forgotten. Default 8.
    pub max_streams: usize,
    /// Spans of one layer that may wait to be fetched ahead of readers; past that, the oldest wishes go. As many reads of all layers may wait to be
    /// looked at for that; more are not seen. Default 256.
    pub max_ahead_queue: usize,
    /// Spans of an earlier boot that the background compares with their checksums at the same time. Default 2.
    pub max_rechecks: usize,
    /// Compressed bytes of the spans with the end of a layer's archive and what follows it, which are fetched once more, in memory, where a layer does not end
    /// in zeros. A layer with more is not checked as a whole. Default 64 MiB.
    pub max_tail: u64,
    /// Diff IDs of one layer that are remembered until it is checked; an honest image has one. Default 16.
    pub max_claims: usize,
    /// Files that a program that starts is followed to (its libraries, its modules, theirs, …), and that are fetched ahead of it; 0 for none. As many, of all
    /// programs, may wait to be followed further; more are not. Default 1024.
    pub max_start_files: usize,
    /// Bytes of the tar that are fetched because of one such program. Default 128 MiB.
    pub max_start_bytes: u64,
    /// Files of one layer that programs were followed to, remembered as long as it is open so that each is once; past that, none is followed. Default 4096.
    pub max_followed: usize,
    /// Files that nearly every start reads, by absolute path: fetched when an image's last layer is mounted.
    pub start_files: Vec<String>,
    /// Files that many starts read, by absolute path: fetched then, too, behind all that is more certain.
    pub likely_files: Vec<String>,
    /// Fetching what nobody asked for.
    pub fill: FillOptions,
    /// A layer with a span (compressed or inflated) larger than this is refused: a span is inflated in memory. Default 256 MiB.
    pub max_span: u64,
    /// Reads that may wait for one span; one more fails with [`crate::ReadError::Busy`]. Default 4096.
    pub max_waiters: usize,
    /// Idle read buffers kept for the next read. Default: 2 for each core, at least 8.
    pub pooled_buffers: usize,
    /// Bytes of the largest buffer that is kept, for reads and by each inflate thread. The kernel asks for up to 1 MiB. Default 1 MiB.
    pub largest_kept_buffer: usize,
    /// How long the background leaves a full disk alone, and the log does not say again that it is full. Default 30 s.
    pub full_pause: Duration,
    /// Between two looks for layers that can go where there is no room. Default 5 s.
    pub trim_pause: Duration,
    /// How long removing layers waits, altogether, for the engine to let go of those that have no source any more. Default 1 s.
    pub release: Duration,
    /// Longest time that `open_layer`, `create_layer` or `remove_unused` waits for another one working on the same layer. Default 30 s.
    pub lock_timeout: Duration,
    /// File that says which boot of the machine this is. Default `/proc/sys/kernel/random/boot_id`.
    pub boot_id: PathBuf,
}

impl StoreOptions {
    /// The pause after that many failures in a row.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        self.first_backoff.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.max_backoff)
    }

    /// So many ranged reads of one host that somebody waits for are under way whatever others do.
    pub(crate) fn fetches_of_a_host(&self) -> usize {
        (self.max_fetches / 8).max(1)
    }

    /// How long a ranged read of `len` bytes may take.
    pub(crate) fn patience(&self, len: u64) -> Duration {
        self.attempt_timeout.saturating_add(Duration::from_secs(len / self.slowest_link.max(1)))
    }
}

/// How the background fetches what nobody asked for yet.
#[derive(Clone, Debug)]
pub struct FillOptions {
    /// Turns it off.
    pub disable: bool,
    /// How long no read may have had to wait, and no layer may have come, before it begins. Default 1 s: a program that starts computes between two reads, and what
    /// it waits for next should not have to share the link. Who reads everything is not kept waiting for it.
    pub silence: Duration,
    /// Between the beginnings of two ranged reads. Default 0: what others wait for goes first in any case.
    pub period: Duration,
    /// Bytes a second at most. Default none.
    pub bytes_per_second: Option<NonZeroU64>,
    /// When everything that a layer misses has failed lately, it is looked at again after this. When its sources fail, after this, too, and twice as long after each further
    /// failure, up to 256 times. Default 1 s.
    pub retry: Duration,
    /// Layers that wait for it at the same time. Default 1024.
    pub max_queue: usize,
    /// What gives way when there are more; it stays lazy, and is added again when it is mounted the next time.
    pub drop: DropPolicy,
}

/// Which layer is not completed when too many are waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPolicy {
    /// The one that comes.
    Newest,
    /// The one that has waited longest.
    Oldest,
}

impl Default for FillOptions {
    fn default() -> Self {
        Self {
            disable: false,
            silence: Duration::from_secs(1),
            period: Duration::ZERO,
            bytes_per_second: None,
            retry: Duration::from_secs(1),
            max_queue: 1024,
            drop: DropPolicy::Newest,
        }
    }
}

/// The kernel's own.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl StoreOptions {
    /// The defaults, with layers below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            root: root.into(),
            max_disk: 0,
            min_free: 256 << 20,
            inflate_threads: cores,
            read_deadline: Duration::from_secs(300),
            attempt_timeout: Duration::from_secs(30),
            slowest_link: 64 << 10,
            first_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            max_retries: None,
            span_attempts: 3,
            max_ranges: None,
            max_fetches: 32,
            max_connections_per_host: 16,
            max_hosts: 1024,
            longest_rest: Duration::from_secs(60),
            max_bytes_in_flight: 16 << 20,
            max_range: 16 << 20,
            max_ahead_while_waiting: 2 << 20,
            max_read_ahead: 16 << 20,
            max_guesses: 4,
            max_streams: 8,
            max_ahead_queue: 256,
            max_rechecks: 2,
            max_tail: 64 << 20,
            max_claims: 16,
            max_start_files: 1024,
            max_start_bytes: 128 << 20,
            max_followed: 4096,
            start_files: Vec::new(),
            likely_files: Vec::new(),
            fill: FillOptions::default(),
            max_span: 256 << 20,
            max_waiters: 4096,
            pooled_buffers: cores.saturating_mul(2).max(8),
            largest_kept_buffer: 1 << 20,
            full_pause: Duration::from_secs(30),
            trim_pause: Duration::from_secs(5),
            release: Duration::from_secs(1),
            lock_timeout: Duration::from_secs(30),
            boot_id: PathBuf::from(BOOT_ID),
        }
    }
}
