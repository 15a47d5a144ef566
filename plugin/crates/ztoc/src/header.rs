//! The layer's own tar headers against the TOC: a forged index must not be able to invent a file.

use std::ops::Range;

use thiserror::Error;

use crate::{EntryKind, Fingerprint, TarError, TarScanner, UncompressedOffset};

/// Length of a tar block; headers and data begin on multiples of it.
pub(crate) const BLOCK_LEN: u64 = 512;

/// The longest headers of one member that are believed: PAX records and two long names of 1 MiB each, with room to spare.
const MAX_HEADER_LEN: u64 = 4 << 20;

/// Where a member's data is: all that the place of its headers depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// [`Entry::data_offset`](crate::Entry::data_offset).
    pub data_offset: UncompressedOffset,
    /// [`Entry::size`](crate::Entry::size).
    pub size: u64,
    /// [`Entry::kind`](crate::Entry::kind).
    pub kind: EntryKind,
}

/// Where the headers of one member lie in the tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderRange {
    /// Index of the entry in the TOC.
    pub entry: usize,
    /// All its headers, extension headers included: 512 bytes to 4 MiB, ending at its data offset.
    pub range: Range<UncompressedOffset>,
}

/// Why a TOC cannot be true of any layer. `entry` is its index in the TOC.
#[derive(Debug, Error)]
pub enum InvalidToc {
    /// The entry's data begins before the end of the data of the entry before it, or leaves no room for a header.
    #[error("entry {entry} overlaps the one before it")]
    Overlap {
        /// The later of the two.
        entry: usize,
    },
    /// The entry's data does not begin at the start of a tar block.
    #[error("data of entry {entry} begins at {offset}, inside a tar block")]
    Misaligned {
        /// Which.
        entry: usize,
        /// Where its data begins.
        offset: UncompressedOffset,
    },
    /// The entry's data ends behind the archive.
    #[error("entry {entry} ends behind the archive")]
    BeyondEnd {
        /// Which.
        entry: usize,
    },
    /// Between the entry before it and its data lies more than headers can take.
    #[error("headers of entry {entry} take {len} bytes")]
    HeaderTooLong {
        /// Which.
        entry: usize,
        /// How many.
        len: u64,
    },
}

/// Why a header in the layer is not the one that the TOC promised.
#[derive(Debug, Error)]
pub enum HeaderMismatch {
    /// The bytes are no tar headers.
    #[error("no tar header where the TOC says")]
    Tar(#[from] TarError),
    /// The headers do not end where the data should begin, or are those of no member or of several.
    #[error("tar headers do not fit the place where the TOC says")]
    Place,
    /// Name, kind, size, mode, owner, time, link, device or extended attributes differ.
    #[error("tar header differs from the TOC")]
    Content,
}

/// Where in the tar each entry's headers are, sorted by offset, by upstream's rule: they begin where the data of the entry before them,
/// padded to 512, ends. `places` are those of a TOC's entries in their order, `uncompressed_size` is the archive's.
///
/// # Errors
///
/// When entries overlap, so that no header can be there (sparse files, bodyless members with a size), or lie outside the archive.
/// Upstream refuses such a zTOC as a whole, and so must everybody who would serve files from it.
pub fn header_ranges(places: &[Place], uncompressed_size: u64) -> Result<Vec<HeaderRange>, InvalidToc> {
    let archive_order = places.iter().enumerate();
    if places.is_sorted_by_key(|place| place.data_offset) {
        return ranges_of(archive_order, uncompressed_size);
    }
    let mut sorted: Vec<_> = archive_order.collect();
    // Archive order decides between entries at one offset, of which the second is refused below.
    sorted.sort_by_key(|(_, place)| place.data_offset);
    ranges_of(sorted.into_iter(), uncompressed_size)
}

/// The same of places that are sorted by offset, with the index of each entry.
fn ranges_of<'p>(
    places: impl ExactSizeIterator<Item = (usize, &'p Place)>,
    uncompressed_size: u64,
) -> Result<Vec<HeaderRange>, InvalidToc> {
    let mut ranges = Vec::with_capacity(places.len());
    let mut start = 0;
    for (index, place) in places {
        let offset = place.data_offset;
        if !offset.0.is_multiple_of(BLOCK_LEN) {
            return Err(InvalidToc::Misaligned { entry: index, offset });
        }
        let len = match offset.0.checked_sub(start) {
            None | Some(..BLOCK_LEN) => return Err(InvalidToc::Overlap { entry: index }),
            Some(len @ BLOCK_LEN..=MAX_HEADER_LEN) => len,
            Some(len) => return Err(InvalidToc::HeaderTooLong { entry: index, len }),
        };
        let end = offset.0.checked_add(place.size).ok_or(InvalidToc::BeyondEnd { entry: index })?;
        let needed = if place.kind.has_body() { end } else { offset.0 };
        if needed > uncompressed_size {
            return Err(InvalidToc::BeyondEnd { entry: index });
        }
        ranges.push(HeaderRange { entry: index, range: UncompressedOffset(offset.0 - len)..offset });
        start = end.checked_next_multiple_of(BLOCK_LEN).ok_or(InvalidToc::BeyondEnd { entry: index })?;
    }
    Ok(ranges)
}

/// Compares the headers that the layer has with what the TOC promised. `header` is the tar's bytes from `header_offset` to
/// `data_offset`, one [`HeaderRange`].
///
/// # Errors
///
/// When they are not the headers of exactly one member, or say something else than `expected`.
pub fn verify_header(
    header: &[u8],
    expected: &Fingerprint,
    data_offset: UncompressedOffset,
    header_offset: UncompressedOffset,
) -> Result<(), HeaderMismatch> {
    let len = usize::try_from(data_offset.0.saturating_sub(header_offset.0)).unwrap_or(usize::MAX);
    if header.len() != len {
        return Err(HeaderMismatch::Place);
    }
    let mut found = None;
    let mut count = 0_usize;
    let mut scanner = TarScanner::at(header_offset);
    scanner.push(header, &mut |scanned| {
        count = count.saturating_add(1);
        found = Some((scanned.entry.data_offset, scanned.entry.fingerprint()));
    })?;
    match found {
        Some((offset, fingerprint)) if count == 1 && offset == data_offset => {
            if fingerprint == *expected {
                Ok(())
            } else {
                Err(HeaderMismatch::Content)
            }
        }
        _ => Err(HeaderMismatch::Place),
    }
}
