//! Our own checksum over what we wrote.

use std::fmt;
use std::io;

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

/// XXH3-128 of some bytes. Finds a torn or rotten file of ours; proves nothing about bytes from outside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checksum([u8; 16]);

impl Checksum {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(xxh3_128(bytes).to_le_bytes())
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

/// A [`Checksum`] of bytes that come in pieces.
pub(crate) struct Summing(Xxh3);

impl Summing {
    pub(crate) fn new() -> Self {
        Self(Xxh3::new())
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> Checksum {
        Checksum(self.0.digest128().to_le_bytes())
    }
}

/// Passes bytes on, and has them summed.
pub(crate) struct Summed<'s, W> {
    pub(crate) to: W,
    pub(crate) sum: &'s mut Summing,
}

impl<W: io::Write> io::Write for Summed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.sum.add(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// XXH3-64, for records that carry their own check.
pub(crate) fn check(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

// === impl Checksum ===

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
