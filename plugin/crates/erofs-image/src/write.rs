//! Writing the metadata. The layout is described in [`layout`](crate::layout).

mod output;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use crate::layout::{
    BLOCK, BLOCK_BITS, BLOCK_SIZE, DIRENT, FIRST_INODE, FLAG_XATTRS, FORMAT_INLINE, FORMAT_PLAIN,
    HEADER_MAGIC, INODE_SIZE, Nid, SLOT, SUPERBLOCK, SUPERBLOCK_MAGIC, TAR_ALIGN, VERSION, XATTR_HEADER,
    mode, split_xattr_name,
};
use crate::tree::{Kind, Node, NodeId, OPAQUE, Tree, Xattr, xattr_size};
use output::Output;

/// Metadata is written in pieces of about this size, bytes.
const PIECE: usize = 256 << 10;

/// An image whose inodes all have their place, and which is still to be written.
#[derive(Debug)]
pub struct NewImage<'a> {
    tree: Tree<'a>,
    order: Order,
    /// In that order.
    plans: Vec<Plan>,
    /// By node, 0 if it is not in the image.
    nids: Vec<u64>,
    /// Where the blocks of directories and links begin.
    data_start: u64,
    tar_start: u64,
    tar_size: u64,
    file_size: u64,
    /// Of the whole file.
    blocks: u32,
}

/// Why a tree cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A file's data does not begin on a block of the tar.
    #[error("file data at {tar_offset} is not aligned to {BLOCK_SIZE} bytes")]
    Unaligned {
        /// Offset in the tar.
        tar_offset: u64,
    },
    /// A file's data is not inside the tar.
    #[error("{size} bytes of file data at {tar_offset} are not inside a tar of {tar_size} bytes")]
    OutsideTar {
        /// Offset in the tar.
        tar_offset: u64,
        /// Size of the file.
        size: u64,
        /// Size of the tar.
        tar_size: u64,
    },
    /// Metadata and tar have more than 2³² blocks (2 TiB).
    #[error("a tar of {tar_size} bytes is too big")]
    TooBig {
        /// Size of the tar.
        tar_size: u64,
    },
}

impl<'a> NewImage<'a> {
    /// Finds a place for everything in an image whose data is a tar of `tar_size` bytes.
    ///
    /// # Errors
    ///
    /// [`WriteError`] if a file's data is not on whole blocks inside the tar, or everything together is too big.
    pub fn of(tree: Tree<'a>, tar_size: u64) -> Result<Self, WriteError> {
        let too_big = || WriteError::TooBig { tar_size };
        let order = Order::of(&tree);
        let mut plans = Vec::with_capacity(order.nodes.len());
        let mut nids = vec![0; tree.nodes.len()];
        let (mut inodes_end, mut data_blocks) = (FIRST_INODE, 0);
        for id in &order.nodes {
            let Some(node) = tree.nodes.get(id.index()) else { continue };
            check_place(node, tar_size)?;
            let plan = Plan::of(node, order.parent(*id), *id);
            let at = plan.place(inodes_end);
            if let Some(nid) = nids.get_mut(id.index()) {
                *nid = at / SLOT;
            }
            inodes_end = at + plan.size();
            data_blocks += plan.data_blocks();
            plans.push(plan);
        }
        let data_start = inodes_end.next_multiple_of(BLOCK_SIZE);
        let tar_start = (data_start + data_blocks * BLOCK_SIZE).next_multiple_of(TAR_ALIGN);
        let file_size = tar_size
            .checked_next_multiple_of(BLOCK_SIZE)
            .and_then(|size| size.checked_add(tar_start))
            .ok_or_else(too_big)?;
        // The last block number, all ones, means a hole.
        let blocks =
            u32::try_from(file_size / BLOCK_SIZE).ok().filter(|n| *n != u32::MAX).ok_or_else(too_big)?;
        Ok(Self { tree, order, plans, nids, data_start, tar_start, tar_size, file_size, blocks })
    }

    /// Where the tar begins in the file: the length of the metadata, a multiple of 4096.
    pub fn tar_start(&self) -> u64 {
        self.tar_start
    }

    /// Length of the whole file: [`tar_start`](NewImage::tar_start) and the tar, up to a whole block.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Where a node is in the image; None if another has replaced it, or it had no node from the beginning.
    pub fn nid(&self, node: NodeId) -> Option<Nid> {
        self.nids.get(node.index()).copied().filter(|nid| *nid != 0).map(Nid)
    }

    /// Writes the metadata, which is the first [`tar_start`](NewImage::tar_start) bytes of the file, in pieces. The same tree gives the same bytes.
    ///
    /// # Errors
    ///
    /// Of the writer.
    pub fn write_metadata(&self, to: impl io::Write) -> io::Result<()> {
        let mut out = Output::new(to, PIECE);
        self.header(&mut out);
        self.superblock(&mut out);
        let mut data_block = self.data_start / BLOCK_SIZE;
        for (number, (id, plan)) in self.planned().enumerate() {
            out.pad(self.nids.get(id.index()).map_or(0, |nid| nid * SLOT));
            let Some(node) = self.tree.nodes.get(id.index()) else { continue };
            let start = match &node.kind {
                Kind::Regular { tar_offset, size } if *size > 0 => (self.tar_start + tar_offset) / BLOCK_SIZE,
                Kind::CharDevice(device) | Kind::BlockDevice(device) => u64::from(*device),
                _ if plan.data_blocks() > 0 => data_block,
                _ => 0,
            };
            data_block += plan.data_blocks();
            // Inside the file, whose number of blocks has 32 bits.
            inode(&mut out, node, plan, start as u32, number, self.order.links(id));
            xattrs(&mut out, node, plan);
            if plan.inline {
                self.data(&mut out, id)?;
            }
            out.drain(PIECE)?;
        }
        out.pad(self.data_start);
        for (id, plan) in self.planned().filter(|(_, plan)| plan.data_blocks() > 0) {
            let end = plan.data_blocks() * BLOCK_SIZE + out.position();
            self.data(&mut out, id)?;
            out.pad(end);
            out.drain(PIECE)?;
        }
        out.pad(self.tar_start);
        out.drain(0)
    }

    /// All of the metadata, for small images.
    pub fn metadata(&self) -> Vec<u8> {
        let mut metadata = Vec::new();
        // Memory takes everything.
        let _ = self.write_metadata(&mut metadata);
        metadata
    }

    fn planned(&self) -> impl Iterator<Item = (NodeId, &Plan)> {
        self.order.nodes.iter().copied().zip(&self.plans)
    }

    fn header(&self, out: &mut Output<impl io::Write>) {
        let flags = if self.plans.iter().any(|plan| plan.xattrs > 0) { FLAG_XATTRS } else { 0 };
        out.extend(&HEADER_MAGIC);
        out.extend(&VERSION.to_le_bytes());
        out.extend(&flags.to_le_bytes());
        out.extend(&self.tar_start.to_le_bytes());
        out.extend(&self.tar_size.to_le_bytes());
    }

    fn superblock(&self, out: &mut Output<impl io::Write>) {
        out.pad(SUPERBLOCK as u64);
        out.extend(&SUPERBLOCK_MAGIC.to_le_bytes());
        out.extend(&[0; 8]); // checksum, compatible features
        out.extend(&[BLOCK_BITS, 0]);
        out.extend(&(Nid::ROOT.0 as u16).to_le_bytes());
        out.extend(&(self.order.nodes.len() as u64).to_le_bytes());
        out.extend(&[0; 12]); // time of building
        out.extend(&self.blocks.to_le_bytes());
        out.pad(FIRST_INODE);
    }

    /// What a directory or a link contains.
    fn data(&self, out: &mut Output<impl io::Write>, id: NodeId) -> io::Result<()> {
        match self.tree.nodes.get(id.index()).map(|node| &node.kind) {
            Some(Kind::Symlink(target)) => out.extend(target),
            Some(Kind::Directory { children, .. }) => {
                let start = out.position();
                let mut packer = Packer::default();
                let mut block = Vec::new();
                for (name, child) in directory_entries(children, self.order.parent(id), id) {
                    let before = packer.full_blocks;
                    if packer.add(name.len()) {
                        self.directory_block(out, &block);
                        block.clear();
                        out.pad(start + (before + 1) * BLOCK_SIZE);
                        out.drain(PIECE)?;
                    }
                    block.push((name, child));
                }
                self.directory_block(out, &block);
            }
            _ => {}
        }
        Ok(())
    }

    fn directory_block(&self, out: &mut Output<impl io::Write>, entries: &[(&[u8], NodeId)]) {
        let mut offset = entries.len() * DIRENT;
        for (name, child) in entries {
            let kind = self.tree.nodes.get(child.index()).map_or(0, |node| file_type(&node.kind));
            out.extend(&self.nids.get(child.index()).copied().unwrap_or(0).to_le_bytes());
            out.extend(&(offset as u16).to_le_bytes());
            out.extend(&[kind, 0]);
            offset += name.len();
        }
        entries.iter().for_each(|(name, _)| out.extend(name));
    }
}

/// The nodes that can be reached, breadth first, so that a directory's children stand together.
#[derive(Debug)]
struct Order {
    nodes: Vec<NodeId>,
    /// By node: link count, 0 if it cannot be reached.
    links: Vec<u32>,
    /// By node: the directory that a directory is in.
    parents: Vec<NodeId>,
}

impl Order {
    fn of(tree: &Tree<'_>) -> Order {
        let mut order = Order {
            nodes: vec![tree.root],
            links: vec![0; tree.nodes.len()],
            parents: vec![tree.root; tree.nodes.len()],
        };
        if let Some(links) = order.links.get_mut(tree.root.index()) {
            *links = 2;
        }
        let mut next = 0;
        while let Some(directory) = order.nodes.get(next).copied() {
            next += 1;
            for child in children(tree, directory).into_iter().flat_map(BTreeMap::values) {
                let is_directory = children(tree, *child).is_some();
                let Some(links) = order.links.get_mut(child.index()) else { continue };
                if *links == 0 {
                    order.nodes.push(*child);
                }
                // Names are fewer than 2³², see TreeBuilder.
                *links = links.saturating_add(if is_directory { 2 } else { 1 });
                if is_directory {
                    if let Some(parent) = order.parents.get_mut(child.index()) {
                        *parent = directory;
                    }
                    if let Some(links) = order.links.get_mut(directory.index()) {
                        *links = links.saturating_add(1);
                    }
                }
            }
        }
        order
    }

    fn parent(&self, directory: NodeId) -> NodeId {
        self.parents.get(directory.index()).copied().unwrap_or(directory)
    }

    fn links(&self, node: NodeId) -> u32 {
        self.links.get(node.index()).copied().unwrap_or(1)
    }
}

fn children<'t, 'a>(tree: &'t Tree<'a>, node: NodeId) -> Option<&'t BTreeMap<&'a [u8], NodeId>> {
    match &tree.nodes.get(node.index())?.kind {
        Kind::Directory { children, .. } => Some(children),
        _ => None,
    }
}

/// The sizes of one inode's parts, and nothing more: there is one for each file.
#[derive(Debug)]
struct Plan {
    /// At most what the builder lets one inode have.
    xattrs: u32,
    /// Bytes of a directory or link. No directory has 4 GiB of names, see TreeBuilder.
    data: u32,
    inline: bool,
}

impl Plan {
    fn of(node: &Node<'_>, parent: NodeId, itself: NodeId) -> Plan {
        let xattrs = match stored_xattrs(node).map(|xattr| xattr_size(&xattr)).sum::<usize>() {
            0 => 0,
            entries => XATTR_HEADER + entries,
        };
        let data = match &node.kind {
            Kind::Directory { children, .. } => {
                let mut packer = Packer::default();
                directory_entries(children, parent, itself).for_each(|(name, _)| {
                    packer.add(name.len());
                });
                packer.size()
            }
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let inline = data > 0 && INODE_SIZE as u64 + xattrs as u64 + data <= BLOCK_SIZE;
        Plan { xattrs: xattrs as u32, data: data as u32, inline }
    }

    /// The inode with what stands behind it.
    fn size(&self) -> u64 {
        INODE_SIZE as u64 + u64::from(self.xattrs) + u64::from(if self.inline { self.data } else { 0 })
    }

    /// Where the inode goes if everything before `end` is taken.
    fn place(&self, end: u64) -> u64 {
        let at = end.next_multiple_of(SLOT);
        let undivided = if self.inline { self.size() } else { INODE_SIZE as u64 };
        if at % BLOCK_SIZE + undivided > BLOCK_SIZE { at.next_multiple_of(BLOCK_SIZE) } else { at }
    }

    /// Blocks apart from the inode.
    fn data_blocks(&self) -> u64 {
        if self.inline { 0 } else { u64::from(self.data).div_ceil(BLOCK_SIZE) }
    }
}

/// Cuts the entries of a directory into blocks.
#[derive(Default)]
struct Packer {
    full_blocks: u64,
    used: usize,
}

impl Packer {
    /// Takes an entry; true if it begins a new block behind another.
    fn add(&mut self, name: usize) -> bool {
        let begins = self.used + DIRENT + name > BLOCK;
        if begins {
            self.full_blocks += 1;
            self.used = 0;
        }
        self.used += DIRENT + name;
        begins
    }

    fn size(&self) -> u64 {
        self.full_blocks * BLOCK_SIZE + self.used as u64
    }
}

/// The names of a directory with `.` and `..` in byte order.
fn directory_entries<'a>(
    children: &BTreeMap<&'a [u8], NodeId>,
    parent: NodeId,
    itself: NodeId,
) -> impl Iterator<Item = (&'a [u8], NodeId)> {
    use std::ops::Bound::{Excluded, Unbounded};
    const DOT: &[u8] = b".";
    const DOTS: &[u8] = b"..";
    // Names like `.-` are between the two; neither is ever a child.
    let before = children.range::<[u8], _>((Unbounded, Excluded(DOT)));
    let between = children.range::<[u8], _>((Excluded(DOT), Excluded(DOTS)));
    let after = children.range::<[u8], _>((Excluded(DOTS), Unbounded));
    let (dot, dots) = ([(DOT, itself)], [(DOTS, parent)]);
    let named = before.map(|(name, id)| (*name, *id)).chain(dot);
    let named = named.chain(between.map(|(name, id)| (*name, *id))).chain(dots);
    named.chain(after.map(|(name, id)| (*name, *id)))
}

/// The attributes of a node with that of an opaque directory, by name.
fn stored_xattrs<'n>(node: &'n Node<'_>) -> impl Iterator<Item = Cow<'n, Xattr>> {
    let opaque = matches!(node.kind, Kind::Directory { opaque: true, .. })
        .then(|| Cow::Owned(Xattr { name: OPAQUE.to_vec(), value: b"y".to_vec() }));
    let xattrs = &node.attributes.xattrs;
    let (before, after) = xattrs.split_at(xattrs.partition_point(|xattr| xattr.name.as_slice() < OPAQUE));
    before.iter().map(Cow::Borrowed).chain(opaque).chain(after.iter().map(Cow::Borrowed))
}

/// Whether a file's data is on whole blocks of the tar, inside it.
fn check_place(node: &Node<'_>, tar_size: u64) -> Result<(), WriteError> {
    let Kind::Regular { tar_offset, size } = node.kind else { return Ok(()) };
    if size == 0 {
        return Ok(());
    }
    if !tar_offset.is_multiple_of(BLOCK_SIZE) {
        return Err(WriteError::Unaligned { tar_offset });
    }
    match tar_offset.checked_add(size) {
        Some(end) if end <= tar_size => Ok(()),
        _ => Err(WriteError::OutsideTar { tar_offset, size, tar_size }),
    }
}

fn inode(
    out: &mut Output<impl io::Write>,
    node: &Node<'_>,
    plan: &Plan,
    start: u32,
    number: usize,
    links: u32,
) {
    let (kind, size) = match node.kind {
        Kind::Directory { .. } => (mode::DIRECTORY, u64::from(plan.data)),
        Kind::Regular { size, .. } => (mode::REGULAR, size),
        Kind::Symlink(_) => (mode::SYMLINK, u64::from(plan.data)),
        Kind::CharDevice(_) | Kind::Whiteout => (mode::CHAR, 0),
        Kind::BlockDevice(_) => (mode::BLOCK, 0),
        Kind::Fifo => (mode::FIFO, 0),
    };
    let attributes = &node.attributes;
    out.extend(&if plan.inline { FORMAT_INLINE } else { FORMAT_PLAIN }.to_le_bytes());
    out.extend(&xattr_count(plan.xattrs).to_le_bytes());
    out.extend(&(kind | attributes.permissions).to_le_bytes());
    out.extend(&[0; 2]);
    out.extend(&size.to_le_bytes());
    out.extend(&start.to_le_bytes());
    out.extend(&(number as u32).wrapping_add(1).to_le_bytes());
    out.extend(&attributes.uid.to_le_bytes());
    out.extend(&attributes.gid.to_le_bytes());
    out.extend(&attributes.mtime.to_le_bytes());
    out.extend(&attributes.mtime_nsec.to_le_bytes());
    out.extend(&links.to_le_bytes());
    out.extend(&[0; 16]);
}

/// Size of the attributes as the inode says it. The builder keeps it within 16 bits.
fn xattr_count(bytes: u32) -> u16 {
    match bytes.checked_sub(XATTR_HEADER as u32) {
        Some(entries) => u16::try_from(entries / 4 + 1).unwrap_or(u16::MAX),
        None => 0,
    }
}

fn xattrs(out: &mut Output<impl io::Write>, node: &Node<'_>, plan: &Plan) {
    if plan.xattrs == 0 {
        return;
    }
    out.extend(&[0; XATTR_HEADER]);
    for xattr in stored_xattrs(node) {
        let Some((prefix, suffix)) = split_xattr_name(&xattr.name) else { continue };
        // Both lengths were checked by the builder.
        out.extend(&[suffix.len() as u8, prefix]);
        out.extend(&(xattr.value.len() as u16).to_le_bytes());
        out.extend(suffix);
        out.extend(&xattr.value);
        // Inodes, the header and all entries are aligned to four.
        out.pad(out.position().next_multiple_of(4));
    }
}

/// Kind as a directory entry says it.
fn file_type(kind: &Kind<'_>) -> u8 {
    match kind {
        Kind::Regular { .. } => 1,
        Kind::Directory { .. } => 2,
        Kind::CharDevice(_) | Kind::Whiteout => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}
