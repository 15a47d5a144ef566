//! A zTOC in memory.

use crate::decode::DecodeError;
use crate::header::{HeaderRange, InvalidToc};
use crate::{Entry, Spans};

/// What one layer's zTOC says: its members, and how to reach their bytes. Its texts are its own, or (`Ztoc<&[u8]>`) borrowed from what it
/// was read from, which takes a third of the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ztoc<T = Vec<u8>> {
    /// `0.9` in every zTOC so far; nobody compares it.
    pub version: T,
    /// Free text of the tool that wrote it, [`crate::BUILD_TOOL`] if that was us.
    pub build_tool: T,
    /// Size of the layer blob in bytes.
    pub compressed_size: u64,
    /// Where the tar reader saw the end of the archive. The uncompressed stream may be longer: record padding is not counted.
    pub uncompressed_size: u64,
    /// The tar's members in archive order, repeated names included.
    pub entries: Vec<Entry<T>>,
    /// The span table.
    pub spans: Spans,
}

impl Ztoc {
    /// Reads a zTOC. Everything in it is checked, so that what comes out cannot surprise; what it takes in memory is bounded by a small
    /// multiple of `bytes`.
    ///
    /// # Errors
    ///
    /// When it is no zTOC, or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        crate::decode::decode(bytes)
    }

    /// The bytes that the Go tools write for this content.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        crate::encode::encode(self)
    }
}

impl<'a> Ztoc<&'a [u8]> {
    /// The same as [`Ztoc::decode`], for who has the bytes for as long as he needs it.
    ///
    /// # Errors
    ///
    /// When it is no zTOC, or contradicts itself.
    pub fn borrow(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        crate::decode::decode(bytes)
    }
}

impl<T: AsRef<[u8]>> Ztoc<T> {
    /// The span size that the builder was asked for, as on the wire: in gzip a threshold that may be zero or negative.
    #[must_use]
    pub fn span_size(&self) -> i64 {
        self.spans.span_size()
    }

    /// Where in the tar each entry's headers are, sorted by offset, by upstream's rule: they begin where the data of the entry before
    /// them, padded to 512, ends.
    ///
    /// # Errors
    ///
    /// When entries overlap, so that no header can be there (sparse files, bodyless members with a size), or lie outside the archive.
    /// Upstream refuses such a zTOC as a whole, and so must everybody who would serve files from it.
    pub fn header_ranges(&self) -> Result<Vec<HeaderRange>, InvalidToc> {
        crate::header::header_ranges(self)
    }
}
