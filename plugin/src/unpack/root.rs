//! A directory that nothing gets out of: every path of an image is resolved by the kernel with the directory as its root (`openat2(2)` with
//! `RESOLVE_IN_ROOT`), so neither `..` nor a symbolic link that the image made leads elsewhere.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use crate::snapshot::{Below, Directories, Look};

/// Directories that an image may nest: as deep as a path can be long.
const MAX_DEPTH: usize = 2048;

/// The directory, and the directories of the layers below, which say how directories look that the layer does not mention.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    lower: Vec<Model>,
}

/// A layer below.
#[derive(Debug)]
enum Model {
    Directory(OwnedFd),
    Lazy(Arc<dyn Directories>),
}

/// A cleaned path inside an image: no empty part, no `.`, no `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    parts: Vec<Vec<u8>>,
}

/// A name in a directory that is open.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: Vec<u8>,
}

// === impl Inside ===

impl Inside {
    /// The root itself.
    pub(super) const TOP: Inside = Inside { parts: Vec::new() };

    /// As if the root were `/`: `..` stops there. `None` where the path is too deep to be meant.
    pub(super) fn of(path: &[u8]) -> Option<Inside> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                _ if part.contains(&0) || parts.len() == MAX_DEPTH => return None,
                _ => parts.push(part.to_vec()),
            }
        }
        Some(Inside { parts })
    }

    /// The last part and what is before it; `None` for the root itself.
    pub(super) fn split(&self) -> Option<(Inside, &[u8])> {
        let (name, parents) = self.parts.split_last()?;
        Some((Inside { parts: parents.to_vec() }, name))
    }

    /// Relative to the root, which is `.`.
    pub(super) fn path(&self) -> PathBuf {
        if self.parts.is_empty() {
            return PathBuf::from(".");
        }
        self.parts.iter().map(|part| OsStr::from_bytes(part)).collect()
    }

    fn first(&self, parts: usize) -> Inside {
        Inside { parts: self.parts.iter().take(parts).cloned().collect() }
    }
}

// === impl Root ===

impl Root {
    /// Opens the directory. Lower ones that cannot be opened are left out: they only lend attributes.
    pub(super) fn open(directory: &Path, lower: &[Below]) -> io::Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |path: &Path| rustix::fs::openat(CWD, path, flags, Mode::empty());
        Ok(Root {
            directory: open(directory)?,
            lower: lower
                .iter()
                .filter_map(|below| {
                    Some(match below {
                        Below::Directory(path) => Model::Directory(open(path).ok()?),
                        Below::Lazy(directories) => Model::Lazy(Arc::clone(directories)),
                    })
                })
                .collect(),
        })
    }

    /// The root itself.
    pub(super) fn top(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Where `path` is to be made, its parents being there afterwards; `None` for the root itself.
    pub(super) fn place(&self, path: &Inside) -> io::Result<Option<Place>> {
        let Some((parents, name)) = path.split() else { return Ok(None) };
        Ok(Some(Place { parent: self.directory(&parents)?, name: name.to_vec() }))
    }

    /// The directory at `path`, made where it is missing.
    pub(super) fn directory(&self, path: &Inside) -> io::Result<OwnedFd> {
        match resolve(&self.directory, path) {
            Err(Errno::NOENT) => {}
            found => return Ok(found?),
        }
        let mut parent = resolve(&self.directory, &path.first(0))?;
        for (number, part) in path.parts.iter().enumerate() {
            let prefix = path.first(number.saturating_add(1));
            parent = match resolve(&self.directory, &prefix) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&parent, part.as_slice(), Mode::from_raw_mode(0o755))?;
                    let made = resolve(&self.directory, &prefix)?;
                    self.dress(&made, &prefix)?;
                    made
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(parent)
    }

    /// Gives a directory that the layer does not mention the owner and mode that it has in the layers below.
    fn dress(&self, made: &OwnedFd, path: &Inside) -> io::Result<()> {
        let found = self.lower.iter().find_map(|lower| lower.look(path));
        let look = found.unwrap_or(Look { uid: 0, gid: 0, mode: 0o755 });
        let path = self_path(made);
        std::os::unix::fs::chown(&path, Some(look.uid), Some(look.gid))?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(look.mode))?;
        Ok(())
    }
}

// === impl Model ===

impl Model {
    fn look(&self, path: &Inside) -> Option<Look> {
        match self {
            Model::Directory(directory) => {
                let stat = rustix::fs::fstat(resolve(directory, path).ok()?).ok()?;
                Some(Look { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 })
            }
            Model::Lazy(directories) => directories.look(&path.parts),
        }
    }
}

/// Opens a directory inside another; the kernel sees to it that it is inside.
fn resolve(root: &OwnedFd, path: &Inside) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = path.path();
    // "Again" says that something else was renamed meanwhile.
    for _ in 0..16 {
        match rustix::fs::openat2(root, &path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

fn self_path(descriptor: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

// === impl Place ===

impl Place {
    /// What is there; a symbolic link is itself.
    pub(super) fn stat(&self) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.parent, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what is there, a directory with everything in it.
    pub(super) fn clear(&self) -> io::Result<()> {
        remove(self.parent.as_fd(), &self.name, 0)
    }

    /// A path for calls that take nothing else; its last part is not followed by those that do not follow links.
    pub(super) fn path(&self) -> PathBuf {
        self_path(&self.parent).join(OsStr::from_bytes(&self.name))
    }

    /// Sets an extended attribute; a file system without them is no error.
    pub(super) fn set_xattr(&self, name: &[u8], value: &[u8]) -> io::Result<()> {
        match rustix::fs::lsetxattr(self.path(), name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn remove(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) if depth < MAX_DEPTH => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    empty(directory.as_fd(), depth)?;
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Removes everything in a directory.
fn empty(directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            remove(directory, name, depth.saturating_add(1))?;
        }
    }
    Ok(())
}

/// Removes everything in the directory at `path`, and brings its attributes back to those of a new one.
pub(super) fn empty_at(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    empty(directory.as_fd(), 0)?;
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        // Most often there is none.
        let _ = rustix::fs::fremovexattr(&directory, name);
    }
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755))?;
    Ok(())
}

/// Whether a stat is of a whiteout.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether a stat is of a directory.
pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}
