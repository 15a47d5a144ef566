//! Reading an image. Everything is checked: a damaged image is a [`ReadError`], whatever is asked of it.

mod directory;
mod xattr;

use std::fmt;
use std::ops::Range;

use crate::layout::{
    BLOCK_BITS, BLOCK_SIZE, FLAG_XATTRS, FORMAT_INLINE, FORMAT_PLAIN, HEADER_MAGIC, INODE_SIZE, Nid, SLOT,
    SUPERBLOCK, SUPERBLOCK_MAGIC, TAR_ALIGN, TARGET_MAX, VERSION, XATTR_HEADER, decode_device, mode,
};
pub use directory::{DirEntry, Directory};
pub use xattr::{XattrRef, Xattrs};

/// The metadata of an image, in memory or mapped.
///
/// Reads of file data are not its business: [`Inode::tar_range`] says where they are.
pub struct Image<B> {
    bytes: B,
    tar_start: u64,
    tar_size: u64,
    inodes: u64,
    has_xattrs: bool,
}

/// Kind of a file.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Character device; with number 0/0 a whiteout.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Symbolic link.
    Symlink,
}

/// What an inode says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub nid: Nid,
    /// Kind of file.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file, of a link's target, of a directory's entries; otherwise 0.
    pub size: u64,
    /// Link count.
    pub nlink: u32,
    /// Modification time, seconds since 1970, may be negative.
    pub mtime: i64,
    /// Nanoseconds of the modification time, below 10⁹.
    pub mtime_nsec: u32,
    /// Major and minor number of a device, otherwise 0 and 0.
    pub rdev: (u32, u32),
    /// A regular file's data as a range of the layer *file* (not of the tar); None for an empty file and other kinds.
    pub tar_range: Option<Range<u64>>,
    /// Extended attributes: offset and length in the image, header included.
    xattrs: Range<u64>,
    /// A directory's or link's data in the image.
    data: Range<u64>,
}

/// Why an image or a part of it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is no image of ours, or of another version.
    #[error("not a layer image: {what}")]
    NotAnImage {
        /// What is wrong.
        what: &'static str,
    },
    /// It ends too early.
    #[error("the image ends before byte {end}")]
    Truncated {
        /// What was asked for ends here.
        end: u64,
    },
    /// An inode makes no sense.
    #[error("inode {nid}: {what}")]
    Inode {
        /// Its nid.
        nid: Nid,
        /// What is wrong.
        what: &'static str,
    },
    /// A directory makes no sense.
    #[error("directory {nid}: {what}")]
    Directory {
        /// The directory's nid.
        nid: Nid,
        /// What is wrong.
        what: &'static str,
    },
    /// Extended attributes make no sense.
    #[error("extended attributes of inode {nid}: {what}")]
    Xattrs {
        /// The inode's nid.
        nid: Nid,
        /// What is wrong.
        what: &'static str,
    },
    /// Something was asked that only a directory has.
    #[error("inode {nid} is not a directory")]
    NotADirectory {
        /// The nid.
        nid: Nid,
    },
    /// Something was asked that only a symbolic link has.
    #[error("inode {nid} is not a symbolic link")]
    NotASymlink {
        /// The nid.
        nid: Nid,
    },
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Opens an image; `bytes` is its metadata at least, and may be the whole file.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the header, the superblock or the root is not one that [`NewImage`](crate::NewImage) makes.
    pub fn open(bytes: B) -> Result<Image<B>, ReadError> {
        let not = |what| ReadError::NotAnImage { what };
        let all = bytes.as_ref();
        let header: [u8; 40] = fixed(all, 0)?;
        let fields = Fields(&header);
        if fields.bytes(0) != HEADER_MAGIC {
            return Err(not("no magic"));
        }
        if fields.u32(8) != VERSION {
            return Err(not("another version"));
        }
        let (flags, tar_start, tar_size) = (fields.u32(12), fields.u64(16), fields.u64(24));
        if tar_start % TAR_ALIGN != 0 || tar_start <= Nid::ROOT.0 * SLOT || flags & !FLAG_XATTRS != 0 {
            return Err(not("damaged header"));
        }
        if (all.len() as u64) < tar_start {
            return Err(ReadError::Truncated { end: tar_start });
        }
        let superblock: [u8; 128] = fixed(all, SUPERBLOCK as u64)?;
        let fields = Fields(&superblock);
        let [bits, slots] = fields.bytes(12);
        if fields.u32(0) != SUPERBLOCK_MAGIC {
            return Err(not("no superblock"));
        }
        // Root, block of nid 0, incompatible features.
        let fixed_fields = (u64::from(fields.u16(14)), fields.u32(40), fields.u32(80));
        if bits != BLOCK_BITS || slots != 0 || fixed_fields != (Nid::ROOT.0, 0, 0) {
            return Err(not("a superblock that we do not write"));
        }
        let blocks =
            tar_size.checked_next_multiple_of(BLOCK_SIZE).and_then(|size| size.checked_add(tar_start));
        if blocks.map(|size| size / BLOCK_SIZE) != Some(u64::from(fields.u32(36))) {
            return Err(not("sizes that contradict each other"));
        }
        let inodes = fields.u64(16);
        let image = Image { bytes, tar_start, tar_size, inodes, has_xattrs: flags & FLAG_XATTRS != 0 };
        match image.inode(Nid::ROOT)?.kind {
            Kind::Directory => Ok(image),
            _ => Err(not("the root is not a directory")),
        }
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        Nid::ROOT
    }

    /// True if any inode has an extended attribute.
    pub fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    /// Number of inodes.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Where the tar begins in the layer file: the length of the metadata.
    pub fn tar_start(&self) -> u64 {
        self.tar_start
    }

    /// Length of the tar.
    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// Reads an inode.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if there is no inode at that nid, or it is damaged.
    pub fn inode(&self, nid: Nid) -> Result<Inode, ReadError> {
        let bad = |what| ReadError::Inode { nid, what };
        let at = nid.0.checked_mul(SLOT).ok_or_else(|| bad("outside the image"))?;
        let unaligned = at % BLOCK_SIZE + INODE_SIZE as u64 > BLOCK_SIZE;
        if nid < Nid::ROOT || at >= self.tar_start || unaligned {
            return Err(bad("not a place of inodes"));
        }
        let raw: [u8; INODE_SIZE] = fixed(self.metadata(), at)?;
        let fields = Fields(&raw);
        let inline = match fields.u16(0) {
            FORMAT_PLAIN => false,
            FORMAT_INLINE => true,
            _ => return Err(bad("unknown format")),
        };
        let (mode, size, start) = (fields.u16(4), fields.u64(8), fields.u32(16));
        let kind = Kind::from_mode(mode).ok_or_else(|| bad("unknown kind"))?;
        let mtime_nsec = fields.u32(40);
        if mtime_nsec >= 1_000_000_000 {
            return Err(bad("impossible time"));
        }
        let behind = at + INODE_SIZE as u64;
        let xattrs = behind..behind + xattr_bytes(fields.u16(2));
        let mut inode = Inode {
            nid,
            kind,
            permissions: mode & !mode::KIND,
            uid: fields.u32(24),
            gid: fields.u32(28),
            size,
            nlink: fields.u32(44),
            mtime: fields.i64(32),
            mtime_nsec,
            rdev: (0, 0),
            tar_range: None,
            data: 0..0,
            xattrs,
        };
        match kind {
            Kind::Regular if inline => return Err(bad("unknown format")),
            Kind::Regular if size > 0 => {
                let from = u64::from(start) * BLOCK_SIZE;
                let end =
                    from.checked_add(size).filter(|end| *end - self.tar_start.min(*end) <= self.tar_size);
                match end {
                    Some(end) if from >= self.tar_start => inode.tar_range = Some(from..end),
                    _ => return Err(bad("data outside the tar")),
                }
            }
            Kind::Directory | Kind::Symlink => {
                if size == 0 || (kind == Kind::Symlink && size > TARGET_MAX as u64) {
                    return Err(bad("impossible size"));
                }
                let from = if inline { inode.xattrs.end } else { u64::from(start) * BLOCK_SIZE };
                match from.checked_add(size) {
                    Some(end) if end <= self.tar_start => inode.data = from..end,
                    _ => return Err(bad("data outside the metadata")),
                }
            }
            Kind::CharDevice | Kind::BlockDevice => inode.rdev = decode_device(start),
            Kind::Regular | Kind::Fifo => {}
        }
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice | Kind::Fifo) && (size != 0 || inline) {
            return Err(bad("impossible size"));
        }
        if inode.xattrs.end > self.tar_start {
            return Err(bad("attributes outside the metadata"));
        }
        Ok(inode)
    }

    /// Finds a name in a directory; `.` and `..` are names, too.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if `directory` is none, or it is damaged.
    pub fn lookup(&self, directory: Nid, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        Directory::new(&self.inode(directory)?, self.metadata(), 0)?.find(name)
    }

    /// The entries of a directory, `.` and `..` among them, in byte order, from a cookie on.
    ///
    /// Cookie 0 is the beginning; others come from [`DirEntry::next_cookie`], and stay valid for the same image.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if `directory` is none. What is damaged in it is an error of the iterator, after which it ends.
    pub fn read_dir(&self, directory: Nid, cookie: u64) -> Result<Directory<'_>, ReadError> {
        Directory::new(&self.inode(directory)?, self.metadata(), cookie)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if `link` is none, or it is damaged.
    pub fn read_link(&self, link: Nid) -> Result<&[u8], ReadError> {
        let inode = self.inode(link)?;
        if inode.kind != Kind::Symlink {
            return Err(ReadError::NotASymlink { nid: link });
        }
        slice(self.metadata(), &inode.data)
    }

    /// The extended attributes of an inode, by name.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the inode is damaged. What is damaged in the attributes is an error of the iterator, after which
    /// it ends.
    pub fn xattrs(&self, nid: Nid) -> Result<Xattrs<'_>, ReadError> {
        let inode = self.inode(nid)?;
        Xattrs::new(nid, slice(self.metadata(), &inode.xattrs)?)
    }

    /// The value of one extended attribute, by its full name.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the inode or its attributes are damaged.
    pub fn xattr(&self, nid: Nid, name: &[u8]) -> Result<Option<&[u8]>, ReadError> {
        for xattr in self.xattrs(nid)? {
            let xattr = xattr?;
            if xattr.is(name) {
                return Ok(Some(xattr.value));
            }
        }
        Ok(None)
    }

    fn metadata(&self) -> &[u8] {
        let all = self.bytes.as_ref();
        usize::try_from(self.tar_start).ok().and_then(|end| all.get(..end)).unwrap_or(all)
    }
}

impl<B> fmt::Debug for Image<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("inodes", &self.inodes)
            .field("tar_start", &self.tar_start)
            .field("tar_size", &self.tar_size)
            .field("has_xattrs", &self.has_xattrs)
            .finish_non_exhaustive()
    }
}

impl Kind {
    fn from_mode(mode: u16) -> Option<Kind> {
        match mode & mode::KIND {
            mode::REGULAR => Some(Kind::Regular),
            mode::DIRECTORY => Some(Kind::Directory),
            mode::CHAR => Some(Kind::CharDevice),
            mode::BLOCK => Some(Kind::BlockDevice),
            mode::FIFO => Some(Kind::Fifo),
            mode::SYMLINK => Some(Kind::Symlink),
            _ => None,
        }
    }

    /// From a directory entry.
    fn from_file_type(file_type: u8) -> Option<Kind> {
        match file_type {
            1 => Some(Kind::Regular),
            2 => Some(Kind::Directory),
            3 => Some(Kind::CharDevice),
            4 => Some(Kind::BlockDevice),
            5 => Some(Kind::Fifo),
            7 => Some(Kind::Symlink),
            _ => None,
        }
    }
}

fn xattr_bytes(count: u16) -> u64 {
    match count.checked_sub(1) {
        Some(units) => XATTR_HEADER as u64 + u64::from(units) * 4,
        None => 0,
    }
}

/// Little-endian numbers at fixed offsets of a fixed piece. Offsets are constants inside the piece.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.bytes(at))
    }
}

/// A copy of a piece of fixed size.
fn fixed<const N: usize>(bytes: &[u8], at: u64) -> Result<[u8; N], ReadError> {
    let piece = slice(bytes, &(at..at.saturating_add(N as u64)))?;
    piece.try_into().map_err(|_| ReadError::Truncated { end: at.saturating_add(N as u64) })
}

fn slice<'a>(bytes: &'a [u8], range: &Range<u64>) -> Result<&'a [u8], ReadError> {
    let piece = match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) => bytes.get(start..end),
        _ => None,
    };
    piece.ok_or(ReadError::Truncated { end: range.end })
}
