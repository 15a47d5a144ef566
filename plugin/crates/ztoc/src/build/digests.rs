//! SHA-256 of every span as its bytes go by.

use sha2::{Digest as _, Sha256};

use crate::SpanDigest;

/// Hashes spans one after the other. What comes before the first one belongs to none.
#[derive(Debug, Default)]
pub(super) struct SpanHasher {
    current: Option<Sha256>,
    done: Vec<SpanDigest>,
}

impl SpanHasher {
    /// Ends the span under way and begins the next one, with the byte that both share if there is one.
    pub(super) fn begin(&mut self, shared: Option<u8>) {
        self.end();
        let mut hash = Sha256::new();
        if let Some(byte) = shared {
            hash.update([byte]);
        }
        self.current = Some(hash);
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(hash) = &mut self.current {
            hash.update(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(hash) = self.current.take() {
            self.done.push(SpanDigest(hash.finalize().into()));
        }
    }

    /// How many spans have begun.
    pub(super) fn len(&self) -> usize {
        self.done.len().saturating_add(usize::from(self.current.is_some()))
    }

    pub(super) fn finish(mut self) -> Vec<SpanDigest> {
        self.end();
        self.done
    }
}
