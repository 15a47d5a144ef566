//! Extended attributes of one inode.

use super::{Fields, ReadError};
use crate::layout::{Nid, XATTR_ENTRY, XATTR_HEADER, xattr_prefix};

/// An extended attribute where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrRef<'a> {
    /// First part of the name: `security.`.
    pub prefix: &'static str,
    /// Rest of the name, empty for the ACLs.
    pub suffix: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl XattrRef<'_> {
    /// The full name.
    pub fn name(&self) -> Vec<u8> {
        [self.prefix.as_bytes(), self.suffix].concat()
    }

    /// True if that is its full name.
    pub fn is(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.prefix.as_bytes()) == Some(self.suffix)
    }
}

/// The extended attributes of an inode: an iterator that ends after the first error.
#[derive(Clone, Debug)]
pub struct Xattrs<'a> {
    nid: Nid,
    rest: &'a [u8],
}

impl<'a> Xattrs<'a> {
    pub(super) fn new(nid: Nid, bytes: &'a [u8]) -> Result<Xattrs<'a>, ReadError> {
        let bad = |what| ReadError::Xattrs { nid, what };
        if bytes.is_empty() {
            return Ok(Xattrs { nid, rest: bytes });
        }
        let [shared] = Fields(bytes).bytes(4);
        if shared != 0 {
            return Err(bad("shared attributes"));
        }
        let rest = bytes.get(XATTR_HEADER..).ok_or_else(|| bad("no header"))?;
        Ok(Xattrs { nid, rest })
    }

    fn step(&mut self) -> Result<XattrRef<'a>, &'static str> {
        let header: [u8; XATTR_ENTRY] = *self.rest.first_chunk().ok_or("damaged entry")?;
        let [name_length, index, ..] = header;
        let (name_length, value_length) = (usize::from(name_length), usize::from(Fields(&header).u16(2)));
        let value_at = XATTR_ENTRY + name_length;
        let end = value_at + value_length;
        let suffix = self.rest.get(XATTR_ENTRY..value_at).ok_or("damaged entry")?;
        let value = self.rest.get(value_at..end).ok_or("damaged entry")?;
        let prefix = xattr_prefix(index).ok_or("unknown prefix")?;
        if suffix.contains(&0) || prefix.ends_with('.') == suffix.is_empty() {
            return Err("an impossible name");
        }
        self.rest = self.rest.get(end.next_multiple_of(4)..).ok_or("damaged entry")?;
        Ok(XattrRef { prefix, suffix, value })
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<XattrRef<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let step = self.step().map_err(|what| ReadError::Xattrs { nid: self.nid, what });
        if step.is_err() {
            self.rest = &[];
        }
        Some(step)
    }
}
