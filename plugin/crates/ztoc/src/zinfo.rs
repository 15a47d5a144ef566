//! `checkpoints` of the zTOC: the table of contents of the compression, in one of two formats.
//!
//! For gzip it is packed, little-endian, without magic or version:
//!
//! ```text
//! 0   i32  number of checkpoints n, which is the number of spans
//! 4   i64  span size asked for
//! 12  n records: i64 in, i64 out, u8 bits, u8[32768] window
//! ```
//!
//! In version 1, which no released tool writes, record 0 is left out and means in = 10, out = 0, bits = 0 and a window of zeros; the
//! version shows in the length alone. For a plain tar it is a nested flatbuffer with a version, the span size and the blob's size.

use flatbuffers::FlatBufferBuilder;
use planus::ReadAsRoot as _;
use soci_proto::ztoc::TarZinfoRef;
use thiserror::Error;

use crate::{Checkpoint, CompressedOffset, UncompressedOffset};

/// Length of a checkpoint's window: deflate's farthest look back.
pub const WINDOW_LEN: usize = 32 * 1024;

const PREAMBLE_LEN: usize = 12;
const FIXED_LEN: usize = 17;
pub(crate) const RECORD_LEN: usize = FIXED_LEN + WINDOW_LEN;
/// Length of the shortest gzip header, where the implied first checkpoint of version 1 stands.
const PLAIN_GZIP_HEADER_LEN: u64 = 10;
/// The most that deflate expands: 258 bytes out of two bits.
const MAX_EXPANSION: u64 = 258 * 4;
const TAR_ZINFO_VERSION: i32 = 2;

static NO_WINDOW: [u8; WINDOW_LEN] = [0; WINDOW_LEN];

/// Why a span table cannot be used.
#[derive(Debug, Error)]
pub enum ZinfoError {
    /// The gzip zinfo's length fits neither version.
    #[error("zinfo of {len} bytes does not hold {have} checkpoints")]
    Length {
        /// Bytes there are.
        len: usize,
        /// Checkpoints that it claims.
        have: i32,
    },
    /// A plain tar's zinfo is no flatbuffer.
    #[error("zinfo of a plain tar cannot be read")]
    Flatbuffer(#[source] planus::Error),
    /// A plain tar's zinfo has a span size that is not positive.
    #[error("span size {0} of a plain tar")]
    SpanSize(i64),
    /// A plain tar's zinfo is about a blob of another size.
    #[error("zinfo is about {zinfo} bytes, the layer has {layer}")]
    Size {
        /// Size in the zinfo.
        zinfo: i64,
        /// Size in the zTOC.
        layer: u64,
    },
    /// A checkpoint has a negative offset, more than seven bits, or bits before the beginning of the blob.
    #[error("checkpoint {0} is out of range")]
    Checkpoint(usize),
    /// The first span does not start at the beginning of the tar.
    #[error("the first span starts at {0} of the tar")]
    FirstSpan(u64),
    /// A span's compressed bytes are none, or end behind the blob.
    #[error("span {0} has an impossible compressed range")]
    Compressed(usize),
    /// A span decodes to less than nothing, or to more than deflate can pack into its compressed bytes.
    #[error("span {0} has an impossible uncompressed range")]
    Uncompressed(usize),
    /// The number of digests, or the recorded last span, is not that of the spans.
    #[error("{digests} digests for {spans} spans")]
    Digests {
        /// Spans in the zinfo.
        spans: usize,
        /// Digests in the zTOC.
        digests: usize,
    },
    /// More spans than their numbers can count.
    #[error("{0} spans are too many")]
    TooMany(u64),
}

/// Either format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Zinfo {
    Gzip(GzipZinfo),
    Tar(TarZinfo),
}

impl Zinfo {
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Gzip(zinfo) => zinfo.rows.len(),
            Self::Tar(zinfo) => zinfo.count,
        }
    }

    /// Compressed and uncompressed start of a span.
    pub(crate) fn start(&self, index: usize) -> Option<(u64, u64)> {
        match self {
            Self::Gzip(zinfo) => zinfo.rows.get(index).map(|row| (row.compressed_start(), row.out)),
            Self::Tar(zinfo) => zinfo.start(index).map(|start| (start, start)),
        }
    }

    /// Where a span ends, compressed and uncompressed, unless it is the last.
    pub(crate) fn next_start(&self, index: usize) -> Option<(u64, u64)> {
        let next = index.checked_add(1)?;
        match self {
            // The next span may begin in the middle of the byte before `in`: that byte belongs to both.
            Self::Gzip(zinfo) => zinfo.rows.get(next).map(|row| (row.in_, row.out)),
            Self::Tar(zinfo) => zinfo.start(next).map(|start| (start, start)),
        }
    }

    /// The span of a tar offset, not clamped. Of several spans that start at the same offset the last one holds the byte.
    pub(crate) fn index_of(&self, offset: u64) -> usize {
        match self {
            Self::Gzip(zinfo) => zinfo.rows.partition_point(|row| row.out <= offset).saturating_sub(1),
            Self::Tar(zinfo) => {
                usize::try_from(offset.checked_div(zinfo.span_size).unwrap_or(0)).unwrap_or(usize::MAX)
            }
        }
    }

    pub(crate) fn span_size(&self) -> i64 {
        match self {
            Self::Gzip(zinfo) => zinfo.span_size,
            Self::Tar(zinfo) => zinfo.span_size.try_into().unwrap_or(i64::MAX),
        }
    }

    /// That every span has compressed bytes inside the blob and decodes to a length that these bytes can hold.
    pub(crate) fn check(&self, compressed_size: u64, uncompressed_size: u64) -> Result<(), ZinfoError> {
        match self {
            Self::Gzip(zinfo) => zinfo.check(compressed_size, uncompressed_size),
            Self::Tar(zinfo) if zinfo.size != compressed_size => Err(ZinfoError::Size {
                zinfo: zinfo.size.try_into().unwrap_or(i64::MAX),
                layer: compressed_size,
            }),
            Self::Tar(zinfo) if uncompressed_size > zinfo.size => {
                Err(ZinfoError::Uncompressed(zinfo.count.saturating_sub(1)))
            }
            Self::Tar(_) => Ok(()),
        }
    }

    /// As on the wire.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Gzip(zinfo) => &zinfo.bytes,
            Self::Tar(zinfo) => &zinfo.bytes,
        }
    }
}

/// Checkpoints of a gzip stream.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct GzipZinfo {
    span_size: i64,
    rows: Vec<Row>,
    /// The zinfo as on the wire, of either version: the windows stay where they are.
    bytes: Vec<u8>,
    /// Rows that have no record in `bytes`: 0, or 1 in version 1.
    implied: usize,
}

impl std::fmt::Debug for GzipZinfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GzipZinfo")
            .field("span_size", &self.span_size)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

/// A checkpoint without its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) in_: u64,
    pub(crate) out: u64,
    pub(crate) bits: u8,
}

impl Row {
    pub(crate) fn compressed_start(self) -> u64 {
        self.in_.saturating_sub(u64::from(self.bits != 0))
    }
}

impl GzipZinfo {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ZinfoError> {
        let (have, rest) =
            bytes.split_first_chunk().ok_or(ZinfoError::Length { len: bytes.len(), have: 0 })?;
        let have = i32::from_le_bytes(*have);
        let wrong_length = || ZinfoError::Length { len: bytes.len(), have };
        let (span_size, records) = rest.split_first_chunk().ok_or_else(wrong_length)?;
        let count = usize::try_from(have).ok().filter(|&count| count > 0).ok_or_else(wrong_length)?;
        let implied = match count.checked_sub(records.len() / RECORD_LEN) {
            Some(implied @ (0 | 1)) if records.len().is_multiple_of(RECORD_LEN) => implied,
            _ => return Err(wrong_length()),
        };
        let mut rows = Vec::with_capacity(count);
        if implied == 1 {
            rows.push(Row { in_: PLAIN_GZIP_HEADER_LEN, out: 0, bits: 0 });
        }
        for record in records.chunks_exact(RECORD_LEN) {
            let row = read_row(record).ok_or(ZinfoError::Checkpoint(rows.len()))?;
            rows.push(row);
        }
        Ok(Self { span_size: i64::from_le_bytes(*span_size), rows, bytes: bytes.to_vec(), implied })
    }

    pub(crate) fn checkpoint(&self, index: usize) -> Option<Checkpoint<'_>> {
        let row = self.rows.get(index)?;
        let window = match index.checked_sub(self.implied) {
            None => &NO_WINDOW,
            Some(record) => {
                let start = record.checked_mul(RECORD_LEN)?.checked_add(PREAMBLE_LEN + FIXED_LEN)?;
                self.bytes.get(start..)?.first_chunk()?
            }
        };
        Some(Checkpoint {
            in_: CompressedOffset(row.in_),
            out: UncompressedOffset(row.out),
            bits: row.bits,
            window,
        })
    }

    fn check(&self, compressed_size: u64, uncompressed_size: u64) -> Result<(), ZinfoError> {
        if let Some(first) = self.rows.first().filter(|row| row.out != 0) {
            return Err(ZinfoError::FirstSpan(first.out));
        }
        for (index, row) in self.rows.iter().enumerate() {
            let (compressed_end, end, is_last) = match self.rows.get(index + 1) {
                Some(next) => (next.in_, next.out, false),
                None => (compressed_size, uncompressed_size, true),
            };
            let compressed = compressed_end.checked_sub(row.compressed_start()).filter(|&len| len > 0);
            let compressed = match compressed {
                Some(compressed) if compressed_end <= compressed_size => compressed,
                _ => return Err(ZinfoError::Compressed(index)),
            };
            match end.checked_sub(row.out) {
                Some(len) if len <= compressed.saturating_mul(MAX_EXPANSION) => {}
                None if is_last => {}
                _ => return Err(ZinfoError::Uncompressed(index)),
            }
        }
        Ok(())
    }
}

fn read_row(record: &[u8]) -> Option<Row> {
    let (in_, rest) = record.split_first_chunk()?;
    let (out, rest) = rest.split_first_chunk()?;
    let row = Row {
        in_: u64::try_from(i64::from_le_bytes(*in_)).ok()?,
        out: u64::try_from(i64::from_le_bytes(*out)).ok()?,
        bits: *rest.first()?,
    };
    (row.bits < 8 && (row.bits == 0 || row.in_ > 0)).then_some(row)
}

/// Collects checkpoints in stream order.
pub(crate) struct GzipZinfoWriter {
    span_size: i64,
    rows: Vec<Row>,
    bytes: Vec<u8>,
}

impl GzipZinfoWriter {
    pub(crate) fn new(span_size: i64) -> Self {
        Self { span_size, rows: Vec::new(), bytes: vec![0; PREAMBLE_LEN] }
    }

    /// `window` is what comes before `row.out`, at most [`WINDOW_LEN`] bytes; zeros fill up the front.
    pub(crate) fn push(&mut self, row: Row, window: &[u8]) {
        self.rows.push(row);
        self.bytes.extend_from_slice(&row.in_.to_le_bytes());
        self.bytes.extend_from_slice(&row.out.to_le_bytes());
        self.bytes.push(row.bits);
        let padding = NO_WINDOW.get(window.len()..).unwrap_or_default();
        self.bytes.extend_from_slice(padding);
        self.bytes.extend_from_slice(window);
    }

    pub(crate) fn last(&self) -> Option<Row> {
        self.rows.last().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn finish(self) -> Result<GzipZinfo, ZinfoError> {
        let Self { span_size, rows, mut bytes } = self;
        let have = i32::try_from(rows.len()).map_err(|_| ZinfoError::TooMany(rows.len() as u64))?;
        let preamble = have.to_le_bytes().into_iter().chain(span_size.to_le_bytes());
        bytes.iter_mut().zip(preamble).for_each(|(to, from)| *to = from);
        Ok(GzipZinfo { span_size, rows, bytes, implied: 0 })
    }
}

/// Spans of a plain tar, all of one size but the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TarZinfo {
    span_size: u64,
    size: u64,
    count: usize,
    /// The zinfo as on the wire.
    bytes: Vec<u8>,
}

impl TarZinfo {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ZinfoError> {
        let zinfo = TarZinfoRef::read_as_root(bytes).map_err(ZinfoError::Flatbuffer)?;
        // Nobody compares the version, upstream included.
        let span_size = zinfo.span_size().map_err(ZinfoError::Flatbuffer)?;
        let size = zinfo.size().map_err(ZinfoError::Flatbuffer)?;
        Self::checked(span_size, size, bytes.to_vec())
    }

    pub(crate) fn new(span_size: i64, size: i64) -> Result<Self, ZinfoError> {
        let mut builder = FlatBufferBuilder::new();
        let table = builder.start_table();
        builder.push_slot(crate::encode::slot(0), TAR_ZINFO_VERSION, 0);
        builder.push_slot(crate::encode::slot(1), span_size, 0);
        builder.push_slot(crate::encode::slot(2), size, 0);
        let table = builder.end_table(table);
        builder.finish_minimal(table);
        Self::checked(span_size, size, builder.finished_data().to_vec())
    }

    fn checked(span_size: i64, size: i64, bytes: Vec<u8>) -> Result<Self, ZinfoError> {
        let positive = |number: i64| u64::try_from(number).ok().filter(|&number| number > 0);
        let span = positive(span_size).ok_or(ZinfoError::SpanSize(span_size))?;
        let size = positive(size).ok_or(ZinfoError::Size { zinfo: size, layer: 0 })?;
        let count = size.div_ceil(span);
        let count = i32::try_from(count)
            .ok()
            .and_then(|count| usize::try_from(count).ok())
            .ok_or(ZinfoError::TooMany(count))?;
        Ok(Self { span_size: span, size, count, bytes })
    }

    fn start(&self, index: usize) -> Option<u64> {
        (index < self.count).then_some(())?;
        u64::try_from(index).ok()?.checked_mul(self.span_size)
    }
}
