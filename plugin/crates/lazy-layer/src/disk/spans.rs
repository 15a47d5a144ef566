//! `spans`: where each span lies, and what proves it.
//!
//! 16 bytes of head (magic, version, number of rows), then one row of 96 bytes for each span:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 8, 8 | compressed range in the blob, end exclusive; neighbours may share one byte |
//! | 16 | 8, 8 | range in the tar; may be empty |
//! | 32 | 32 | SHA-256 of the compressed range |
//! | 64 | 16 | checksum of the span's window in `windows` |
//! | 80 | 1 | bits of the first compressed byte that belong to the span (0: the whole byte) |
//! | 81 | 15 | 0 |

use std::ops::{Range, RangeInclusive};

use super::bytes::{array, u32_at, u64_at};
use super::checksum::Checksum;
use super::{Damaged, name};

const MAGIC: [u8; 8] = *b"SOCISPAN";
const VERSION: u32 = 1;
const HEAD: usize = 16;
const ROW: usize = 96;

/// One span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpanRow {
    /// Bytes of the blob.
    pub(crate) compressed: Range<u64>,
    /// Bytes of the tar; never decreasing, the first begins at 0, each where the one before ends.
    pub(crate) tar: Range<u64>,
    /// SHA-256 of the compressed bytes.
    pub(crate) digest: [u8; 32],
    /// Checksum of the span's window.
    pub(crate) window: Checksum,
    /// Bits of the checkpoint, 0 to 7.
    pub(crate) bits: u8,
}

impl SpanRow {
    pub(crate) fn compressed_len(&self) -> u64 {
        self.compressed.end.saturating_sub(self.compressed.start)
    }

    pub(crate) fn tar_len(&self) -> u64 {
        self.tar.end.saturating_sub(self.tar.start)
    }
}

/// All spans of a layer, in order; at least one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SpanRows(Vec<SpanRow>);

impl SpanRows {
    /// Checks that the rows tile the tar and lie in the blob; the number of the offending row and the reason if not.
    pub(crate) fn new(
        rows: Vec<SpanRow>,
        compressed_size: u64,
        tar_size: u64,
    ) -> Result<Self, (usize, &'static str)> {
        let mut tar = 0;
        let mut previous: Option<&SpanRow> = None;
        for (at, row) in rows.iter().enumerate() {
            if row.tar.start != tar || row.tar.end < row.tar.start {
                return Err((at, "its uncompressed range does not follow the one before"));
            }
            if row.compressed.start >= row.compressed.end || row.compressed.end > compressed_size {
                return Err((at, "its compressed range is empty or outside the layer"));
            }
            if row.bits > 7 {
                return Err((at, "more than 7 bits"));
            }
            if let Some(previous) = previous {
                let shared = previous.compressed.end.checked_sub(row.compressed.start);
                if !matches!(shared, Some(0 | 1)) {
                    return Err((at, "its compressed range does not follow the one before"));
                }
            }
            tar = row.tar.end;
            previous = Some(row);
        }
        if rows.is_empty() {
            return Err((0, "there are no spans"));
        }
        if tar != tar_size {
            return Err((rows.len().saturating_sub(1), "the spans do not cover the layer"));
        }
        Ok(Self(rows))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get(&self, span: usize) -> Option<&SpanRow> {
        self.0.get(span)
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, SpanRow> {
        self.0.iter()
    }

    /// The spans that hold the bytes of a range of the tar, which must not be empty; clamped to the spans there are.
    pub(crate) fn covering(&self, range: &Range<u64>) -> RangeInclusive<usize> {
        let first = self.at(range.start);
        let last = self.at(range.end.saturating_sub(1)).max(first);
        first..=last
    }

    /// The last span that begins at or before `offset`. Of several that begin at the same place only the last can hold bytes.
    fn at(&self, offset: u64) -> usize {
        self.0.partition_point(|row| row.tar.start <= offset).saturating_sub(1)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + ROW * self.0.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.0.len() as u32).to_le_bytes());
        for row in &self.0 {
            for number in [row.compressed.start, row.compressed.end, row.tar.start, row.tar.end] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&row.digest);
            out.extend_from_slice(&row.window.to_bytes());
            out.push(row.bits);
            out.extend_from_slice(&[0; 15]);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8], compressed_size: u64, tar_size: u64) -> Result<Self, Damaged> {
        let damaged = |reason| Damaged { file: name::SPANS, reason };
        let (head, body) = bytes.split_at_checked(HEAD).ok_or(damaged("too short"))?;
        let count = u32_at(head, 12).and_then(|n| usize::try_from(n).ok());
        let rows = body.chunks_exact(ROW);
        if array(head, 0) != Some(MAGIC) || u32_at(head, 8) != Some(VERSION) {
            return Err(damaged("not a span table of this version"));
        }
        if count != Some(rows.len()) || !rows.remainder().is_empty() {
            return Err(damaged("wrong length"));
        }
        let rows: Option<Vec<SpanRow>> = rows.map(decode_row).collect();
        Self::new(rows.ok_or(damaged("wrong length"))?, compressed_size, tar_size)
            .map_err(|(_, reason)| damaged(reason))
    }
}

fn decode_row(row: &[u8]) -> Option<SpanRow> {
    Some(SpanRow {
        compressed: u64_at(row, 0)?..u64_at(row, 8)?,
        tar: u64_at(row, 16)?..u64_at(row, 24)?,
        digest: array(row, 32)?,
        window: Checksum::from_bytes(array(row, 64)?),
        bits: *row.get(80)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(compressed: Range<u64>, tar: Range<u64>) -> SpanRow {
        SpanRow { compressed, tar, digest: [7; 32], window: Checksum::of(b""), bits: 3 }
    }

    #[test]
    fn comes_back_and_finds_offsets() {
        let rows = vec![row(10..20, 0..0), row(19..30, 0..100), row(30..41, 100..150), row(40..50, 150..150)];
        let table = SpanRows::new(rows, 50, 150).unwrap();
        assert_eq!(SpanRows::decode(&table.encode(), 50, 150).unwrap(), table);
        assert_eq!(table.covering(&(0..1)), 1..=1);
        assert_eq!(table.covering(&(99..101)), 1..=2);
        assert_eq!(table.covering(&(149..150)), 2..=2);
    }

    #[test]
    fn lies_are_refused() {
        let refused = |rows: Vec<SpanRow>| SpanRows::new(rows, 50, 150).is_err();
        assert!(refused(vec![]));
        assert!(refused(vec![row(10..20, 1..150)]), "does not begin at 0");
        assert!(refused(vec![row(10..20, 0..149)]), "does not cover the tar");
        assert!(refused(vec![row(10..51, 0..150)]), "beyond the blob");
        assert!(refused(vec![row(10..20, 0..100), row(18..30, 100..150)]), "shares two bytes");
        assert!(refused(vec![row(10..20, 0..100), row(21..30, 100..150)]), "leaves a gap");
        assert!(refused(vec![row(10..20, 0..100), row(20..30, 90..150)]), "goes back");
        assert!(refused(vec![SpanRow { bits: 8, ..row(10..20, 0..150) }]));
    }

    #[test]
    fn cut_tables_are_damaged() {
        let bytes = SpanRows::new(vec![row(0..50, 0..150)], 50, 150).unwrap().encode();
        for len in 0..bytes.len() {
            assert!(SpanRows::decode(&bytes[..len], 50, 150).is_err());
        }
    }
}
