//! One member of the layer's tar, as the TOC records it.

use crate::time;
use crate::{Fingerprint, Place, UncompressedOffset};

/// Prefix of the PAX records that carry extended attributes; what follows it is the attribute's full name.
pub(crate) const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";

/// What a tar member is. Other type flags (contiguous, global PAX header, GNU sparse, …) never reach a TOC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Type flag `0`, or NUL with a name that does not end in `/`. Whiteouts are regular files too.
    Regular,
    /// Type flag `5`, or NUL with a name that ends in `/`.
    Directory,
    /// Type flag `1`: another name of an earlier member, which the link name gives.
    Hardlink,
    /// Type flag `2`.
    Symlink,
    /// Type flag `3`.
    CharDevice,
    /// Type flag `4`.
    BlockDevice,
    /// Type flag `6`.
    Fifo,
}

impl EntryKind {
    /// All kinds.
    pub(crate) const ALL: [Self; 7] = [
        Self::Regular,
        Self::Directory,
        Self::Hardlink,
        Self::Symlink,
        Self::CharDevice,
        Self::BlockDevice,
        Self::Fifo,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "reg",
            Self::Directory => "dir",
            Self::Hardlink => "hardlink",
            Self::Symlink => "symlink",
            Self::CharDevice => "char",
            Self::BlockDevice => "block",
            Self::Fifo => "fifo",
        }
    }

    /// The kind that `word` names on the wire.
    pub(crate) fn from_wire(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str().as_bytes() == word)
    }

    /// Whether a member of this kind is followed by data in the tar. The others have none, whatever their size field says.
    #[must_use]
    pub fn has_body(self) -> bool {
        self == Self::Regular
    }
}

/// One record of a member's PAX extended header, raw: the key with its full prefix, the value with any byte in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaxRecord<T = Vec<u8>> {
    /// Up to the first `=`.
    pub key: T,
    /// May be empty, and may contain NUL.
    pub value: T,
}

/// One tar member, its extension headers folded in. Text fields are raw tar bytes, not necessarily UTF-8: owned, or borrowed from the zTOC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T = Vec<u8>> {
    /// The name verbatim: a leading `./` or `/`, `..`, `//` and a directory's trailing `/` are all kept.
    pub name: T,
    /// What it is.
    pub kind: EntryKind,
    /// Where the member's data begins in the tar, or would begin.
    pub data_offset: UncompressedOffset,
    /// The size field, in bytes; at most `i64::MAX`.
    pub size: u64,
    /// Target of a symlink, or the tar name that a hard link refers to, verbatim.
    pub link_name: T,
    /// The mode field unmasked: it may contain file type bits, or anything else.
    pub mode: i64,
    /// Low 32 bits of the owner.
    pub uid: u32,
    /// Low 32 bits of the group.
    pub gid: u32,
    /// Owner by name.
    pub user_name: T,
    /// Group by name.
    pub group_name: T,
    /// Modification time, RFC 3339 with up to nine fractional digits; empty when the year is outside 0..=9999.
    pub mod_time: T,
    /// Major number, of any kind of member.
    pub dev_major: i64,
    /// Minor number, of any kind of member.
    pub dev_minor: i64,
    /// All records of the member's own PAX header, as recorded: sorted by key if upstream or we wrote the TOC.
    pub pax: Vec<PaxRecord<T>>,
}

impl<T: AsRef<[u8]>> Entry<T> {
    /// The extended attributes: full name (`security.capability`) and value, from the `SCHILY.xattr.` records.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pax.iter().filter_map(|record| {
            Some((record.key.as_ref().strip_prefix(SCHILY_XATTR)?, record.value.as_ref()))
        })
    }

    /// The modification time in seconds since 1970 and nanoseconds, whatever zone it was written in. `None` where the TOC has none that can be read.
    #[must_use]
    pub fn mtime(&self) -> Option<(i64, u32)> {
        time::parse_rfc3339(self.mod_time.as_ref())
    }

    /// What a tar header must agree with before a byte of this member is served.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self)
    }
}

impl Entry<&[u8]> {
    /// The same with texts of its own.
    pub(crate) fn into_owned(self) -> Entry {
        let owned =
            |record: PaxRecord<&[u8]>| PaxRecord { key: record.key.to_vec(), value: record.value.to_vec() };
        Entry {
            name: self.name.to_vec(),
            kind: self.kind,
            data_offset: self.data_offset,
            size: self.size,
            link_name: self.link_name.to_vec(),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            user_name: self.user_name.to_vec(),
            group_name: self.group_name.to_vec(),
            mod_time: self.mod_time.to_vec(),
            dev_major: self.dev_major,
            dev_minor: self.dev_minor,
            pax: self.pax.into_iter().map(owned).collect(),
        }
    }
}

impl<T> Entry<T> {
    /// Where its data is.
    pub fn place(&self) -> Place {
        Place { data_offset: self.data_offset, size: self.size, kind: self.kind }
    }

    /// The end of the member's data without padding; `None` if it cannot be counted.
    pub(crate) fn data_end(&self) -> Option<u64> {
        self.data_offset.0.checked_add(self.size)
    }
}
