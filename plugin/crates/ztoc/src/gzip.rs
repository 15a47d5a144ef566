//! The gzip header and trailer around a deflate stream (RFC 1952).

/// CRC-32 and length, after the deflate stream.
pub(crate) const TRAILER_LEN: usize = 8;

const HEADER_CRC: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// What follows the gzip header that `bytes` begin with, or `None` if they begin with none, or with part of one.
pub(crate) fn skip_header(bytes: &[u8]) -> Option<&[u8]> {
    // Time, extra flags and operating system are the last six bytes of the fixed part.
    let [0x1f, 0x8b, 8, flags, _, _, _, _, _, _, rest @ ..] = bytes else { return None };
    let mut rest = rest;
    if flags & RESERVED != 0 {
        return None;
    }
    if flags & EXTRA != 0 {
        let (len, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|&byte| byte == 0)?;
            rest = rest.get(end.checked_add(1)?..)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

/// Whether more bytes may make a gzip header of these, of which [`skip_header`] says that they are none.
pub(crate) fn may_become_header(bytes: &[u8]) -> bool {
    let fixed = [0x1f, 0x8b, 8];
    let magic = bytes.iter().zip(fixed).all(|(byte, expected)| *byte == expected);
    magic && bytes.get(fixed.len()).is_none_or(|flags| flags & RESERVED == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: [u8; 10] = [0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 0, 3];

    #[test]
    fn skips_every_optional_field() {
        for flags in 0..32_u8 {
            let mut header = FIXED.to_vec();
            header[3] = flags;
            if flags & EXTRA != 0 {
                header.extend_from_slice(b"\x03\0abc");
            }
            if flags & NAME != 0 {
                header.extend_from_slice(b"name\0");
            }
            if flags & COMMENT != 0 {
                header.extend_from_slice(b"\0");
            }
            if flags & HEADER_CRC != 0 {
                header.extend_from_slice(b"cc");
            }
            for len in 0..header.len() {
                assert_eq!(skip_header(&header[..len]), None, "flags {flags:#b}, {len} bytes");
                assert!(may_become_header(&header[..len]), "flags {flags:#b}, {len} bytes");
            }
            header.extend_from_slice(b"rest");
            assert_eq!(skip_header(&header), Some(&b"rest"[..]), "flags {flags:#b}");
        }
    }

    #[test]
    fn refuses_what_is_no_header() {
        for (at, value) in [(0, 0), (1, 0), (2, 7), (3, 0x20), (3, 0x80)] {
            let mut header = FIXED;
            header[at] = value;
            assert_eq!(skip_header(&header), None);
            assert!(!may_become_header(&header));
        }
    }
}
