//! A zTOC in memory.

use crate::decode::{DecodeError, ZtocView};
use crate::header::{self, HeaderRange, InvalidToc};
use crate::{Entry, Spans};

/// What one layer's zTOC says: its members, and how to reach their bytes. Whoever only reads it needs less memory with a [`ZtocView`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ztoc {
    /// `0.9` in every zTOC so far; nobody compares it.
    pub version: Vec<u8>,
    /// Free text of the tool that wrote it, [`crate::BUILD_TOOL`] if that was us.
    pub build_tool: Vec<u8>,
    /// Size of the layer blob in bytes.
    pub compressed_size: u64,
    /// Where the tar reader saw the end of the archive. The uncompressed stream may be longer: record padding is not counted.
    pub uncompressed_size: u64,
    /// The tar's members in archive order, repeated names included.
    pub entries: Vec<Entry>,
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
        let view = ZtocView::of(bytes)?;
        let entries = view.entries().map(|entry| entry.map(Entry::into_owned));
        Ok(Self {
            version: view.version.to_vec(),
            build_tool: view.build_tool.to_vec(),
            compressed_size: view.compressed_size,
            uncompressed_size: view.uncompressed_size,
            entries: entries.collect::<Result<_, _>>()?,
            spans: view.spans,
        })
    }

    /// The bytes that the Go tools write for this content.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        crate::encode::encode(self)
    }

    /// The span size that the builder was asked for, as on the wire: in gzip a threshold that may be zero or negative.
    #[must_use]
    pub fn span_size(&self) -> i64 {
        self.spans.span_size()
    }

    /// Where in the tar each entry's headers are; see [`header_ranges`](crate::header_ranges).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn header_ranges(&self) -> Result<Vec<HeaderRange>, InvalidToc> {
        let places: Vec<_> = self.entries.iter().map(Entry::place).collect();
        header::header_ranges(&places, self.uncompressed_size)
    }
}
