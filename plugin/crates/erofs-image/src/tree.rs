//! The files of a layer as a tree, by the rules of OCI layers.

mod error;
mod path;

use std::collections::BTreeMap;

use crate::layout::{self, NAME_MAX, TARGET_MAX, XATTR_ENTRY, XATTR_HEADER};
pub use error::TreeError;
use path::Name;

/// Nodes and names that a tree may have: far above any real layer, and a bound on what a hostile file table can cost.
const MAX_NODES: usize = 4 << 20;
/// Longest cleaned path (Linux's `PATH_MAX`): bounds how many directories one name can invent.
const MAX_PATH: usize = 4096;
/// Largest extended attributes of one inode: what a 16-bit count of four-byte units can say.
const MAX_XATTRS: usize = XATTR_HEADER + 4 * (u16::MAX as usize - 1);
/// Name of the attribute that makes a directory hide those of the layers below.
pub(crate) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// What overlayfs believes of its layers, by the name of the attribute.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// A node of the tree that [`TreeBuilder`] builds.
///
/// An entry that leaves no node (a whiteout beside a file of that name, `.wh..wh..opq`) has an id all the same, for
/// which [`NewImage::nid`](crate::NewImage::nid) knows no nid.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// Of an entry that has no node.
    const NONE: NodeId = NodeId(u32::MAX);

    pub(crate) fn index(self) -> usize {
        // A tree has at most MAX_NODES nodes; what is not one of them is found nowhere.
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Full name: `security.capability`.
    pub name: Vec<u8>,
    /// Value, up to 65535 bytes.
    pub value: Vec<u8>,
}

/// What all kinds of nodes have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky; other bits are ignored.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970, may be negative.
    pub mtime: i64,
    /// Nanoseconds of the modification time, below 10⁹.
    pub mtime_nsec: u32,
    /// Extended attributes; of two with one name the later counts.
    pub xattrs: Vec<Xattr>,
}

/// What kind of node it is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Directory.
    Directory,
    /// Regular file.
    Regular {
        /// Offset of the data in the tar, a multiple of 512.
        tar_offset: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Symbolic link to that target, 1 to 4095 bytes.
    Symlink(Vec<u8>),
    /// Character device.
    CharDevice {
        /// Below 2¹².
        major: u32,
        /// Below 2²⁰.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Below 2¹².
        major: u32,
        /// Below 2²⁰.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
}

#[derive(Debug)]
pub(crate) enum Kind<'a> {
    /// Children by name, in byte order.
    Directory {
        children: BTreeMap<&'a [u8], NodeId>,
        opaque: bool,
    },
    Regular {
        tar_offset: u64,
        size: u64,
    },
    Symlink(Vec<u8>),
    /// Encoded device numbers.
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    /// Hides a file of the layers below. Differs from a 0/0 device only in that any file of that name replaces it.
    Whiteout,
}

#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) attributes: Attributes,
    pub(crate) kind: Kind<'a>,
}

/// Builds a [`Tree`] from a layer's entries, in their order. Names are borrowed from them.
///
/// * Names are cleaned: leading and double slashes and `.` go, `..` removes what stands before it and stops at the
///   root. An entry for the root sets its attributes.
/// * Missing parents are directories 0755 of root, time 0.
/// * A directory that comes again gets the new attributes and keeps its children; anything else is replaced.
/// * `.wh.NAME` becomes a character device 0/0 `NAME` without permissions. Whiteouts hide only what lower layers
///   have: a file of this layer with that name wins, in whatever order they come, and a directory becomes opaque.
/// * `.wh..wh..opq` makes its directory opaque: attribute `trusted.overlay.opaque`, value `y`.
/// * Other names that begin with `.wh..wh.` are AUFS' own books. They are left out, but hard links may lead there.
/// * Attributes `trusted.overlay.…` and `user.overlay.…` are left out (an image must not steer overlayfs), and so are those that
///   Linux' file systems refuse (`com.apple.…`). Other `trusted.…` ones stay, as a tar extraction by root keeps them.
#[derive(Debug)]
pub struct TreeBuilder<'a> {
    nodes: Vec<Node<'a>>,
    /// Names in all directories: hard links are bounded, too.
    names: usize,
    root: NodeId,
    /// Root of what AUFS left behind; never written.
    aufs: NodeId,
    /// The directory that the last entry stands in, and what led there, as it was written: most entries of a tar stand beside the one before. Whatever
    /// takes its place stands in its parent, which is here then.
    recent: Option<(&'a [u8], NodeId)>,
}

/// The finished tree.
#[derive(Debug)]
pub struct Tree<'a> {
    pub(crate) nodes: Vec<Node<'a>>,
    pub(crate) root: NodeId,
}

impl Default for TreeBuilder<'_> {
    fn default() -> Self {
        TreeBuilder::new()
    }
}

impl<'a> TreeBuilder<'a> {
    /// An empty tree: a root directory 0755 of root.
    pub fn new() -> Self {
        TreeBuilder {
            nodes: vec![implicit_directory(), implicit_directory()],
            names: 0,
            root: NodeId(0),
            aufs: NodeId(1),
            recent: None,
        }
    }

    /// Adds a file of any kind but a hard link.
    ///
    /// # Errors
    ///
    /// [`TreeError`] if the entry cannot be part of a tree. The tree may have got missing parents by then.
    pub fn add(
        &mut self,
        path: &'a [u8],
        mut attributes: Attributes,
        content: Content,
    ) -> Result<NodeId, TreeError> {
        check_attributes(path, &mut attributes)?;
        let Some((directory, name)) = self.place(path)? else {
            if content != Content::Directory {
                return Err(TreeError::RootNotDirectory { path: lossy(path) });
            }
            if let Some(root) = self.nodes.get_mut(self.root.index()) {
                root.attributes = attributes;
            }
            return Ok(self.root);
        };
        match name {
            Name::Opaque => {
                self.make_opaque(directory);
                Ok(NodeId::NONE)
            }
            Name::Whiteout(hidden) => self.white_out(directory, hidden, attributes),
            Name::Plain(name) | Name::Aufs(name) => {
                let kind = kind(path, content)?;
                self.put(directory, name, Node { attributes, kind })
            }
        }
    }

    /// Adds another name for a file that is already there and not a directory.
    ///
    /// The attributes of a hard link's own entry do not count: there is one inode.
    ///
    /// # Errors
    ///
    /// [`TreeError`] if the target is missing or a directory, or as in [`add`](TreeBuilder::add).
    pub fn hard_link(&mut self, path: &'a [u8], target: &[u8]) -> Result<NodeId, TreeError> {
        let found = self.find(&path::clean(target)?);
        let Some((directory, name)) = self.place(path)? else {
            return Err(TreeError::RootNotDirectory { path: lossy(path) });
        };
        match name {
            Name::Opaque => {
                self.make_opaque(directory);
                Ok(NodeId::NONE)
            }
            Name::Whiteout(hidden) => self.white_out(directory, hidden, Attributes::default()),
            Name::Plain(name) | Name::Aufs(name) => {
                let missing = || TreeError::MissingTarget { path: lossy(path), target: lossy(target) };
                let id = found.ok_or_else(missing)?;
                match self.nodes.get(id.index()).map(|node| &node.kind) {
                    None | Some(Kind::Whiteout) => Err(missing()),
                    Some(Kind::Directory { .. }) => {
                        Err(TreeError::DirectoryTarget { path: lossy(path), target: lossy(target) })
                    }
                    Some(_) => {
                        self.name(directory, name, id)?;
                        Ok(id)
                    }
                }
            }
        }
    }

    /// Whether that is a regular file, by the rules above: an entry that is one may have become a whiteout, or nothing.
    pub fn is_regular(&self, node: NodeId) -> bool {
        self.nodes.get(node.index()).is_some_and(|node| matches!(node.kind, Kind::Regular { .. }))
    }

    /// The finished tree.
    pub fn finish(self) -> Tree<'a> {
        Tree { nodes: self.nodes, root: self.root }
    }

    /// The directory that a path leads to, made as far as it is missing, and what the path means there; None for the root itself.
    fn place(&mut self, path: &'a [u8]) -> Result<Option<(NodeId, Name<'a>)>, TreeError> {
        let split = path::split(path);
        if let (Some((parents, name)), Some((recent, directory))) = (split, self.recent)
            && parents == recent
        {
            return Ok(Some((directory, Name::Plain(name))));
        }
        let components = path::clean(path)?;
        let Some((name, parents)) = components.split_last() else { return Ok(None) };
        let name = path::classify(name).ok_or_else(|| TreeError::InvalidName { path: lossy(path) })?;
        let hidden = path::is_aufs(parents, &name);
        let directory = self.directory(path, parents, hidden)?;
        self.recent = split.map(|(parents, _)| (parents, directory));
        Ok(Some((directory, name)))
    }

    /// The directory at `parents`, made as far as it is missing.
    fn directory(&mut self, path: &[u8], parents: &[&'a [u8]], hidden: bool) -> Result<NodeId, TreeError> {
        let mut at = if hidden { self.aufs } else { self.root };
        for name in parents {
            let child = self.children(at).and_then(|children| children.get(*name).copied());
            let kind = child.and_then(|id| self.nodes.get(id.index())).map(|node| &node.kind);
            at = match (child, kind) {
                (Some(id), Some(Kind::Directory { .. })) => id,
                (None, _) | (_, Some(Kind::Whiteout)) => self.put(at, name, implicit_directory())?,
                _ => return Err(TreeError::ParentNotDirectory { path: lossy(path) }),
            };
        }
        Ok(at)
    }

    /// The node at a cleaned path.
    fn find(&self, components: &[&[u8]]) -> Option<NodeId> {
        let Some((name, parents)) = components.split_last() else { return Some(self.root) };
        let hidden = path::classify(name).is_some_and(|name| path::is_aufs(parents, &name));
        let root = if hidden { self.aufs } else { self.root };
        components.iter().try_fold(root, |at, name| self.children(at)?.get(*name).copied())
    }

    fn children(&self, directory: NodeId) -> Option<&BTreeMap<&'a [u8], NodeId>> {
        match &self.nodes.get(directory.index())?.kind {
            Kind::Directory { children, .. } => Some(children),
            _ => None,
        }
    }

    /// Puts a node into a directory, by the rules for what already has the name.
    fn put(&mut self, directory: NodeId, name: &'a [u8], mut node: Node<'a>) -> Result<NodeId, TreeError> {
        if matches!(node.kind, Kind::Directory { .. })
            && let Some(id) = self.children(directory).and_then(|children| children.get(name).copied())
            && let Kind::Directory { opaque, .. } = &mut node.kind
        {
            match self.nodes.get_mut(id.index()) {
                Some(Node { attributes, kind: Kind::Directory { .. } }) => {
                    *attributes = node.attributes;
                    return Ok(id);
                }
                // What lower layers have under this name stays hidden, so nothing of it may shine through.
                Some(Node { kind: Kind::Whiteout, .. }) => *opaque = true,
                _ => {}
            }
        }
        let id = match u32::try_from(self.nodes.len()) {
            Ok(id) if self.nodes.len() < MAX_NODES => NodeId(id),
            _ => return Err(TreeError::TooManyNodes { limit: MAX_NODES }),
        };
        self.nodes.push(node);
        self.name(directory, name, id)?;
        Ok(id)
    }

    fn white_out(
        &mut self,
        directory: NodeId,
        name: &'a [u8],
        attributes: Attributes,
    ) -> Result<NodeId, TreeError> {
        let existing = self.children(directory).and_then(|children| children.get(name).copied());
        match existing.and_then(|id| self.nodes.get_mut(id.index())).map(|node| &mut node.kind) {
            Some(Kind::Directory { opaque, .. }) => *opaque = true,
            None | Some(Kind::Whiteout) => {
                let attributes = Attributes { permissions: 0, xattrs: Vec::new(), ..attributes };
                return self.put(directory, name, Node { attributes, kind: Kind::Whiteout });
            }
            Some(_) => {}
        }
        Ok(NodeId::NONE)
    }

    fn make_opaque(&mut self, directory: NodeId) {
        if let Some(Node { kind: Kind::Directory { opaque, .. }, .. }) = self.nodes.get_mut(directory.index())
        {
            *opaque = true;
        }
    }

    fn name(&mut self, directory: NodeId, name: &'a [u8], id: NodeId) -> Result<(), TreeError> {
        if self.names >= MAX_NODES {
            return Err(TreeError::TooManyNodes { limit: MAX_NODES });
        }
        self.names += 1;
        if let Some(Node { kind: Kind::Directory { children, .. }, .. }) =
            self.nodes.get_mut(directory.index())
        {
            children.insert(name, id);
        }
        Ok(())
    }
}

fn implicit_directory() -> Node<'static> {
    let attributes = Attributes { permissions: 0o755, ..Attributes::default() };
    Node { attributes, kind: Kind::Directory { children: BTreeMap::new(), opaque: false } }
}

fn kind(path: &[u8], content: Content) -> Result<Kind<'static>, TreeError> {
    let device = |major, minor| {
        let number = || TreeError::DeviceNumber { path: lossy(path), major, minor };
        layout::encode_device(major, minor).ok_or_else(number)
    };
    Ok(match content {
        Content::Directory => Kind::Directory { children: BTreeMap::new(), opaque: false },
        Content::Regular { tar_offset, size } => Kind::Regular { tar_offset, size },
        Content::Symlink(target) if target.is_empty() || target.len() > TARGET_MAX => {
            return Err(TreeError::TargetLength { path: lossy(path), length: target.len() });
        }
        Content::Symlink(target) if target.contains(&0) => {
            return Err(TreeError::InvalidName { path: lossy(path) });
        }
        Content::Symlink(target) => Kind::Symlink(target),
        Content::CharDevice { major, minor } => Kind::CharDevice(device(major, minor)?),
        Content::BlockDevice { major, minor } => Kind::BlockDevice(device(major, minor)?),
        Content::Fifo => Kind::Fifo,
    })
}

/// Checks attributes, drops the extended ones that an image must not have, and sorts the rest.
fn check_attributes(path: &[u8], attributes: &mut Attributes) -> Result<(), TreeError> {
    attributes.permissions &= 0o7777;
    if attributes.mtime_nsec >= 1_000_000_000 {
        return Err(TreeError::Time { path: lossy(path), nanoseconds: attributes.mtime_nsec });
    }
    let xattrs = &mut attributes.xattrs;
    if xattrs.is_empty() {
        return Ok(());
    }
    xattrs.retain(|xattr| {
        !OVERLAY.iter().any(|own| xattr.name.starts_with(own))
            && layout::split_xattr_name(&xattr.name).is_some()
    });
    // The last of several comes first, then goes its own way.
    xattrs.reverse();
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    xattrs.dedup_by(|later, kept| later.name == kept.name);
    let mut total = XATTR_HEADER;
    for xattr in xattrs.iter() {
        total = total.saturating_add(xattr_size(xattr));
        let suffix = layout::split_xattr_name(&xattr.name).map_or(0, |(_, suffix)| suffix.len());
        // Room is left for the opaque attribute, which may come later.
        let full = total > MAX_XATTRS - 64;
        if full || suffix > NAME_MAX || xattr.value.len() > usize::from(u16::MAX) || xattr.name.contains(&0) {
            return Err(TreeError::InvalidXattr { path: lossy(path), name: lossy(&xattr.name) });
        }
    }
    Ok(())
}

/// Size of an attribute in the image, with its padding.
pub(crate) fn xattr_size(xattr: &Xattr) -> usize {
    let suffix = layout::split_xattr_name(&xattr.name).map_or(0, |(_, suffix)| suffix.len());
    (XATTR_ENTRY + suffix).saturating_add(xattr.value.len()).next_multiple_of(4)
}

fn lossy(name: &[u8]) -> String {
    const SHOWN: usize = 256;
    String::from_utf8_lossy(name.get(..SHOWN).unwrap_or(name)).into_owned()
}
