//! Buffers that reads are answered from.

use crossbeam_channel::{Receiver, Sender};

/// Idle buffers, handed out without a lock. A buffer that finds the pool full is freed.
#[derive(Debug)]
pub(crate) struct Buffers {
    give: Sender<Vec<u8>>,
    take: Receiver<Vec<u8>>,
    largest: usize,
}

impl Buffers {
    /// A pool that keeps up to `limit` idle buffers of up to `largest` bytes.
    pub(crate) fn new(limit: usize, largest: usize) -> Self {
        let (give, take) = crossbeam_channel::bounded(limit);
        Self { give, take, largest }
    }

    /// Calls `use_it` with a buffer of `len` bytes of any content.
    pub(crate) fn with<T>(&self, len: usize, use_it: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = self.take.try_recv().unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let result = use_it(buffer.get_mut(..len).unwrap_or_default());
        if buffer.len() <= self.largest {
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
        let buffers = Buffers::new(1, 100);
        buffers.with(10, |outer| {
            assert_eq!(outer.len(), 10);
            buffers.with(20, |inner| assert_eq!(inner.len(), 20));
        });
        assert_eq!(buffers.take.len(), 1);
        buffers.with(101, |large| assert_eq!(large.len(), 101));
        assert_eq!(buffers.take.len(), 0, "a huge buffer is not kept");
    }
}
