//! `headers`: where each tar header is in the layer, and what it has to say.
//!
//! 32 bytes of head (magic, version, number of rows, number of files, 12 zeros), then one row of 48 bytes for each header, in tar order:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 8, 8 | header range in the tar: from the end of the member before to this member's data |
//! | 16 | 16 | fingerprint of the zTOC's entry |
//! | 32 | 8 | nid of the inode that the entry became, 0 if it became none |
//! | 40 | 1 | 1: the inode's data is this member's |
//! | 41 | 7 | 0 |
//!
//! then one pair of 16 bytes (nid, row) for each file with data, sorted by nid. The file is mapped, not read.

use std::io::{self, Write as _};
use std::ops::Range;

use ztoc::Fingerprint;

use super::bytes::{array, u32_at, u64_at};
use super::{Damaged, name};
use crate::mapping::Mapping;

const MAGIC: [u8; 8] = *b"SOCIHEAD";
const VERSION: u32 = 1;
const HEAD: usize = 32;
const ROW: usize = 48;
const FILE: usize = 16;

/// Index of a header in tar order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HeaderId(pub(crate) usize);

/// One tar header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderRow {
    /// Where its bytes are in the tar.
    pub(crate) range: Range<u64>,
    /// What they must say.
    pub(crate) fingerprint: Fingerprint,
    /// The inode that it describes, if any.
    pub(crate) nid: Option<u64>,
    /// Whether that inode's data follows this header (no: a hard link, a directory, …).
    pub(crate) data: bool,
}

/// Writes the table; `rows` in tar order.
pub(crate) fn write(
    to: impl io::Write,
    rows: impl ExactSizeIterator<Item = HeaderRow> + Clone,
) -> io::Result<()> {
    let file = |(at, row): (usize, HeaderRow)| row.nid.filter(|_| row.data).map(|nid| (nid, at as u64));
    let mut files = Vec::with_capacity(rows.len());
    files.extend(rows.clone().enumerate().filter_map(file));
    files.sort_unstable();
    let mut out = io::BufWriter::with_capacity(256 << 10, to);
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&(rows.len() as u32).to_le_bytes())?;
    out.write_all(&(files.len() as u32).to_le_bytes())?;
    out.write_all(&[0; 12])?;
    for row in rows {
        out.write_all(&row.range.start.to_le_bytes())?;
        out.write_all(&row.range.end.to_le_bytes())?;
        out.write_all(&row.fingerprint.0)?;
        out.write_all(&row.nid.unwrap_or(0).to_le_bytes())?;
        out.write_all(&[u8::from(row.data), 0, 0, 0, 0, 0, 0, 0])?;
    }
    for (nid, row) in files {
        out.write_all(&nid.to_le_bytes())?;
        out.write_all(&row.to_le_bytes())?;
    }
    out.flush()
}

/// The table of a layer, mapped.
#[derive(Debug)]
pub(crate) struct HeaderTable<B = Mapping> {
    bytes: B,
    rows: usize,
    files: usize,
}

impl<B: AsRef<[u8]>> HeaderTable<B> {
    /// Checks head and length; the content is covered by the manifest's checksum.
    pub(crate) fn new(table: B) -> Result<Self, Damaged> {
        let damaged = |reason| Damaged { file: name::HEADERS, reason };
        let bytes = table.as_ref();
        if array(bytes, 0) != Some(MAGIC) || u32_at(bytes, 8) != Some(VERSION) {
            return Err(damaged("not a header table of this version"));
        }
        let number = |at| u32_at(bytes, at).and_then(|n| usize::try_from(n).ok());
        let (Some(rows), Some(files)) = (number(12), number(16)) else { return Err(damaged("too short")) };
        let len = rows
            .checked_mul(ROW)
            .zip(files.checked_mul(FILE))
            .and_then(|(a, b)| a.checked_add(b)?.checked_add(HEAD));
        if len != Some(bytes.len()) {
            return Err(damaged("wrong length"));
        }
        Ok(Self { bytes: table, rows, files })
    }

    /// Number of headers.
    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    pub(crate) fn get(&self, id: HeaderId) -> Option<HeaderRow> {
        let row = self.row(id.0)?;
        let nid = u64_at(row, 32)?;
        Some(HeaderRow {
            range: u64_at(row, 0)?..u64_at(row, 8)?,
            fingerprint: Fingerprint(array(row, 16)?),
            nid: (nid != 0).then_some(nid),
            data: row.get(40) == Some(&1),
        })
    }

    /// The header in front of a regular file's data.
    pub(crate) fn of_file(&self, nid: u64) -> Option<HeaderId> {
        let (mut low, mut high) = (0, self.files);
        while low < high {
            let middle = low.midpoint(high);
            let (found, row) = self.file(middle)?;
            match found.cmp(&nid) {
                std::cmp::Ordering::Equal => {
                    return Some(HeaderId(usize::try_from(row).ok()?)).filter(|id| id.0 < self.rows);
                }
                std::cmp::Ordering::Less => low = middle.checked_add(1)?,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The headers that have a byte in `range` of the tar.
    pub(crate) fn touching(&self, range: &Range<u64>) -> Range<usize> {
        let first = self.partition(|header| header.end <= range.start);
        let last = self.partition(|header| header.start < range.end);
        first..last
    }

    /// The rows with data in `range` of the tar: all from the last whose header begins at or before it to the last whose header ends in it.
    /// Not each of them need have any; see [`Self::files_in`].
    pub(crate) fn with_data_in(&self, range: &Range<u64>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let first = self.partition(|header| header.start <= range.start).saturating_sub(1);
        let last = self.partition(|header| header.end < range.end);
        first..last.max(first)
    }

    /// The bytes of the tar that the member around `offset` has, padding included; `tar_size` ends the last.
    pub(crate) fn file_around(&self, offset: u64, tar_size: u64) -> Option<Range<u64>> {
        let at = self.partition(|header| header.end <= offset).checked_sub(1)?;
        let start = u64_at(self.row(at)?, 8)?;
        let end = at.checked_add(1).and_then(|next| u64_at(self.row(next)?, 0)).unwrap_or(tar_size);
        Some(start..end).filter(|data| data.contains(&offset))
    }

    /// The rows of `rows` that have data, and it is a file's.
    pub(crate) fn files_in(&self, rows: Range<usize>) -> impl Iterator<Item = HeaderId> {
        let has_data = |at: &usize| {
            let Some(row) = self.row(*at) else { return false };
            let next = at.checked_add(1).and_then(|next| u64_at(self.row(next)?, 0));
            row.get(40) == Some(&1) && next != u64_at(row, 8)
        };
        rows.filter(has_data).map(HeaderId)
    }

    /// How many of the first rows hold `before`; rows are in tar order and do not overlap.
    fn partition(&self, before: impl Fn(&Range<u64>) -> bool) -> usize {
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let middle = low.midpoint(high);
            let range = self.row(middle).and_then(|row| Some(u64_at(row, 0)?..u64_at(row, 8)?));
            if range.is_some_and(|range| before(&range)) {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        low
    }

    fn row(&self, at: usize) -> Option<&[u8]> {
        if at >= self.rows {
            return None;
        }
        let start = at.checked_mul(ROW)?.checked_add(HEAD)?;
        self.bytes.as_ref().get(start..start.checked_add(ROW)?)
    }

    fn file(&self, at: usize) -> Option<(u64, u64)> {
        let start = self.rows.checked_mul(ROW)?.checked_add(HEAD)?.checked_add(at.checked_mul(FILE)?)?;
        let pair = self.bytes.as_ref().get(start..start.checked_add(FILE)?)?;
        Some((u64_at(pair, 0)?, u64_at(pair, 8)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(range: Range<u64>, nid: u64, data: bool) -> HeaderRow {
        HeaderRow { range, fingerprint: Fingerprint([9; 16]), nid: (nid != 0).then_some(nid), data }
    }

    fn encode(rows: &[HeaderRow]) -> Vec<u8> {
        let mut table = Vec::new();
        write(&mut table, rows.iter().cloned()).unwrap();
        table
    }

    #[test]
    fn comes_back_and_finds() {
        let rows = [
            row(0..512, 90, true),
            row(1024..1536, 40, false),
            row(1536..3072, 60, true),
            row(4096..4608, 0, false),
        ];
        let table = HeaderTable::new(encode(&rows)).unwrap();
        for (at, row) in rows.iter().enumerate() {
            assert_eq!(table.get(HeaderId(at)).as_ref(), Some(row));
        }
        assert_eq!(table.get(HeaderId(4)), None);
        assert_eq!(table.of_file(90), Some(HeaderId(0)));
        assert_eq!(table.of_file(60), Some(HeaderId(2)));
        assert_eq!(table.of_file(40), None, "a hard link has no data of its own");
        assert_eq!(table.touching(&(0..1)), 0..1);
        assert_eq!(table.touching(&(512..1024)), 1..1);
        assert_eq!(table.touching(&(511..1537)), 0..3);
        assert_eq!(table.touching(&(5000..6000)), 4..4);
        let files = |range| table.files_in(table.with_data_in(&range)).map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(files(512..1024), [0]);
        assert_eq!(files(1023..3073), [0, 2]);
        assert_eq!(files(1024..3072), [] as [usize; 0], "headers are no file's data");
        assert_eq!(files(3072..9000), [2]);
        assert_eq!(files(5000..9000), [] as [usize; 0], "behind a row without data");
        assert_eq!(files(0..0), [] as [usize; 0]);
        assert_eq!(table.file_around(600, 9000), Some(512..1024));
        assert_eq!(table.file_around(1100, 9000), None, "that is a header");
        assert_eq!(table.file_around(8999, 9000), Some(4608..9000));
        let table = HeaderTable::new(encode(&[row(0..512, 90, true), row(512..1024, 91, true)])).unwrap();
        assert_eq!(table.files_in(0..2).map(|id| id.0).collect::<Vec<_>>(), [1], "the first is empty");
    }

    #[test]
    fn cut_tables_are_damaged() {
        let bytes = encode(&[row(0..512, 90, true)]);
        for len in 0..bytes.len() {
            assert!(HeaderTable::new(&bytes[..len]).is_err());
        }
    }
}
