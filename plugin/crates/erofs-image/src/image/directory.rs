//! Directories: binary search, and listing from a cookie on.

use super::{Fields, Inode, Kind, ReadError, slice};
use crate::layout::{BLOCK, DIRENT, NAME_MAX, Nid};

/// Bits of a cookie that number the entry inside its block: a block has at most 39.
const COOKIE_BITS: u32 = 6;

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Its inode.
    pub nid: Nid,
    /// Kind of file.
    pub kind: Kind,
    /// Where to go on behind this entry; never 0.
    pub next_cookie: u64,
}

/// The entries of a directory: an iterator that ends after the first error.
#[derive(Clone, Debug)]
pub struct Directory<'a> {
    nid: Nid,
    data: &'a [u8],
    block: usize,
    index: usize,
}

/// One block: a table of entries and their names.
#[derive(Clone, Copy)]
struct Block<'a> {
    nid: Nid,
    bytes: &'a [u8],
    entries: usize,
}

impl<'a> Directory<'a> {
    pub(super) fn new(inode: &Inode, metadata: &'a [u8], cookie: u64) -> Result<Directory<'a>, ReadError> {
        if inode.kind != Kind::Directory {
            return Err(ReadError::NotADirectory { nid: inode.nid });
        }
        let data = slice(metadata, &inode.data)?;
        // A cookie that was never given out leads behind the end or to some entry: no harm.
        let block = usize::try_from(cookie >> COOKIE_BITS).unwrap_or(usize::MAX);
        let index = usize::try_from(cookie & ((1 << COOKIE_BITS) - 1)).unwrap_or(usize::MAX);
        Ok(Directory { nid: inode.nid, data, block, index })
    }

    /// Binary search over the blocks, then inside the block.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        let (mut low, mut high) = (0, self.data.len().div_ceil(BLOCK));
        // The last block whose first name is not behind the one we look for.
        while low < high {
            let middle = low.midpoint(high);
            let Some(block) = self.block(middle)? else { break };
            if block.name(0)? <= name { low = middle + 1 } else { high = middle }
        }
        let Some(last) = low.checked_sub(1) else { return Ok(None) };
        let Some(block) = self.block(last)? else { return Ok(None) };
        let (mut low, mut high) = (0, block.entries);
        while low < high {
            let middle = low.midpoint(high);
            match block.name(middle)?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return block.entry(middle).map(|(nid, _)| Some(nid)),
            }
        }
        Ok(None)
    }

    fn block(&self, number: usize) -> Result<Option<Block<'a>>, ReadError> {
        let rest =
            number.checked_mul(BLOCK).and_then(|at| self.data.get(at..)).filter(|rest| !rest.is_empty());
        let Some(rest) = rest else { return Ok(None) };
        let bytes = rest.get(..BLOCK).unwrap_or(rest);
        let first = usize::from(Fields(bytes).u16(8));
        if first < DIRENT || first % DIRENT != 0 || first > bytes.len() {
            return Err(ReadError::Directory { nid: self.nid, what: "damaged block" });
        }
        Ok(Some(Block { nid: self.nid, bytes, entries: first / DIRENT }))
    }

    fn step(&mut self) -> Result<Option<DirEntry<'a>>, ReadError> {
        while let Some(block) = self.block(self.block)? {
            if self.index < block.entries {
                let (nid, kind) = block.entry(self.index)?;
                let name = block.name(self.index)?;
                self.index += 1;
                let next_cookie = ((self.block as u64) << COOKIE_BITS) | self.index as u64;
                return Ok(Some(DirEntry { name, nid, kind, next_cookie }));
            }
            self.block += 1;
            self.index = 0;
        }
        Ok(None)
    }
}

impl<'a> Iterator for Directory<'a> {
    type Item = Result<DirEntry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if let Some(Err(_)) = step {
            self.data = &[];
        }
        step
    }
}

impl<'a> Block<'a> {
    fn bad(&self, what: &'static str) -> ReadError {
        ReadError::Directory { nid: self.nid, what }
    }

    fn entry(&self, index: usize) -> Result<(Nid, Kind), ReadError> {
        let at = index * DIRENT;
        let raw = self.bytes.get(at..at + DIRENT).map(Fields).ok_or_else(|| self.bad("damaged block"))?;
        let [file_type] = raw.bytes(10);
        let kind = Kind::from_file_type(file_type).ok_or_else(|| self.bad("an entry of no kind"))?;
        Ok((Nid(raw.u64(0)), kind))
    }

    fn name(&self, index: usize) -> Result<&'a [u8], ReadError> {
        let offset =
            |index: usize| self.bytes.get(index * DIRENT..).map(|rest| usize::from(Fields(rest).u16(8)));
        let start = offset(index).ok_or_else(|| self.bad("damaged block"))?;
        let is_last = index + 1 == self.entries;
        let end = if is_last { Some(self.bytes.len()) } else { offset(index + 1) };
        let name = end.and_then(|end| self.bytes.get(start..end)).ok_or_else(|| self.bad("damaged block"))?;
        let name = match name.iter().position(|byte| *byte == 0) {
            Some(end) if is_last => name.get(..end).unwrap_or(name),
            Some(_) => return Err(self.bad("a name with a zero byte")),
            None => name,
        };
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&b'/') {
            return Err(self.bad("an impossible name"));
        }
        Ok(name)
    }
}
