//! Buffers that reads are answered from.

use crossbeam_channel::{Receiver, Sender};

/// Idle buffers, handed out without a lock. A buffer that finds the pool full is freed.
#[derive(Debug)]
pub(crate) struct Buffers {
    give: Sender<Vec<u8>>,
    take: Receiver<Vec<u8>>,
}

/// A larger buffer is freed after use: the kernel asks for up to 1 MiB.
const LARGEST_KEPT: usize = 1 << 20;

impl Buffers {
    /// A pool that keeps up to `limit` idle buffers.
    pub(crate) fn new(limit: usize) -> Self {
        let (give, take) = crossbeam_channel::bounded(limit);
        Self { give, take }
    }

    /// Calls `use_it` with a buffer of `len` bytes of any content.
    pub(crate) fn with<T>(&self, len: usize, use_it: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = self.take.try_recv().unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let result = use_it(buffer.get_mut(..len).unwrap_or_default());
        if buffer.len() <= LARGEST_KEPT {
            // A full pool just means that this one is not needed.
            let _ = self.give.try_send(buffer);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_no_more_than_its_limit() {
        let buffers = Buffers::new(1);
        buffers.with(10, |outer| {
            assert_eq!(outer.len(), 10);
            buffers.with(20, |inner| assert_eq!(inner.len(), 20));
        });
        assert_eq!(buffers.take.len(), 1);
        buffers.with(LARGEST_KEPT + 1, |large| assert_eq!(large.len(), LARGEST_KEPT + 1));
        assert_eq!(buffers.take.len(), 0, "a huge buffer is not kept");
    }
}
