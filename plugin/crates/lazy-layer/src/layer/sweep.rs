//! Whether who reads a layer reads all that he comes past.
//!
//! A program that starts reads a part of each span that it needs (with four images, between a twentieth and half of all spans it came past), and computes
//! between two reads: the background keeps out of its way for a while after each. Who copies or searches an image reads everything (`tar`: 93 bytes in 100, the rest
//! being headers). What the background brings is what he needs next, so it begins at once, and where he is.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the tar that have been come past before anything is said of it.
const ENOUGH: u64 = 24 << 20;
/// So much of that was read, in hundredths. The rest are headers, padding, and what of the last spans is still to be read.
const NEARLY_ALL: u64 = 70;

/// What was read of a layer since it was opened, and how much there was to read. Written without a lock.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    read: AtomicU64,
    /// Bytes of the spans of which anything was read.
    passed: AtomicU64,
}

impl Sweep {
    /// So many bytes are read.
    pub(crate) fn reads(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The first byte of a span with so many is read.
    pub(crate) fn passes(&self, bytes: u64) {
        self.passed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether nearly all that was come past was read.
    pub(crate) fn is_thorough(&self) -> bool {
        let (read, passed) = (self.read.load(Ordering::Relaxed), self.passed.load(Ordering::Relaxed));
        passed >= ENOUGH && read.saturating_mul(100) >= passed.saturating_mul(NEARLY_ALL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: u64 = 4 << 20;

    /// A reader of so many spans, and of so much of each.
    fn reader(spans: u64, hundredths: u64) -> Sweep {
        let sweep = Sweep::default();
        for _ in 0..spans {
            sweep.passes(SPAN);
            sweep.reads(SPAN / 100 * hundredths);
        }
        sweep
    }

    #[test]
    fn who_reads_everything_is_seen_after_a_while() {
        assert!(!reader(5, 95).is_thorough());
        assert!(reader(6, 95).is_thorough() && reader(200, 80).is_thorough());
    }

    #[test]
    fn who_reads_a_part_of_each_is_not() {
        assert!(!reader(200, 60).is_thorough());
    }
}
