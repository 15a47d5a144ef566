//! stub
use crate::{Entry, UncompressedOffset};
use thiserror::Error;

/// Why bytes are no tar that a TOC can describe. `offset` is where the header begins.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TarError {
    /// No valid header where one must be.
    #[error("invalid tar header at {offset}")]
    Header {
        /// Where.
        offset: UncompressedOffset,
    },
    /// The extension header of a member is longer than 1 MiB.
    #[error("extension header at {offset} is too long")]
    HeaderTooLong {
        /// Where.
        offset: UncompressedOffset,
    },
    /// The stream ends inside a header or a member's data.
    #[error("tar is cut off at {offset}")]
    Truncated {
        /// Where it ends.
        offset: UncompressedOffset,
    },
    /// A type flag that no TOC can have.
    #[error("unsupported tar entry of type {typeflag:#04x} at {offset}")]
    Unsupported {
        /// The type flag.
        typeflag: u8,
        /// Where.
        offset: UncompressedOffset,
    },
    /// A sparse file, in any of GNU's formats.
    #[error("sparse file at {offset}")]
    Sparse {
        /// Where.
        offset: UncompressedOffset,
    },
}

/// A member that the scanner has met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedEntry {
    /// Where the first of its headers begins, extension headers included.
    pub header_offset: UncompressedOffset,
    /// The member; [`Entry::data_offset`] is where its headers end.
    pub entry: Entry,
}

/// Reads tar headers out of a stream that is pushed in.
#[derive(Debug, Default)]
pub struct TarScanner {}

impl TarScanner {
    /// At the beginning of a tar.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// At `offset` of a tar, where a header begins.
    #[must_use]
    pub fn at(_offset: UncompressedOffset) -> Self {
        Self::default()
    }

    /// Takes the next bytes, any number of them, and calls `on_entry` for each member when its headers are complete. What follows the
    /// end of the archive is ignored.
    ///
    /// # Errors
    ///
    /// When this is no tar that a TOC can describe; nothing more can be pushed then.
    pub fn push(&mut self, _bytes: &[u8], _on_entry: &mut dyn FnMut(ScannedEntry)) -> Result<(), TarError> {
        Ok(())
    }

    /// The stream ends here: returns where the archive does, its end blocks included.
    ///
    /// # Errors
    ///
    /// When the stream ends inside a header or a member's data.
    pub fn finish(self) -> Result<UncompressedOffset, TarError> {
        Ok(UncompressedOffset(0))
    }
}
