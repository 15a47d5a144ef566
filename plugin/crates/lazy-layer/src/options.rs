//! Bounds of the fetch engine.

use std::path::PathBuf;
use std::time::Duration;

/// Where layers live and what they may use. Every queue, cache and wait of this crate has its bound here.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The daemon's root; layers live in `<root>/layers`.
    pub root: PathBuf,
    /// Threads that check digests, inflate and write. Default: the number of cores.
    pub inflate_threads: usize,
    /// How long a read may stay blocked before it fails with [`crate::ReadError::Deadline`]. Default 300 s.
    pub read_deadline: Duration,
    /// How long one ranged read of a source may take, on top of what its bytes need at 64 KiB/s. Default 30 s.
    pub attempt_timeout: Duration,
    /// Longest pause between two tries of the same span; the first pause is 50 ms and doubles. Default 5 s.
    pub max_backoff: Duration,
    /// How often a span whose bytes were wrong (digest, length) is fetched before its readers get the error. Default 3.
    pub span_attempts: u32,
    /// Ranged reads of sources at the same time, over all layers. Default 16.
    pub max_fetches: usize,
    /// Compressed bytes in memory at the same time, over all layers; a span that is larger waits until it is alone. Each inflate
    /// thread needs memory for one inflated span beside it. Default 32 MiB.
    pub max_bytes_in_flight: u64,
    /// Adjacent missing spans of one read are fetched in one range of up to this many compressed bytes. Default 8 MiB.
    pub max_range: u64,
    /// A layer with a span (compressed or inflated) larger than this is refused: a span is inflated in memory. Default 256 MiB.
    pub max_span: u64,
    /// Reads that may wait for one span; one more fails with [`crate::ReadError::Busy`]. Default 4096.
    pub max_waiters: usize,
    /// Idle read buffers kept for the next read. Default: 2 for each core, at least 8.
    pub pooled_buffers: usize,
    /// Longest time that `open_layer`, `create_layer` or `remove_unused` waits for another one working on the same layer. Default 30 s.
    pub lock_timeout: Duration,
    /// File that says which boot of the machine this is. Default `/proc/sys/kernel/random/boot_id`.
    pub boot_id: PathBuf,
}

/// The kernel's own.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl StoreOptions {
    /// The defaults, with layers below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            root: root.into(),
            inflate_threads: cores,
            read_deadline: Duration::from_secs(300),
            attempt_timeout: Duration::from_secs(30),
            max_backoff: Duration::from_secs(5),
            span_attempts: 3,
            max_fetches: 16,
            max_bytes_in_flight: 32 << 20,
            max_range: 8 << 20,
            max_span: 256 << 20,
            max_waiters: 4096,
            pooled_buffers: cores.saturating_mul(2).max(8),
            lock_timeout: Duration::from_secs(30),
            boot_id: PathBuf::from(BOOT_ID),
        }
    }
}
