//! How long reads waited.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets for each doubling of the time: an answer is at most an eighth too long.
const STEPS: u64 = 8;
/// From 1 µs to more than an hour.
const BUCKETS: usize = 32 * STEPS as usize;

/// Counts waits by their length: bounded, and written without a lock.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    longest: AtomicU64,
}

/// How long the reads of a layer waited for data, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Reads that waited and were answered, with bytes or with an error.
    pub count: u64,
    /// Half of them waited no longer than this; up to an eighth too long.
    pub p50: Duration,
    /// The same of 99 in 100.
    pub p99: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), longest: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, wait: Duration) {
        let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(micros)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.longest.fetch_max(micros, Ordering::Relaxed);
    }

    pub(crate) fn summary(&self) -> Waits {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let longest = self.longest.load(Ordering::Relaxed);
        let quantile = |percent: u64| {
            let wanted = count.saturating_mul(percent).div_ceil(100);
            let mut seen = 0u64;
            let bucket = counts.iter().position(|count| {
                seen = seen.saturating_add(*count);
                seen >= wanted
            });
            Duration::from_micros(end_of(bucket.unwrap_or(0)).min(longest))
        };
        Waits { count, p50: quantile(50), p99: quantile(99), longest: Duration::from_micros(longest) }
    }
}

/// The first 8 buckets are a microsecond each, then every doubling has 8.
fn bucket_of(micros: u64) -> usize {
    let doublings = micros.checked_ilog2().unwrap_or(0).saturating_sub(STEPS.ilog2());
    let bucket = u64::from(doublings) * STEPS + (micros >> doublings);
    usize::try_from(bucket).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The longest wait of a bucket, in microseconds.
fn end_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doublings = (bucket / STEPS).saturating_sub(1);
    ((bucket - doublings * STEPS + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let mut bucket = 0;
        for micros in 0..100_000 {
            let next = bucket_of(micros);
            assert!(next == bucket || next == bucket + 1, "{micros} µs is in {next} after {bucket}");
            bucket = next;
            assert!(micros <= end_of(bucket) && end_of(bucket) - micros <= micros / 8, "{micros} µs");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_summary_of_a_hundred_waits() {
        let waits = Histogram::new();
        assert_eq!(waits.summary(), Waits::default());
        (1..=100).for_each(|millis| waits.add(Duration::from_millis(millis)));
        let summary = waits.summary();
        assert_eq!((summary.count, summary.longest), (100, Duration::from_millis(100)));
        for (quantile, exact) in [(summary.p50, 50), (summary.p99, 99)] {
            let exact = Duration::from_millis(exact);
            assert!(quantile >= exact && quantile <= exact * 9 / 8, "{quantile:?} for {exact:?}");
        }
    }
}
