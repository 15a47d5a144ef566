//! On-disk layout.
//!
//! All numbers are little endian. The subset of EROFS (`fs/erofs/erofs_fs.h` of Linux) in use:
//!
//! | bytes | what |
//! |---|---|
//! | 0 .. 40 | our own header, below; EROFS leaves the first 1024 bytes to others |
//! | 1024 .. 1152 | superblock: 512-byte blocks (`blkszbits` 9), no checksum, no incompatible feature, `meta_blkaddr` 0 |
//! | 1536 .. | inodes, breadth first from the root, so that the root's nid (48) fits the superblock's 16 bits |
//! | next block .. | blocks of the directories and of the link targets too big to stand behind their inode |
//! | `tar_start` .. | the tar: the first multiple of 4096 behind the metadata |
//!
//! # Header
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | magic `soci.lay` |
//! | 8 | 4 | version of this layout, 1 |
//! | 12 | 4 | flags: 1 = an inode has an extended attribute |
//! | 16 | 8 | `tar_start` = length of the metadata |
//! | 24 | 8 | length of the tar |
//! | 32 | 8 | reserved, 0 |
//!
//! # Inode
//!
//! Always the extended form: 64 bytes, aligned to 32, inside one block. The nid of an inode is its
//! offset divided by 32.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 2 | format: bit 0 set (extended); bits 1–3 data layout, 0 = blocks ("plain"), 2 = behind the inode ("inline") |
//! | 2 | 2 | extended attributes: 0, or (bytes − 12) / 4 + 1 |
//! | 4 | 2 | mode with the kind's bits |
//! | 8 | 8 | size |
//! | 16 | 4 | plain: first block; devices: `minor & 0xff \| major << 8 \| (minor & !0xff) << 12`; otherwise 0 |
//! | 20 | 4 | running number, from 1 |
//! | 24, 28 | 4, 4 | uid, gid |
//! | 32, 40 | 8, 4 | mtime: seconds (signed) and nanoseconds |
//! | 44 | 4 | link count |
//!
//! Behind it stand the extended attributes, then the data of an inline directory or link. All of an
//! inline inode is inside one block; attributes alone may cross blocks.
//!
//! # Extended attributes
//!
//! A header of 12 bytes (name filter and number of shared attributes, both 0), then entries sorted by
//! name: length of the suffix (1), index of the prefix (1), length of the value (2), suffix, value,
//! padded to 4. Prefixes: 1 `user.`, 2 `system.posix_acl_access` and 3 `system.posix_acl_default`
//! (without suffix), 4 `trusted.`, 6 `security.`. Only these exist: see [`TreeBuilder`] for what
//! becomes of others.
//!
//! # Directories
//!
//! Blocks of 512 bytes (the last as long as it has to be), names in byte order over all of them, `.`
//! and `..` among them. A block is a table of entries – nid (8), offset of the name in the block (2),
//! kind (1), 0 (1) – and the names, one after another; rest zero. The first name's offset tells how many
//! entries there are; a name ends where the next begins, the last one at a zero byte or the end.
//!
//! [`TreeBuilder`]: crate::TreeBuilder

use std::fmt;

/// Size of a block, and the alignment of file data in a tar.
pub const BLOCK_SIZE: u64 = 512;

/// Number of an inode: its offset in the image divided by 32.
///
/// No inode has a nid below 48 (the first 1536 bytes hold no inode), and the root has exactly 48.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nid(pub u64);

impl Nid {
    /// Nid of the root directory, and the smallest that exists.
    pub const ROOT: Nid = Nid(48);
}

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// [`BLOCK_SIZE`] as an index.
pub(crate) const BLOCK: usize = 512;
/// Alignment of inodes, and the unit of nids.
pub(crate) const SLOT: u64 = 32;
/// Size of an extended inode.
pub(crate) const INODE_SIZE: usize = 64;
/// Alignment of the tar in the file: a page, so that page cache and direct I/O agree with it.
pub(crate) const TAR_ALIGN: u64 = 4096;

/// First bytes of our header.
pub(crate) const HEADER_MAGIC: [u8; 8] = *b"soci.lay";
/// Version of the layout as a whole.
pub(crate) const VERSION: u32 = 1;
/// Header flag: at least one inode has an extended attribute.
pub(crate) const FLAG_XATTRS: u32 = 1;

/// Offset of the superblock.
pub(crate) const SUPERBLOCK: usize = 1024;
/// Offset of the first inode, the root's.
pub(crate) const FIRST_INODE: u64 = Nid::ROOT.0 * SLOT;
/// Magic of the superblock.
pub(crate) const SUPERBLOCK_MAGIC: u32 = 0xe0f5_e1e2;
/// Base-two logarithm of the block size.
pub(crate) const BLOCK_BITS: u8 = 9;

/// Inode format: extended, data in blocks.
pub(crate) const FORMAT_PLAIN: u16 = 1;
/// Inode format: extended, data behind the inode.
pub(crate) const FORMAT_INLINE: u16 = 1 | (2 << 1);

/// Size of the header before the entries of the extended attributes.
pub(crate) const XATTR_HEADER: usize = 12;
/// Size of an entry before its name.
pub(crate) const XATTR_ENTRY: usize = 4;
/// Size of an entry in a directory block, without its name.
pub(crate) const DIRENT: usize = 12;

/// Longest name in a directory, and longest suffix of an attribute's name (Linux's `NAME_MAX`).
pub(crate) const NAME_MAX: usize = 255;
/// Longest link target (Linux's `PATH_MAX` with its zero byte).
pub(crate) const TARGET_MAX: usize = 4095;

/// Prefixes of attribute names with their indices.
const PREFIXES: [(&str, u8); 5] = [
    ("user.", 1),
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("trusted.", 4),
    ("security.", 6),
];

/// Splits an attribute's name into the index of its prefix and the suffix.
///
/// None if the image cannot hold an attribute of that name.
pub(crate) fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let suffix = name.strip_prefix(prefix.as_bytes())?;
        // A name is either a prefix that ends with a dot and something behind it, or the whole of an ACL's.
        (prefix.ends_with('.') != suffix.is_empty()).then_some((*index, suffix))
    })
}

/// The prefix with that index.
pub(crate) fn xattr_prefix(index: u8) -> Option<&'static str> {
    PREFIXES.iter().find(|(_, i)| *i == index).map(|(prefix, _)| *prefix)
}

/// Kinds' bits in a mode.
pub(crate) mod mode {
    pub(crate) const KIND: u16 = 0o170000;
    pub(crate) const FIFO: u16 = 0o010000;
    pub(crate) const CHAR: u16 = 0o020000;
    pub(crate) const DIRECTORY: u16 = 0o040000;
    pub(crate) const BLOCK: u16 = 0o060000;
    pub(crate) const REGULAR: u16 = 0o100000;
    pub(crate) const SYMLINK: u16 = 0o120000;
}

/// Encodes a device number as Linux's `new_encode_dev`; None if it has more than 12 and 20 bits.
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Decodes what [`encode_device`] made.
pub(crate) fn decode_device(device: u32) -> (u32, u32) {
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00))
}
