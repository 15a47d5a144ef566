//! The one reader of tar headers, with the rules of Go's archive/tar, which the Go tools use: what they record in a TOC is what this
//! yields.

mod block;
mod number;
mod pax;

use std::fmt;

use thiserror::Error;

use crate::header::BLOCK_LEN;
use crate::{Entry, EntryKind, UncompressedOffset, time};

use self::block::Block;
use self::pax::PaxHeader;

/// The longest extension header (PAX records, a long name) that is read.
const MAX_EXTENSION_LEN: u64 = 1 << 20;

/// Why bytes are no tar that a TOC can describe. `offset` is where the block in question begins, if nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TarError {
    /// No valid header where one must be.
    #[error("invalid tar header at {offset}")]
    Header {
        /// Where.
        offset: UncompressedOffset,
    },
    /// An extension header is longer than 1 MiB.
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
    /// A type flag that no TOC can have: global PAX headers, contiguous files, anything private.
    #[error("unsupported tar entry of type {typeflag:#04x} at {offset}")]
    Unsupported {
        /// The type flag.
        typeflag: u8,
        /// Where.
        offset: UncompressedOffset,
    },
    /// A sparse file, in any of GNU's formats: its data are not where offset and size say.
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

/// Reads tar headers out of a stream that is pushed in. It keeps no more than one member's headers, at most 3 MiB.
pub struct TarScanner {
    state: State,
    /// Of the next byte, or the end of the archive once that is reached.
    position: u64,
    /// Where the headers of the member under way begin, once one is complete.
    member_start: Option<u64>,
    /// The header block under way.
    block: [u8; block::LEN],
    filled: usize,
    extensions: Extensions,
}

/// What the headers before a member's own have said about it.
#[derive(Default)]
struct Extensions {
    pax: PaxHeader,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

#[derive(Clone, Copy)]
enum ExtensionKind {
    Pax,
    LongName,
    LongLink,
}

enum State {
    /// Collecting a header block.
    Header,
    /// Collecting the block after one of zeros.
    SecondZero,
    /// Collecting the body of an extension header.
    Extension {
        kind: ExtensionKind,
        offset: u64,
        body: Vec<u8>,
        len: usize,
    },
    /// Passing over a body, and then over its padding.
    Skip {
        data: u64,
        padding: u64,
    },
    /// Behind the archive's end.
    Done,
    Failed(TarError),
}

impl fmt::Debug for TarScanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TarScanner").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Default for TarScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl TarScanner {
    /// At the beginning of a tar.
    #[must_use]
    pub fn new() -> Self {
        Self::at(UncompressedOffset(0))
    }

    /// At `offset` of a tar, where a header begins.
    #[must_use]
    pub fn at(offset: UncompressedOffset) -> Self {
        Self {
            state: State::Header,
            position: offset.0,
            member_start: None,
            block: block::ZERO,
            filled: 0,
            extensions: Extensions::default(),
        }
    }

    /// Takes the next bytes, any number of them, and calls `on_entry` for each member when its headers are complete. What follows the
    /// end of the archive is ignored.
    ///
    /// # Errors
    ///
    /// When this is no tar that a TOC can describe; every later push repeats the error.
    pub fn push(&mut self, bytes: &[u8], on_entry: &mut dyn FnMut(ScannedEntry)) -> Result<(), TarError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Err(error) = self.step(&mut rest, on_entry) {
                self.state = State::Failed(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    /// The stream ends here: returns where the archive does, its end blocks included.
    ///
    /// # Errors
    ///
    /// When the stream ends inside a header or a member's data, or a push has failed. Missing end blocks and missing padding after the
    /// last member are no errors.
    pub fn finish(self) -> Result<UncompressedOffset, TarError> {
        let offset = UncompressedOffset(self.position);
        match self.state {
            State::Header | State::SecondZero if self.filled == 0 => Ok(offset),
            State::Skip { data: 0, .. } | State::Done => Ok(offset),
            State::Header | State::SecondZero | State::Extension { .. } | State::Skip { .. } => {
                Err(TarError::Truncated { offset })
            }
            State::Failed(error) => Err(error),
        }
    }

    /// Consumes something of `rest`, which is not empty.
    fn step(&mut self, rest: &mut &[u8], on_entry: &mut dyn FnMut(ScannedEntry)) -> Result<(), TarError> {
        match &mut self.state {
            State::Header | State::SecondZero => {
                if let Some(block) = self.collect_block(rest) {
                    self.on_block(&block, on_entry)?;
                }
            }
            State::Extension { kind, offset, body, len } => {
                let taken = take(rest, len.saturating_sub(body.len()));
                body.extend_from_slice(taken);
                self.position = self.position.saturating_add(taken.len() as u64);
                if body.len() >= *len {
                    let (kind, offset, body) = (*kind, *offset, std::mem::take(body));
                    self.on_extension(kind, offset, &body)?;
                }
            }
            State::Skip { data, padding } => {
                let left = if *data > 0 { &mut *data } else { &mut *padding };
                let taken = take(rest, usize::try_from(*left).unwrap_or(usize::MAX));
                *left = left.saturating_sub(taken.len() as u64);
                self.position = self.position.saturating_add(taken.len() as u64);
                if *data == 0 && *padding == 0 {
                    self.state = State::Header;
                }
            }
            State::Done => *rest = &[],
            State::Failed(error) => return Err(error.clone()),
        }
        Ok(())
    }

    /// Fills the block under way; returns it when it is complete.
    fn collect_block(&mut self, rest: &mut &[u8]) -> Option<[u8; block::LEN]> {
        let room = self.block.get_mut(self.filled..).unwrap_or_default();
        let taken = take(rest, room.len());
        room.iter_mut().zip(taken).for_each(|(to, from)| *to = *from);
        self.filled = self.filled.saturating_add(taken.len());
        self.position = self.position.saturating_add(taken.len() as u64);
        if self.filled < block::LEN {
            return None;
        }
        self.filled = 0;
        Some(self.block)
    }

    fn on_block(
        &mut self,
        bytes: &[u8; block::LEN],
        on_entry: &mut dyn FnMut(ScannedEntry),
    ) -> Result<(), TarError> {
        let start = self.position.saturating_sub(BLOCK_LEN);
        let invalid = || TarError::Header { offset: UncompressedOffset(start) };
        let is_zero = *bytes == block::ZERO;
        if matches!(self.state, State::SecondZero) {
            // One block of zeros and then something else is no tar.
            self.state = if is_zero { State::Done } else { return Err(invalid()) };
            return Ok(());
        }
        if is_zero {
            self.state = State::SecondZero;
            return Ok(());
        }
        let block = Block::parse(bytes).ok_or_else(invalid)?;
        let kind = match block.typeflag {
            b'x' => ExtensionKind::Pax,
            b'L' => ExtensionKind::LongName,
            b'K' => ExtensionKind::LongLink,
            _ => {
                let member_start = self.member_start.take().unwrap_or(start);
                let entry = self.finish_member(block, start)?;
                // Members of other kinds have no body, whatever their size field says.
                let data = if entry.kind.has_body() { entry.size } else { 0 };
                self.skip(data);
                on_entry(ScannedEntry { header_offset: UncompressedOffset(member_start), entry });
                return Ok(());
            }
        };
        self.member_start.get_or_insert(start);
        let len = u64::try_from(block.size).map_err(|_| invalid())?;
        let too_long = || TarError::HeaderTooLong { offset: UncompressedOffset(start) };
        if len > MAX_EXTENSION_LEN {
            return Err(too_long());
        }
        let len = usize::try_from(len).map_err(|_| too_long())?;
        if len == 0 {
            return self.on_extension(kind, start, &[]);
        }
        self.state = State::Extension { kind, offset: start, body: Vec::new(), len };
        Ok(())
    }

    fn on_extension(&mut self, kind: ExtensionKind, offset: u64, body: &[u8]) -> Result<(), TarError> {
        match kind {
            ExtensionKind::Pax => {
                let invalid = TarError::Header { offset: UncompressedOffset(offset) };
                self.extensions.pax = PaxHeader::parse(body).ok_or(invalid)?;
            }
            ExtensionKind::LongName => self.extensions.long_name = number::text(body).to_vec(),
            ExtensionKind::LongLink => self.extensions.long_link = number::text(body).to_vec(),
        }
        self.state = State::Skip { data: 0, padding: padding_after(body.len() as u64) };
        if let State::Skip { data: 0, padding: 0 } = self.state {
            self.state = State::Header;
        }
        Ok(())
    }

    fn skip(&mut self, data: u64) {
        self.state = match data {
            0 => State::Header,
            data => State::Skip { data, padding: padding_after(data) },
        };
    }

    /// Folds the extension headers into a member's own header, which begins at `start`.
    fn finish_member(&mut self, block: Block, start: u64) -> Result<Entry, TarError> {
        let offset = UncompressedOffset(start);
        let invalid = || TarError::Header { offset };
        let Extensions { pax, long_name, long_link } = std::mem::take(&mut self.extensions);
        let overrides = pax.overrides().ok_or_else(invalid)?;
        let mut name = overrides.name.unwrap_or(block.name);
        let mut link_name = overrides.link_name.unwrap_or(block.link_name);
        // GNU's long names win over PAX, PAX over the header.
        if !long_name.is_empty() {
            name = long_name;
        }
        if !long_link.is_empty() {
            link_name = long_link;
        }
        let kind = match block.typeflag {
            b'S' => return Err(TarError::Sparse { offset }),
            _ if pax.is_sparse() => return Err(TarError::Sparse { offset }),
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 if name.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' => EntryKind::Regular,
            b'1' => EntryKind::Hardlink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            typeflag => return Err(TarError::Unsupported { typeflag, offset }),
        };
        let size = overrides.size.unwrap_or(block.size);
        // Even where PAX overrides it, the header's own size must be possible if the header says that there is a body.
        if !matches!(block.typeflag, b'1'..=b'6') && block.size < 0 {
            return Err(invalid());
        }
        let size = u64::try_from(size).map_err(|_| invalid())?;
        let data_offset = UncompressedOffset(self.position);
        // The data's end must be countable, in what the TOC counts with.
        if i64::try_from(data_offset.0.saturating_add(size)).is_err() {
            return Err(invalid());
        }
        let mtime = overrides.mtime.unwrap_or(Some((block.mtime, 0)));
        let low_bits = |id: i64| (id & i64::from(u32::MAX)) as u32;
        Ok(Entry {
            name,
            kind,
            data_offset,
            size,
            link_name,
            mode: block.mode,
            uid: low_bits(overrides.uid.unwrap_or(block.uid)),
            gid: low_bits(overrides.gid.unwrap_or(block.gid)),
            user_name: overrides.user_name.unwrap_or(block.user_name),
            group_name: overrides.group_name.unwrap_or(block.group_name),
            mod_time: mtime.map(|(seconds, nanos)| time::format_rfc3339(seconds, nanos)).unwrap_or_default(),
            dev_major: block.dev_major,
            dev_minor: block.dev_minor,
            pax: pax.into_records(),
        })
    }
}

/// What is missing to the next block.
fn padding_after(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK_LEN
}

/// Takes at most `len` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
    *bytes = rest;
    taken
}
