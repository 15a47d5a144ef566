//! The only table from errors to error numbers. No wildcards: a new error does not compile until somebody picks its number.

use fuser::Errno;

/// Errors that the kernel can be told.
pub(super) trait ToErrno {
    /// The number for it.
    fn errno(&self) -> Errno;
}

impl ToErrno for erofs_image::ReadError {
    fn errno(&self) -> Errno {
        use erofs_image::ReadError::{
            Directory, Inode, NotADirectory, NotASymlink, NotAnImage, Truncated, Xattrs,
        };
        match self {
            NotADirectory { .. } => Errno::ENOTDIR,
            NotASymlink { .. } => Errno::EINVAL,
            // Our own file is damaged.
            NotAnImage { .. } | Truncated { .. } | Inode { .. } | Directory { .. } | Xattrs { .. } => {
                Errno::EIO
            }
        }
    }
}

impl ToErrno for lazy_layer::ReadError {
    fn errno(&self) -> Errno {
        use lazy_layer::ReadError::{
            Busy, Deadline, Digest, GivenUp, Header, Inflate, Io, Metadata, NoSource, NotAFile, Refused,
            Source,
        };
        match self {
            NotAFile { .. } => Errno::EINVAL,
            // Programs know what to do with EIO; "try again" or "timed out" from a read of a file they do not expect.
            Deadline { .. } | NoSource { .. } | Source { .. } | Busy { .. } | GivenUp { .. } => Errno::EIO,
            Metadata { .. } | Digest { .. } | Inflate { .. } | Header { .. } | Io { .. } | Refused => {
                Errno::EIO
            }
        }
    }
}
