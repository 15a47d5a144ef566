//! Bytes on their way to a writer.

use std::io;

/// See the module.
pub(super) struct Output<W> {
    to: W,
    buffer: Vec<u8>,
    /// How many bytes came before those in the buffer.
    before: u64,
}

impl<W: io::Write> Output<W> {
    /// To a writer that is to get about so many bytes at a time.
    pub(super) fn new(to: W, piece: usize) -> Self {
        Output { to, buffer: Vec::with_capacity(piece.saturating_mul(2)), before: 0 }
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.before + self.buffer.len() as u64
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Zeros up to a position; none if that is passed already.
    pub(super) fn pad(&mut self, to: u64) {
        let more = to.saturating_sub(self.position());
        // No more than a block of a file that was counted before; what is no usize is none of those.
        let length = self.buffer.len().saturating_add(usize::try_from(more).unwrap_or(0));
        self.buffer.resize(length, 0);
    }

    /// Passes on what is there, if that is at least so much.
    pub(super) fn drain(&mut self, least: usize) -> io::Result<()> {
        if self.buffer.len() >= least {
            self.to.write_all(&self.buffer)?;
            self.before += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}
