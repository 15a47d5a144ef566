//! The layers of an image, one above the other, and the files that they make together.
//!
//! What a container sees is put together by the kernel; this is the same, from the layers' metadata, for who wants to know what will be read. A guess: layers
//! that are not lazy are not in it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use erofs_image::{Image, Inode, Kind};

use crate::layer::Layer;
use crate::mapping::Mapping;

/// As in the kernel.
const MAX_LINKS: usize = 40;
/// Longest path that is looked for, in names.
const MAX_DEPTH: usize = 256;
/// The attribute and the value that hide what is below a directory.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// See the module. It keeps no layer open.
#[derive(Debug)]
pub(crate) struct Stack {
    from_above: Vec<Weak<Layer>>,
}

/// A regular file of an image.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) layer: Arc<Layer>,
    pub(crate) inode: Inode,
    /// The directory that it is in, without links; not known of a file that was found by its inode.
    pub(crate) directory: Option<Vec<Vec<u8>>>,
}

enum Look {
    Found(Arc<Layer>, Inode),
    /// A higher layer hides what is below.
    Hidden,
    Absent,
}

impl Stack {
    pub(crate) fn new(from_above: &[Arc<Layer>]) -> Self {
        Self { from_above: from_above.iter().map(Arc::downgrade).collect() }
    }

    /// Whether it is made of these layers.
    pub(crate) fn is_of(&self, from_above: &[Arc<Layer>]) -> bool {
        self.from_above.len() == from_above.len()
            && self.from_above.iter().zip(from_above).all(|(a, b)| std::ptr::eq(a.as_ptr(), Arc::as_ptr(b)))
    }

    /// The regular file at `path`, which counts from `from` where it is relative.
    pub(crate) fn file(&self, from: &[Vec<u8>], path: &[u8]) -> Option<Found> {
        let mut at: Vec<Vec<u8>> = if path.starts_with(b"/") { Vec::new() } else { from.to_vec() };
        let mut left: VecDeque<Vec<u8>> = names(path).collect();
        let mut links = 0usize;
        while let Some(name) = left.pop_front() {
            if name == b".." {
                at.pop();
                continue;
            }
            at.push(name);
            if at.len() > MAX_DEPTH || left.len() > MAX_DEPTH {
                return None;
            }
            let (layer, inode) = self.exact(&at)?;
            match inode.kind {
                Kind::Directory => {}
                Kind::Regular if left.is_empty() => {
                    at.pop();
                    return Some(Found { layer, inode, directory: Some(at) });
                }
                Kind::Symlink if links < MAX_LINKS => {
                    links = links.saturating_add(1);
                    let target = layer.image().read_link(inode.nid).ok()?;
                    if target.starts_with(b"/") {
                        at.clear();
                    } else {
                        at.pop();
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

    /// What is at a path without links on the way.
    fn exact(&self, path: &[Vec<u8>]) -> Option<(Arc<Layer>, Inode)> {
        for layer in self.from_above.iter().filter_map(Weak::upgrade) {
            match look(&layer, path) {
                Look::Found(layer, inode) => return Some((layer, inode)),
                Look::Hidden => return None,
                Look::Absent => {}
            }
        }
        None
    }
}

/// The names of a path; `.` is none.
fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}

fn look(layer: &Arc<Layer>, path: &[Vec<u8>]) -> Look {
    let image: &Image<Mapping> = layer.image();
    let (mut at, mut hides) = (image.root(), false);
    let mut path = path.iter().peekable();
    while let Some(name) = path.next() {
        let absent = if hides { Look::Hidden } else { Look::Absent };
        let Ok(Some(nid)) = image.lookup(at, name) else { return absent };
        let Ok(inode) = image.inode(nid) else { return absent };
        // A whiteout, as overlayfs has them.
        if inode.kind == Kind::CharDevice && inode.rdev == (0, 0) {
            return Look::Hidden;
        }
        if path.peek().is_none() {
            return Look::Found(Arc::clone(layer), inode);
        }
        if inode.kind != Kind::Directory {
            return Look::Hidden;
        }
        hides = hides || image.xattr(nid, OPAQUE.0).is_ok_and(|value| value == Some(OPAQUE.1));
        at = nid;
    }
    Look::Absent
}
