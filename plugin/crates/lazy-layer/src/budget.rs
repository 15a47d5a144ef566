//! How much of the disk layer files may take.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::options::StoreOptions;

/// A trim makes room for more than what was asked for, so that the next span does not ask again: this part of the limit.
const HEADROOM: u64 = 16;

/// The disk that layer files have taken, and what they may.
///
/// Counted from what is written; a span that is written a second time counts twice until [`Budget::measured`] says how it is.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Bytes that all layers may take. 0: any number.
    max: u64,
    /// Bytes of the file system that are left to others.
    min_free: u64,
    /// The directory of the layers.
    place: File,
    used: AtomicU64,
    shortage: Notify,
}

// === impl Budget ===

impl Budget {
    /// The budget of the layers in a directory, which take `used` bytes now.
    pub(crate) fn open(place: &Path, options: &StoreOptions, used: u64) -> io::Result<Self> {
        Ok(Self {
            max: options.max_disk,
            min_free: options.min_free,
            place: File::open(place)?,
            used: AtomicU64::new(used),
            shortage: Notify::new(),
        })
    }

    /// Takes room for bytes that are about to be written. Where there is none, they must not be, and room is looked for.
    ///
    /// Asks the file system each time, which takes about a microsecond.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let fits = (self.max == 0 || used <= self.max)
            && self.free().is_none_or(|free| free.saturating_sub(bytes) >= self.min_free);
        if !fits {
            self.give_back(bytes);
            self.shortage.notify_one();
        }
        fits
    }

    /// Bytes were written that nobody could be asked about, a layer's metadata.
    pub(crate) fn spent(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes are free again.
    pub(crate) fn give_back(&self, bytes: u64) {
        // What was counted twice may make it more than there was.
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }

    /// So many bytes are taken, by the file system's own account.
    pub(crate) fn measured(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    /// Bytes that should go, so that there is room for a while.
    pub(crate) fn excess(&self) -> u64 {
        let used = self.used.load(Ordering::Relaxed);
        let over =
            if self.max == 0 { 0 } else { used.saturating_add(self.max / HEADROOM).saturating_sub(self.max) };
        let wanted = self.min_free.saturating_add(self.min_free / HEADROOM);
        over.max(self.free().map_or(0, |free| wanted.saturating_sub(free)))
    }

    /// Waits until somebody found no room.
    pub(crate) async fn shortage(&self) {
        self.shortage.notified().await;
    }

    /// Bytes of the file system that are free for whoever writes. None if it does not say.
    fn free(&self) -> Option<u64> {
        if self.min_free == 0 {
            return None;
        }
        let found = rustix::fs::fstatvfs(&self.place).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(max: u64, min_free: u64, used: u64) -> Budget {
        let place = std::env::temp_dir();
        let options = StoreOptions { max_disk: max, min_free, ..StoreOptions::new(&place) };
        Budget::open(&place, &options, used).unwrap()
    }

    #[test]
    fn what_is_refused_is_not_counted() {
        let budget = budget(100, 0, 90);
        assert!(budget.take(10));
        assert!(!budget.take(1));
        assert_eq!(budget.excess(), 100 / HEADROOM);
        budget.give_back(50);
        assert_eq!(budget.excess(), 0);
        assert!(budget.take(50));
        assert!(!budget.take(1));
        budget.measured(20);
        assert!(budget.take(80));
    }

    #[test]
    fn others_keep_their_room() {
        assert!(budget(0, 0, u64::MAX - 5).take(5), "no limit at all");
        let greedy = budget(0, u64::MAX, 0);
        assert!(!greedy.take(1));
        assert!(greedy.excess() > 0);
    }
}
