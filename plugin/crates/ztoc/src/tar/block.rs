//! One tar header block.

use super::number::{numeric, octal, text};

pub(super) const LEN: usize = 512;

pub(super) const ZERO: [u8; LEN] = [0; LEN];

/// Which fields a header has after those of Unix V7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    V7,
    /// POSIX; PAX headers are of this format too.
    Ustar,
    Gnu,
    /// Schily's own, older than PAX.
    Star,
}

/// The fields of one header block, as they stand there.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) typeflag: u8,
    pub(super) name: Vec<u8>,
    pub(super) link_name: Vec<u8>,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    /// Seconds since 1970.
    pub(super) mtime: i64,
    pub(super) user_name: Vec<u8>,
    pub(super) group_name: Vec<u8>,
    pub(super) dev_major: i64,
    pub(super) dev_minor: i64,
}

impl Block {
    /// `None` if the checksum is wrong or a number is no number.
    pub(super) fn parse(block: &[u8; LEN]) -> Option<Self> {
        let format = format(block)?;
        let mut header = Self {
            typeflag: *field::<1>(block, 156).first()?,
            name: text(field::<100>(block, 0)).to_vec(),
            link_name: text(field::<100>(block, 157)).to_vec(),
            size: numeric(field::<12>(block, 124))?,
            mode: numeric(field::<8>(block, 100))?,
            uid: numeric(field::<8>(block, 108))?,
            gid: numeric(field::<8>(block, 116))?,
            mtime: numeric(field::<12>(block, 136))?,
            user_name: Vec::new(),
            group_name: Vec::new(),
            dev_major: 0,
            dev_minor: 0,
        };
        if format == Format::V7 {
            return Some(header);
        }
        header.user_name = text(field::<32>(block, 265)).to_vec();
        header.group_name = text(field::<32>(block, 297)).to_vec();
        header.dev_major = numeric(field::<8>(block, 329))?;
        header.dev_minor = numeric(field::<8>(block, 337))?;
        let prefix = match format {
            Format::V7 => &[],
            Format::Ustar => text(field::<155>(block, 345)),
            Format::Star => {
                numeric(field::<12>(block, 476))?;
                numeric(field::<12>(block, 488))?;
                text(field::<131>(block, 345))
            }
            Format::Gnu => gnu_prefix(block),
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Some(header)
    }
}

/// GNU headers have access and change times where others have the prefix. An old Go wrote a prefix there all the same; it shows in
/// times that are no numbers.
fn gnu_prefix(block: &[u8; LEN]) -> &[u8] {
    let is_time = |time: &[u8; 12]| time.starts_with(&[0]) || numeric(time).is_some();
    let prefix = text(field::<155>(block, 345));
    if (is_time(field(block, 345)) && is_time(field(block, 357))) || !prefix.is_ascii() {
        &[]
    } else {
        prefix
    }
}

/// The format, if the checksum is right.
fn format(block: &[u8; LEN]) -> Option<Format> {
    // POSIX adds up unsigned bytes, Sun's tar added up signed ones; the checksum's own field counts as spaces.
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (index, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&index) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    let checksum = octal(field::<8>(block, 148))?;
    if checksum != unsigned && checksum != signed {
        return None;
    }
    Some(match (field::<6>(block, 257), field::<2>(block, 263), field::<4>(block, 508)) {
        (b"ustar\0", _, b"tar\0") => Format::Star,
        (b"ustar\0", _, _) => Format::Ustar,
        (b"ustar ", b" \0", _) => Format::Gnu,
        _ => Format::V7,
    })
}

/// `N` bytes of the block; all callers' fields lie inside it.
fn field<const N: usize>(block: &[u8; LEN], start: usize) -> &[u8; N] {
    block.get(start..).and_then(<[u8]>::first_chunk).unwrap_or(&[0; N])
}
