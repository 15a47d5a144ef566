//! The span table: how the layer blob is cut into pieces that can be fetched, checked and decoded on their own.

use std::ops::{Range, RangeInclusive};

use crate::zinfo::{WINDOW_LEN, Zinfo, ZinfoError};
use crate::{CompressedOffset, SpanDigest, SpanId, UncompressedOffset};

/// How the layer blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// gzip, of one member or several.
    Gzip,
    /// A plain tar: compressed and uncompressed offsets coincide.
    Uncompressed,
}

/// One span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its number.
    pub id: SpanId,
    /// The bytes of the blob to fetch, never empty. In gzip a span may begin with the byte that its predecessor ends with: a deflate
    /// block need not begin on a byte. The bytes before span 0 (the gzip header) belong to no span.
    pub compressed: Range<CompressedOffset>,
    /// What it decodes to. The end of the last one is the end of the archive as the tar reader saw it, so it **may be at or before the
    /// start**: the span then holds nothing but padding. Otherwise end ≥ start.
    pub uncompressed: Range<UncompressedOffset>,
    /// SHA-256 of exactly the bytes of [`Span::compressed`].
    pub digest: SpanDigest,
}

impl Span {
    /// Bytes that any entry can need from this span: the length of [`Span::uncompressed`], or 0 where its end is before its start.
    #[must_use]
    pub fn uncompressed_len(&self) -> u64 {
        self.uncompressed.end.0.saturating_sub(self.uncompressed.start.0)
    }

    /// Length of [`Span::compressed`].
    #[must_use]
    pub fn compressed_len(&self) -> u64 {
        self.compressed.end.0.saturating_sub(self.compressed.start.0)
    }
}

/// Where in a gzip stream decoding can begin.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint<'a> {
    /// The first byte that lies entirely after the block's first bit.
    pub in_: CompressedOffset,
    /// The tar position that decoding yields first.
    pub out: UncompressedOffset,
    /// How many high bits of the byte before `in_` belong to the block, 0..=7.
    pub bits: u8,
    /// The 32 KiB of tar before `out`, zeros in front of the tar's beginning.
    pub window: &'a [u8; WINDOW_LEN],
}

/// The span table of one layer, checked: every question about it has an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans {
    zinfo: Zinfo,
    compressed_size: u64,
    uncompressed_size: u64,
    digests: Vec<SpanDigest>,
}

impl Spans {
    pub(crate) fn new(
        zinfo: Zinfo,
        compressed_size: u64,
        uncompressed_size: u64,
        digests: Vec<SpanDigest>,
    ) -> Result<Self, ZinfoError> {
        zinfo.check(compressed_size, uncompressed_size)?;
        if digests.len() != zinfo.count() {
            return Err(ZinfoError::Digests { spans: zinfo.count(), digests: digests.len() });
        }
        Ok(Self { zinfo, compressed_size, uncompressed_size, digests })
    }

    /// How many there are: at least 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.digests.len()).unwrap_or(u32::MAX)
    }

    /// How the blob is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        match self.zinfo {
            Zinfo::Gzip(_) => Compression::Gzip,
            Zinfo::Tar(_) => Compression::Uncompressed,
        }
    }

    /// The span with this number.
    #[must_use]
    pub fn span(&self, id: SpanId) -> Option<Span> {
        let index = usize::try_from(id.0).ok()?;
        let digest = *self.digests.get(index)?;
        let (compressed_start, start) = self.zinfo.start(index)?;
        let (compressed_end, end) = match self.zinfo.next_start(index) {
            Some(next) => next,
            None => (self.compressed_size, self.uncompressed_size),
        };
        Some(Span {
            id,
            compressed: CompressedOffset(compressed_start)..CompressedOffset(compressed_end),
            uncompressed: UncompressedOffset(start)..UncompressedOffset(end),
            digest,
        })
    }

    /// All spans in stream order.
    pub fn iter(&self) -> impl Iterator<Item = Span> {
        (0..self.count()).filter_map(|id| self.span(SpanId(id)))
    }

    /// The span that holds the tar byte at `offset`; the last one for anything behind the end.
    #[must_use]
    pub fn at(&self, offset: UncompressedOffset) -> SpanId {
        let last = self.digests.len().saturating_sub(1);
        let index = self.zinfo.index_of(offset.0).min(last);
        SpanId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// The spans that together hold `range`, both ends clamped to the last span. An empty range needs the span of its start.
    #[must_use]
    pub fn covering(&self, range: Range<UncompressedOffset>) -> RangeInclusive<SpanId> {
        let first = self.at(range.start);
        let last = self.at(UncompressedOffset(range.end.0.saturating_sub(1)));
        first..=last.max(first)
    }

    /// Where decoding of a gzip span begins; `None` for a plain tar, and for a number that no span has.
    #[must_use]
    pub fn checkpoint(&self, id: SpanId) -> Option<Checkpoint<'_>> {
        match &self.zinfo {
            Zinfo::Gzip(zinfo) => zinfo.checkpoint(usize::try_from(id.0).ok()?),
            Zinfo::Tar(_) => None,
        }
    }

    /// The span size that the builder was asked for, as on the wire: in gzip a threshold that may be zero or negative.
    #[must_use]
    pub fn span_size(&self) -> i64 {
        self.zinfo.span_size()
    }

    pub(crate) fn zinfo(&self) -> &Zinfo {
        &self.zinfo
    }
}
