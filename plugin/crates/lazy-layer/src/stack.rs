//! The layers of an image, one above the other, and the files that they make together.
//!
//! What a container sees is put together by the kernel; this is the same, from the layers' metadata, for who wants to know what will be read. A guess: layers
//! that are not lazy are not in it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use erofs_image::{Image, Inode, Kind, Nid};
use parking_lot::Mutex;

use crate::layer::Layer;
use crate::mapping::Mapping;
use crate::start::{Modules, Rank};

/// As in the kernel.
const MAX_LINKS: usize = 40;
/// Longest path that is looked for, in names.
pub(crate) const MAX_DEPTH: usize = 256;
/// Longest path, and longest target of a link, bytes.
const MAX_PATH: usize = 4096;
/// The attribute and the value that hide what is below a directory.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// See the module. It keeps no layer open.
#[derive(Debug)]
pub(crate) struct Stack {
    from_above: Vec<Weak<Layer>>,
    /// Where its programs look for modules.
    pub(crate) modules: Mutex<Modules>,
}

/// A regular file of an image.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) layer: Arc<Layer>,
    pub(crate) inode: Inode,
    /// Where it is, without links; not known of a file that was found by its inode.
    pub(crate) path: Option<Path>,
    /// When it is needed.
    pub(crate) rank: Rank,
}

/// Names from the root on.
pub(crate) type Path = Vec<Vec<u8>>;

/// A directory as the layers together show it: those of its layers that are seen, nearest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory(Vec<(Arc<Layer>, Nid)>);

/// How many more names may be looked up in directories of layers; then nothing is found any more.
#[derive(Debug)]
pub(crate) struct Lookups(AtomicUsize);

/// What a name in a directory is.
#[derive(Debug)]
pub(crate) enum Entry {
    Directory(Directory),
    /// Anything else.
    Other(Arc<Layer>, Inode),
}

impl Lookups {
    pub(crate) fn new(max: usize) -> Self {
        Self(AtomicUsize::new(max))
    }

    /// Whether one more may be done.
    pub(crate) fn take(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    pub(crate) fn are_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Found {
    /// The directory that it is in.
    pub(crate) fn directory(&self) -> Option<&[Vec<u8>]> {
        self.path.as_deref()?.split_last().map(|(_, directory)| directory)
    }

    pub(crate) fn name(&self) -> Option<&[u8]> {
        self.path.as_deref()?.last().map(Vec::as_slice)
    }
}

impl Stack {
    pub(crate) fn new(from_above: &[Arc<Layer>]) -> Self {
        Self { from_above: from_above.iter().map(Arc::downgrade).collect(), modules: Mutex::default() }
    }

    /// Whether it is made of these layers.
    pub(crate) fn is_of(&self, from_above: &[Arc<Layer>]) -> bool {
        self.from_above.len() == from_above.len()
            && self.from_above.iter().zip(from_above).all(|(a, b)| std::ptr::eq(a.as_ptr(), Arc::as_ptr(b)))
    }

    /// The regular file at `path`, which counts from `from` where it is relative; with its rank.
    pub(crate) fn file(&self, from: &[Vec<u8>], path: &[u8], rank: Rank, lookups: &Lookups) -> Option<Found> {
        let mut at: Path = if path.starts_with(b"/") { Vec::new() } else { from.to_vec() };
        let mut left: VecDeque<Vec<u8>> = names(path).collect();
        let mut directories = self.directories(&at, lookups)?;
        let mut links = 0usize;
        while let Some(name) = left.pop_front() {
            if name == b".." {
                if at.pop().is_some() {
                    directories.pop();
                }
                continue;
            }
            if at.len() >= MAX_DEPTH || left.len() > MAX_DEPTH {
                return None;
            }
            let (layer, inode) = match directories.last()?.entry(&name, lookups)? {
                Entry::Directory(directory) => {
                    at.push(name);
                    directories.push(directory);
                    continue;
                }
                Entry::Other(layer, inode) => (layer, inode),
            };
            match inode.kind {
                Kind::Regular if left.is_empty() => {
                    at.push(name);
                    let len = at.iter().map(|name| name.len().saturating_add(1)).sum::<usize>();
                    if len > MAX_PATH {
                        return None;
                    }
                    return Some(Found { layer, inode, path: Some(at), rank });
                }
                Kind::Symlink if links < MAX_LINKS => {
                    links = links.saturating_add(1);
                    let target =
                        layer.image().read_link(inode.nid).ok().filter(|target| target.len() <= MAX_PATH)?;
                    if target.starts_with(b"/") {
                        at.clear();
                        directories.truncate(1);
                    }
                    for name in names(target).rev() {
                        left.push_front(name);
                    }
                }
                _ => return None,
            }
        }
        None
    }

    /// The directory at a path without links on the way.
    pub(crate) fn directory(&self, path: &[Vec<u8>], lookups: &Lookups) -> Option<Directory> {
        self.directories(path, lookups)?.pop()
    }

    /// The root, and every directory on a path without links.
    fn directories(&self, path: &[Vec<u8>], lookups: &Lookups) -> Option<Vec<Directory>> {
        let layers = self.from_above.iter().filter_map(Weak::upgrade);
        let root = Directory(
            layers
                .map(|layer| {
                    let root = layer.image().root();
                    (layer, root)
                })
                .collect(),
        );
        let mut directories = vec![root];
        for name in path {
            match directories.last()?.entry(name, lookups)? {
                Entry::Directory(directory) => directories.push(directory),
                Entry::Other(..) => return None,
            }
        }
        Some(directories)
    }
}

impl Directory {
    /// What a name in it is, if anything.
    pub(crate) fn entry(&self, name: &[u8], lookups: &Lookups) -> Option<Entry> {
        let mut seen = Vec::new();
        for (layer, directory) in &self.0 {
            if !lookups.take() {
                return None;
            }
            let image: &Image<Mapping> = layer.image();
            let Ok(Some(nid)) = image.lookup(*directory, name) else { continue };
            let Ok(inode) = image.inode(nid) else { break };
            if inode.kind != Kind::Directory {
                // A file above ends what is merged; a whiteout, as overlayfs has them, is nothing.
                let is_whiteout = inode.kind == Kind::CharDevice && inode.rdev == (0, 0);
                if seen.is_empty() && !is_whiteout {
                    return Some(Entry::Other(Arc::clone(layer), inode));
                }
                break;
            }
            seen.push((Arc::clone(layer), nid));
            if image.xattr(nid, OPAQUE.0).is_ok_and(|value| value == Some(OPAQUE.1)) {
                break;
            }
        }
        (!seen.is_empty()).then_some(Entry::Directory(Self(seen)))
    }
}

/// The names of a path; `.` is none.
pub(crate) fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}
