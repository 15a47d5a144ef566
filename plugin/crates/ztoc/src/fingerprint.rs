//! A short digest of what an entry's tar header must agree with.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::Entry;

/// First half of a SHA-256 over an entry's name, kind, size, mode, owner, group, modification time, link name, device numbers and
/// `SCHILY.xattr.` records: what upstream compares with the layer's tar header before a file is served. Names of owner and group are
/// not in it: nothing serves them. The value is kept on disk by `lazy-layer`; changing its recipe changes that format's version.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({:032x})", u128::from_be_bytes(self.0))
    }
}

impl Fingerprint {
    pub(crate) fn of<T: AsRef<[u8]>>(entry: &Entry<T>) -> Self {
        let mut hash = Recipe(Sha256::new());
        hash.text(entry.name.as_ref());
        hash.text(entry.kind.as_str().as_bytes());
        hash.number(entry.size);
        hash.number(entry.mode.cast_unsigned());
        hash.number(u64::from(entry.uid));
        hash.number(u64::from(entry.gid));
        // The instant, not its text: the TOC may have been written in another time zone.
        match entry.mtime() {
            Some((seconds, nanos)) => {
                hash.number(1);
                hash.number(seconds.cast_unsigned());
                hash.number(u64::from(nanos));
            }
            None => hash.number(0),
        }
        hash.text(entry.link_name.as_ref());
        hash.number(entry.dev_major.cast_unsigned());
        hash.number(entry.dev_minor.cast_unsigned());
        let mut xattrs: Vec<_> = entry.xattrs().collect();
        xattrs.sort_unstable();
        hash.number(xattrs.len() as u64);
        for (name, value) in xattrs {
            hash.text(name);
            hash.text(value);
        }
        let mut half = [0; 16];
        half.iter_mut().zip(hash.0.finalize()).for_each(|(to, from)| *to = from);
        Self(half)
    }
}

/// Fields with their lengths, so that no two entries feed the hash the same bytes.
struct Recipe(Sha256);

impl Recipe {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.0.update(text);
    }
}
