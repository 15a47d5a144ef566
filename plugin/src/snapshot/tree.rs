//! The snapshots' directories: `<root>/snapshotter/snapshots/<id>/{fs,work}`.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Backend;
use super::record::{Id, Usage};
use crate::mountinfo::MountInfo;

/// Begins the name of a directory that is being made.
const STAGED: &str = "new-";
/// Type of the mounts that have a FUSE mount below them.
const FRONT_END: &[u8] = b"erofs";

/// All of them. Every call blocks on the disk.
#[derive(Debug)]
pub struct Tree {
    snapshots: PathBuf,
    staged: AtomicU64,
    /// Unmounts what may wait for this process; none in one that serves no mounts.
    backend: Option<Arc<dyn Backend>>,
}

/// A directory that has no number yet; removed unless it gets one.
#[derive(Debug)]
pub struct Staged<'a> {
    tree: &'a Tree,
    path: PathBuf,
    placed: bool,
}

// === impl Tree ===

impl Tree {
    /// Below the daemon's root, which is made (readable for root alone) where it is missing. What a daemon that died was making is removed.
    ///
    /// # Errors
    /// The system's.
    pub fn open(root: &Path) -> io::Result<Tree> {
        let snapshots = root.join("snapshotter/snapshots");
        DirBuilder::new().recursive(true).mode(0o700).create(&snapshots)?;
        // Mount tables and overlay's options show the real path.
        let tree = Tree { snapshots: snapshots.canonicalize()?, staged: AtomicU64::new(0), backend: None };
        for entry in fs::read_dir(&tree.snapshots)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(STAGED)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(tree)
    }

    /// The same for a process that serves mounts.
    #[must_use]
    pub fn with_backend(self, backend: Arc<dyn Backend>) -> Tree {
        Tree { backend: Some(backend), ..self }
    }

    /// Where the directories are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.snapshots
    }

    /// A snapshot's directory.
    #[must_use]
    pub fn directory(&self, id: Id) -> PathBuf {
        self.snapshots.join(id.0.to_string())
    }

    /// What containers see of it.
    #[must_use]
    pub fn fs(&self, id: Id) -> PathBuf {
        self.directory(id).join("fs")
    }

    /// overlay's scratch directory.
    #[must_use]
    pub fn work(&self, id: Id) -> PathBuf {
        self.directory(id).join("work")
    }

    /// Makes a directory for a snapshot; its top gets an owner and a group, root's if none is given.
    ///
    /// # Errors
    /// The system's.
    pub fn stage(&self, owner: Option<(u32, u32)>, writable: bool) -> io::Result<Staged<'_>> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let path = self.snapshots.join(format!("{STAGED}{}-{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        let staged = Staged { tree: self, path, placed: false };
        let top = staged.path.join("fs");
        DirBuilder::new().mode(0o755).create(&top)?;
        // Whatever the umask.
        fs::set_permissions(&top, Permissions::from_mode(0o755))?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::lchown(&top, Some(user), Some(group))?;
        }
        if writable {
            let work = staged.path.join("work");
            DirBuilder::new().mode(0o711).create(&work)?;
            fs::set_permissions(&work, Permissions::from_mode(0o711))?;
        }
        // overlay needs to pass through.
        fs::set_permissions(&staged.path, Permissions::from_mode(0o700))?;
        Ok(staged)
    }

    /// Sees to it that a snapshot has a directory, to be mounted at or (`writable`) written to. A row can be on the disk before its directory is: then a
    /// power cut takes that away.
    ///
    /// # Errors
    /// The system's.
    pub fn make_good(&self, id: Id, writable: bool) -> io::Result<()> {
        let always = [(self.directory(id), 0o700), (self.fs(id), 0o755)];
        for (path, mode) in always.into_iter().chain(writable.then(|| (self.work(id), 0o711))) {
            match DirBuilder::new().mode(mode).create(&path) {
                Ok(()) => fs::set_permissions(&path, Permissions::from_mode(mode))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Numbers of all directories there are.
    ///
    /// # Errors
    /// The system's.
    pub fn present(&self) -> io::Result<Vec<Id>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.snapshots)? {
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(Id(id));
            }
        }
        Ok(ids)
    }

    /// Removes a snapshot's directory, and whatever is still mounted in it. One that is gone already is no error.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, id: Id) -> io::Result<()> {
        let directory = self.directory(id);
        self.unmount_below(id)?;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Snapshots with something mounted at their `fs`.
    ///
    /// # Errors
    /// The system's.
    pub fn mounted(&self) -> io::Result<HashSet<Id>> {
        let mounts = MountInfo::all()?;
        let points = mounts.iter().map(|mount| mount.point.as_path());
        Ok(points.filter(|point| point.ends_with("fs")).filter_map(|point| self.owner(point)).collect())
    }

    /// Unmounts what is below the snapshots, as after a daemon that died, but for what is in the directories of `alive`. Returns how many
    /// mounts there were.
    ///
    /// # Errors
    /// The system's.
    pub fn unmount_dead(&self, alive: &HashSet<Id>) -> io::Result<usize> {
        self.unmount(|point| {
            point.starts_with(&self.snapshots) && !self.owner(point).is_some_and(|id| alive.contains(&id))
        })
    }

    /// Unmounts everything in a snapshot's directory.
    ///
    /// # Errors
    /// The system's.
    pub fn unmount_below(&self, id: Id) -> io::Result<usize> {
        let directory = self.directory(id);
        self.unmount(|point| point.starts_with(&directory))
    }

    /// Whose directory a path is in.
    fn owner(&self, path: &Path) -> Option<Id> {
        let mut below = path.strip_prefix(&self.snapshots).ok()?.components();
        below.next()?.as_os_str().to_str()?.parse().ok().map(Id)
    }

    fn unmount(&self, wanted: impl Fn(&Path) -> bool) -> io::Result<usize> {
        let mut mounts = MountInfo::all()?;
        mounts.retain(|mount| wanted(&mount.point));
        // The last mounted is on top.
        for mount in mounts.iter().rev() {
            if mount.kind == FRONT_END
                && let Some(backend) = &self.backend
            {
                backend.unmount_front_end(&mount.point)?;
                continue;
            }
            match rustix::mount::unmount(&mount.point, rustix::mount::UnmountFlags::DETACH) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(mounts.len())
    }

    /// What a snapshot's own files occupy: blocks on disk, each inode once.
    ///
    /// # Errors
    /// The system's; files that go away meanwhile are no error.
    pub fn usage(&self, id: Id) -> io::Result<Usage> {
        let mut usage = Usage::default();
        let mut seen = HashSet::new();
        let mut waiting = vec![self.fs(id)];
        while let Some(path) = waiting.pop() {
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            usage.inodes = usage.inodes.saturating_add(1);
            usage.bytes = usage.bytes.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                match fs::read_dir(&path) {
                    Ok(entries) => {
                        for entry in entries {
                            waiting.push(entry?.path());
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(usage)
    }
}

// === impl Staged ===

impl Staged<'_> {
    /// Gives it its number and so its place.
    ///
    /// # Errors
    /// The system's.
    pub fn place(mut self, id: Id) -> io::Result<()> {
        fs::rename(&self.path, self.tree.directory(id))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // The next start removes what stays.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_get_their_place_or_go() {
        let root = tempfile::tempdir().unwrap();
        let tree = Tree::open(root.path()).unwrap();
        tree.stage(None, true).unwrap().place(Id(1)).unwrap();
        drop(tree.stage(Some((0, 0)), false).unwrap());
        assert_eq!(tree.present().unwrap(), [Id(1)]);
        assert_eq!(fs::metadata(tree.fs(Id(1))).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(tree.work(Id(1))).unwrap().mode() & 0o7777, 0o711);
        assert_eq!(fs::metadata(tree.path()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 1);
        fs::create_dir(tree.path().join("new-left-behind")).unwrap();
        Tree::open(root.path()).unwrap();
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 1);
        tree.remove(Id(1)).unwrap();
        tree.remove(Id(1)).unwrap();
        assert!(tree.present().unwrap().is_empty());
    }

    #[test]
    fn usage_counts_each_inode_once() {
        let root = tempfile::tempdir().unwrap();
        let tree = Tree::open(root.path()).unwrap();
        tree.stage(None, true).unwrap().place(Id(1)).unwrap();
        let empty = tree.usage(Id(1)).unwrap();
        fs::write(tree.fs(Id(1)).join("a"), vec![1; 10_000]).unwrap();
        fs::hard_link(tree.fs(Id(1)).join("a"), tree.fs(Id(1)).join("b")).unwrap();
        let full = tree.usage(Id(1)).unwrap();
        assert_eq!(full.inodes, empty.inodes + 1);
        assert!((10_000..40_000).contains(&(full.bytes - empty.bytes)), "{full:?} {empty:?}");
    }

    #[test]
    fn a_mount_point_has_an_owner() {
        let root = tempfile::tempdir().unwrap();
        let tree = Tree::open(root.path()).unwrap();
        assert_eq!(tree.owner(&tree.fs(Id(12))), Some(Id(12)));
        assert_eq!(tree.owner(&tree.directory(Id(12)).join("other/deep")), Some(Id(12)));
        assert_eq!(tree.owner(&tree.path().join("new-1/fs")), None);
        assert_eq!(tree.owner(tree.path()), None);
        assert_eq!(tree.owner(Path::new("/12/fs")), None);
    }
}
