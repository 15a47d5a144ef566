//! Inode numbers and attributes as the kernel wants them.
//!
//! | FUSE | what |
//! |---|---|
//! | 1 | the root, nid 48 ([`Nid::ROOT`]) of the layer file |
//! | 2, 3 | directory and file of the state ([`state_file`](super::state_file)) |
//! | 4 | the layer file itself, for the kernel front end |
//! | 49 … | the nid of the layer file |
//!
//! No inode has a nid below 48, so nothing collides.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use erofs_image::{Inode, Kind, Nid};
use fuser::{FileAttr, FileType, INodeNo};

/// Number of the state file's directory.
pub(super) const STATE_DIRECTORY: INodeNo = INodeNo(2);
/// Number of the state file.
pub(super) const STATE_FILE: INodeNo = INodeNo(3);
/// Number of the hidden layer file.
pub(super) const LAYER_FILE: INodeNo = INodeNo(4);

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Layer(Nid),
    StateDirectory,
    StateFile,
    LayerFile,
}

impl Node {
    pub(super) fn of(number: INodeNo) -> Node {
        match number {
            INodeNo::ROOT => Node::Layer(Nid::ROOT),
            STATE_DIRECTORY => Node::StateDirectory,
            STATE_FILE => Node::StateFile,
            LAYER_FILE => Node::LayerFile,
            // Numbers that do not exist have no inode in the layer file either.
            INodeNo(nid) => Node::Layer(Nid(nid)),
        }
    }
}

pub(super) fn number(nid: Nid) -> INodeNo {
    if nid == Nid::ROOT { INodeNo::ROOT } else { INodeNo(nid.0) }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Regular => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Symlink => FileType::Symlink,
    }
}

pub(super) fn attributes(inode: &Inode) -> FileAttr {
    let mtime = time(inode.mtime, inode.mtime_nsec);
    let (major, minor) = inode.rdev;
    FileAttr {
        ino: number(inode.nid),
        size: inode.size,
        blocks: inode.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(inode.kind),
        perm: inode.permissions,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        // Linux's new_encode_dev; the image has no bigger numbers.
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes of what the image does not have.
pub(super) fn own(
    number: INodeNo,
    kind: FileType,
    permissions: u16,
    size: u64,
    mtime: SystemTime,
) -> FileAttr {
    FileAttr {
        ino: number,
        size,
        blocks: size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind,
        perm: permissions,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// A time before or after 1970; seconds are rounded down.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    time.and_then(|time| time.checked_add(Duration::from_nanos(u64::from(nanoseconds)))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(1, 5), UNIX_EPOCH + Duration::new(1, 5));
        assert_eq!(time(-2, 500_000_000), UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!(time(-62_135_596_800, 0), UNIX_EPOCH - Duration::from_secs(62_135_596_800));
        for seconds in [i64::MIN, i64::MAX] {
            time(seconds, 999_999_999);
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(Node::of(number(Nid::ROOT)), Node::Layer(Nid::ROOT));
        assert_eq!(Node::of(number(Nid(50))), Node::Layer(Nid(50)));
        const { assert!(LAYER_FILE.0 < Nid::ROOT.0) };
    }
}
