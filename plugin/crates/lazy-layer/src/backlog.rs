//! Compressed bytes that wait for the pool.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// How many there are; transfers take no more from the network while there are too many.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: AtomicU64,
    less: Notify,
}

impl Backlog {
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
            self.less.notify_waiters();
        }
    }

    /// Waits until there are fewer than `limit`.
    pub(crate) async fn wait(&self, limit: u64) {
        while self.bytes.load(Ordering::Relaxed) >= limit {
            let mut less = std::pin::pin!(self.less.notified());
            // From here on no notice is missed.
            less.as_mut().enable();
            if self.bytes.load(Ordering::Relaxed) < limit {
                return;
            }
            less.await;
        }
    }
}
