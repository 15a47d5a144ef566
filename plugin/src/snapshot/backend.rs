//! What the snapshot verbs need from the rest of the daemon, so that they can be tested without a kernel and a registry.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use lazy_layer::{Layer, LayerStatus};

use super::labels::LayerRequest;
use super::record::{Id, LazyRecord};

/// Makes layers appear.
pub trait Backend: Debug + Send + Sync + 'static {
    /// Tries to mount a layer lazily at `at`, the directory of snapshot `id`. Ends within the deadlines of the configuration, and holds nothing meanwhile. `below` are its lazy
    /// ancestors, nearest first.
    fn mount(&self, asked: Asked, id: Id, at: PathBuf, below: Vec<Arc<Layer>>)
    -> BoxFuture<'static, Attempt>;

    /// A container is about to start on these layers, the uppermost first.
    fn starts(&self, from_above: &[Arc<Layer>]);

    /// Perhaps a container runs now whose own snapshot this is, by its key here, on these layers, the uppermost first. Waits for nothing.
    fn runs(&self, namespace: Option<&str>, key: &str, from_above: &[Arc<Layer>]);

    /// Unpacks a layer into the directory `at`, with its ancestors (nearest first) as a source of attributes for directories that
    /// the layer does not mention. Ends within its deadline. Whatever was unpacked before a failure is removed again.
    fn unpack(&self, asked: Asked, lower: Vec<Below>, at: PathBuf) -> BoxFuture<'static, Result<(), String>>;

    /// Mounts a layer that was mounted in an earlier life, from local state if that is there.
    fn remount(
        &self,
        lazy: LazyRecord,
        id: Id,
        at: PathBuf,
    ) -> BoxFuture<'static, Result<Box<dyn LazyMount>, String>>;

    /// The mounts that an earlier life of the daemon left, and that can be gone on with. Each is to be resumed or dropped.
    fn kept(&self) -> Vec<KeptLayer>;

    /// Goes on with one of them, whose directory is or was `at`.
    fn resume(
        &self,
        slot: Slot,
        sight: Sight,
        at: PathBuf,
    ) -> BoxFuture<'static, Result<Box<dyn LazyMount>, String>>;

    /// Ends one of them: whoever still uses it gets errors.
    fn drop_kept(&self, slot: Slot);

    /// Unmounts a kernel front end that is mounted at `at`, or takes it out of sight. Blocking, within a deadline: not in this process, which may be who
    /// has to answer what that waits for.
    ///
    /// # Errors
    /// It is still mounted.
    fn unmount_front_end(&self, at: &Path) -> io::Result<()>;

    /// Keeps what there is of a layer where it is, until the pin is dropped: its mount is about to be gone on with or made anew.
    fn pin(&self, lazy: &LazyRecord) -> Pin;

    /// Lets go of everything that is kept for layers other than these and those that are pinned. Blocking.
    fn sweep(&self, keep: &[LazyRecord]);
}

/// What is done when nobody uses a mount any more.
pub type Then = Box<dyn FnOnce() + Send>;

/// See [`Backend::pin`].
pub type Pin = Box<dyn Any + Send>;

/// Which of [`Backend::kept`]. A later one was made later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub usize);

/// Whether a mount is still where it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It is.
    Seen,
    /// It was taken away while somebody used it.
    Unseen,
}

/// A mount that an earlier life of the daemon left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLayer {
    /// Its number.
    pub slot: Slot,
    /// Its snapshot.
    pub id: Id,
    /// What it was made from.
    pub lazy: LazyRecord,
    /// Not so if the daemon died while it made it.
    pub ready: bool,
}

/// A layer, and who wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// containerd namespace; none where it cannot be known.
    pub namespace: Option<String>,
    /// The layer.
    pub layer: LayerRequest,
}

/// What came of trying to mount a layer.
#[derive(Debug)]
pub enum Attempt {
    /// There it is.
    Mounted(LazyRecord, Box<dyn LazyMount>),
    /// The image has an index, and this layer is not in it.
    NoZtoc(String),
    /// The image has no index.
    NoIndex(String),
    /// Whether it has one could not be found out in time.
    NoAnswer(String),
    /// The index is there but its layer cannot be mounted; nothing was.
    Failed(String),
    /// The kernel did not answer in time: what happens to the directory is not known any more.
    Stuck(String),
}

/// A layer below one that is unpacked.
#[derive(Clone, Debug)]
pub enum Below {
    /// It is in a directory.
    Directory(PathBuf),
    /// It is mounted lazily.
    Lazy(Arc<dyn Directories>),
}

/// The directories of a lazily mounted layer, from memory. The daemon asks nothing of its own mounts: killed while it waits for its own answer, it
/// could not end, and no successor could start.
pub trait Directories: Debug + Send + Sync {
    /// What a directory looks like; an empty path is the top. None if there is none, or a symbolic link is on the way.
    fn look(&self, path: &[Vec<u8>]) -> Option<Look>;
}

/// What a directory looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions, with setuid, setgid and sticky bits.
    pub mode: u32,
}

/// What containers read a layer through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// The FUSE mount.
    Fuse,
    /// EROFS, whose bytes come by way of the FUSE mount.
    KernelOverFuse,
    /// EROFS on the local layer file: nothing of the daemon is needed any more.
    Local,
}

/// A layer that is mounted. Dropping it without [`LazyMount::unmount`] leaves the mount to the next start.
pub trait LazyMount: Debug + Send {
    /// Unmounts it. `then` is called when its last user has gone, at the latest when the process ends. Blocking.
    ///
    /// # Errors
    /// In words, for the log.
    fn unmount(self: Box<Self>, then: Then) -> Result<(), String>;

    /// Leaves it to whoever still uses it; it ends with the last one, and `then` is called.
    fn leave(self: Box<Self>, then: Then);

    /// How far it is: to be counted when nothing is held.
    fn status(&self) -> Box<dyn FnOnce() -> LayerStatus + Send>;

    /// What containers are to have as lower directory, where that is not what the layer is mounted at.
    fn lower(&self) -> Option<&Path> {
        None
    }

    /// Its file. None where there is none.
    fn layer(&self) -> Option<&Arc<Layer>> {
        None
    }

    /// Its directories. None where they are not known.
    fn directories(&self) -> Option<Arc<dyn Directories>> {
        None
    }

    /// Which file system that is.
    fn front_end(&self) -> FrontEnd {
        FrontEnd::Fuse
    }
}

// === impl FrontEnd ===

impl FrontEnd {
    /// As a status report says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FrontEnd::Fuse => "fuse",
            FrontEnd::KernelOverFuse => "kernel over fuse",
            FrontEnd::Local => "local",
        }
    }
}
