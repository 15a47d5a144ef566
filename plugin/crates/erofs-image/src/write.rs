//! Writing the metadata. The layout is described in [`layout`](crate::layout).

use std::collections::BTreeMap;

use crate::layout::{
    BLOCK, BLOCK_BITS, BLOCK_SIZE, DIRENT, FIRST_INODE, FLAG_XATTRS, FORMAT_INLINE, FORMAT_PLAIN,
    HEADER_MAGIC, INODE_SIZE, Nid, SLOT, SUPERBLOCK, SUPERBLOCK_MAGIC, TAR_ALIGN, VERSION, XATTR_HEADER,
    mode, split_xattr_name,
};
use crate::tree::{Kind, Node, NodeId, OPAQUE, Tree, Xattr, xattr_size};

/// The metadata of an image.
#[derive(Debug)]
pub struct Written {
    /// The first `tar_start` bytes of the layer file.
    pub metadata: Vec<u8>,
    /// Where the tar begins in the file: the length of the metadata, a multiple of 4096.
    pub tar_start: u64,
    /// Length of the whole file: `tar_start` and the tar, up to a whole block.
    pub file_size: u64,
    nids: Vec<u64>,
}

impl Written {
    /// Where a node is in the image; None if another has replaced it, or it had no node from the beginning.
    pub fn nid(&self, node: NodeId) -> Option<Nid> {
        self.nids.get(node.index()).copied().filter(|nid| *nid != 0).map(Nid)
    }
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

/// Writes the metadata of an image whose data is a tar of `tar_size` bytes.
///
/// The same tree gives the same bytes.
///
/// # Errors
///
/// [`WriteError`] if a file's data is not on whole blocks inside the tar, or everything together is too big.
pub fn write(tree: &Tree<'_>, tar_size: u64) -> Result<Written, WriteError> {
    let too_big = || WriteError::TooBig { tar_size };
    let order = Order::of(tree);
    let plans = plan(tree, &order);

    let mut nids = vec![0; tree.nodes.len()];
    let mut inodes_end = FIRST_INODE;
    for (id, plan) in order.nodes.iter().zip(&plans) {
        let at = plan.place(inodes_end);
        if let Some(nid) = nids.get_mut(id.index()) {
            *nid = at / SLOT;
        }
        inodes_end = at + plan.size();
    }
    let data_start = inodes_end.next_multiple_of(BLOCK_SIZE);
    let data_size = plans.iter().map(Plan::data_blocks).sum::<u64>() * BLOCK_SIZE;
    let tar_start = (data_start + data_size).next_multiple_of(TAR_ALIGN);
    let file_size = tar_size
        .checked_next_multiple_of(BLOCK_SIZE)
        .and_then(|size| size.checked_add(tar_start))
        .ok_or_else(too_big)?;
    // The last block number, all ones, means a hole.
    let blocks = u32::try_from(file_size / BLOCK_SIZE).ok().filter(|n| *n != u32::MAX).ok_or_else(too_big)?;

    let mut out = Vec::new();
    out.reserve_exact(usize::try_from(tar_start).map_err(|_| too_big())?);
    header(&mut out, &plans, tar_start, tar_size);
    superblock(&mut out, &order, blocks);
    let mut data_block = data_start / BLOCK_SIZE;
    for (number, (id, plan)) in order.nodes.iter().zip(&plans).enumerate() {
        pad(&mut out, nids.get(id.index()).map_or(0, |nid| nid * SLOT));
        let Some(node) = tree.nodes.get(id.index()) else { continue };
        let start = match &node.kind {
            Kind::Regular { tar_offset, size } => data_address(*tar_offset, *size, tar_start, tar_size)?,
            Kind::CharDevice(device) | Kind::BlockDevice(device) => *device,
            _ if plan.data_blocks() > 0 => u32::try_from(data_block).map_err(|_| too_big())?,
            _ => 0,
        };
        data_block += plan.data_blocks();
        inode(&mut out, node, plan, start, number, order.links.get(id.index()).copied().unwrap_or(1));
        xattrs(&mut out, node, plan);
        if plan.inline {
            data(&mut out, tree, &order, *id, &nids);
        }
    }
    pad(&mut out, data_start);
    for (id, plan) in order.nodes.iter().zip(&plans).filter(|(_, plan)| plan.data_blocks() > 0) {
        let end = plan.data_blocks() * BLOCK_SIZE + position(&out);
        data(&mut out, tree, &order, *id, &nids);
        pad(&mut out, end);
    }
    pad(&mut out, tar_start);
    Ok(Written { metadata: out, tar_start, file_size, nids })
}

/// The nodes that can be reached, breadth first, so that a directory's children stand together.
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
}

fn children<'t, 'a>(tree: &'t Tree<'a>, node: NodeId) -> Option<&'t BTreeMap<&'a [u8], NodeId>> {
    match &tree.nodes.get(node.index())?.kind {
        Kind::Directory { children, .. } => Some(children),
        _ => None,
    }
}

/// The sizes of one inode's parts.
struct Plan {
    xattrs: u64,
    /// Size that the inode says.
    size: u64,
    /// Bytes of a directory or link.
    data: u64,
    inline: bool,
}

impl Plan {
    /// The inode with what stands behind it.
    fn size(&self) -> u64 {
        INODE_SIZE as u64 + self.xattrs + if self.inline { self.data } else { 0 }
    }

    /// Where the inode goes if everything before `end` is taken.
    fn place(&self, end: u64) -> u64 {
        let at = end.next_multiple_of(SLOT);
        let undivided = if self.inline { self.size() } else { INODE_SIZE as u64 };
        if at % BLOCK_SIZE + undivided > BLOCK_SIZE { at.next_multiple_of(BLOCK_SIZE) } else { at }
    }

    /// Blocks apart from the inode.
    fn data_blocks(&self) -> u64 {
        if self.inline { 0 } else { self.data.div_ceil(BLOCK_SIZE) }
    }
}

fn plan(tree: &Tree<'_>, order: &Order) -> Vec<Plan> {
    let plan = |id: &NodeId| {
        let Some(node) = tree.nodes.get(id.index()) else {
            return Plan { xattrs: 0, size: 0, data: 0, inline: false };
        };
        let xattrs = match stored_xattrs(node).map(|xattr| xattr_size(&xattr) as u64).sum::<u64>() {
            0 => 0,
            entries => XATTR_HEADER as u64 + entries,
        };
        let data = match &node.kind {
            Kind::Directory { children, .. } => {
                let mut packer = Packer::default();
                directory_entries(children, order.parent(*id), *id).for_each(|(name, _)| {
                    packer.add(name.len());
                });
                packer.size()
            }
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let size = if let Kind::Regular { size, .. } = node.kind { size } else { data };
        let inline = data > 0 && INODE_SIZE as u64 + xattrs + data <= BLOCK_SIZE;
        Plan { xattrs, size, data, inline }
    };
    order.nodes.iter().map(plan).collect()
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
fn stored_xattrs<'n>(node: &'n Node<'_>) -> impl Iterator<Item = std::borrow::Cow<'n, Xattr>> {
    use std::borrow::Cow;
    let opaque = matches!(node.kind, Kind::Directory { opaque: true, .. })
        .then(|| Cow::Owned(Xattr { name: OPAQUE.to_vec(), value: b"y".to_vec() }));
    let xattrs = &node.attributes.xattrs;
    let (before, after) = xattrs.split_at(xattrs.partition_point(|xattr| xattr.name.as_slice() < OPAQUE));
    before.iter().map(Cow::Borrowed).chain(opaque).chain(after.iter().map(Cow::Borrowed))
}

/// The block where a file's data begins.
fn data_address(tar_offset: u64, size: u64, tar_start: u64, tar_size: u64) -> Result<u32, WriteError> {
    if size == 0 {
        return Ok(0);
    }
    if !tar_offset.is_multiple_of(BLOCK_SIZE) {
        return Err(WriteError::Unaligned { tar_offset });
    }
    match tar_offset.checked_add(size) {
        // Inside a tar whose last block has a 32-bit number.
        Some(end) if end <= tar_size => {
            u32::try_from((tar_start + tar_offset) / BLOCK_SIZE).map_err(|_| WriteError::TooBig { tar_size })
        }
        _ => Err(WriteError::OutsideTar { tar_offset, size, tar_size }),
    }
}

fn header(out: &mut Vec<u8>, plans: &[Plan], tar_start: u64, tar_size: u64) {
    let flags = if plans.iter().any(|plan| plan.xattrs > 0) { FLAG_XATTRS } else { 0 };
    out.extend(HEADER_MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend(flags.to_le_bytes());
    out.extend(tar_start.to_le_bytes());
    out.extend(tar_size.to_le_bytes());
}

fn superblock(out: &mut Vec<u8>, order: &Order, blocks: u32) {
    pad(out, SUPERBLOCK as u64);
    out.extend(SUPERBLOCK_MAGIC.to_le_bytes());
    out.extend([0; 8]); // checksum, compatible features
    out.extend([BLOCK_BITS, 0]);
    out.extend((Nid::ROOT.0 as u16).to_le_bytes());
    out.extend((order.nodes.len() as u64).to_le_bytes());
    out.extend([0; 12]); // time of building
    out.extend(blocks.to_le_bytes());
    pad(out, FIRST_INODE);
}

fn inode(out: &mut Vec<u8>, node: &Node<'_>, plan: &Plan, start: u32, number: usize, links: u32) {
    let kind = match node.kind {
        Kind::Directory { .. } => mode::DIRECTORY,
        Kind::Regular { .. } => mode::REGULAR,
        Kind::Symlink(_) => mode::SYMLINK,
        Kind::CharDevice(_) | Kind::Whiteout => mode::CHAR,
        Kind::BlockDevice(_) => mode::BLOCK,
        Kind::Fifo => mode::FIFO,
    };
    let attributes = &node.attributes;
    out.extend(if plan.inline { FORMAT_INLINE } else { FORMAT_PLAIN }.to_le_bytes());
    out.extend((xattr_count(plan.xattrs)).to_le_bytes());
    out.extend((kind | attributes.permissions).to_le_bytes());
    out.extend([0; 2]);
    out.extend(plan.size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend((number as u32).wrapping_add(1).to_le_bytes());
    out.extend(attributes.uid.to_le_bytes());
    out.extend(attributes.gid.to_le_bytes());
    out.extend(attributes.mtime.to_le_bytes());
    out.extend(attributes.mtime_nsec.to_le_bytes());
    out.extend(links.to_le_bytes());
    out.extend([0; 16]);
}

/// Size of the attributes as the inode says it. The builder keeps it within 16 bits.
fn xattr_count(bytes: u64) -> u16 {
    match bytes.checked_sub(XATTR_HEADER as u64) {
        Some(entries) => u16::try_from(entries / 4 + 1).unwrap_or(u16::MAX),
        None => 0,
    }
}

fn xattrs(out: &mut Vec<u8>, node: &Node<'_>, plan: &Plan) {
    if plan.xattrs == 0 {
        return;
    }
    out.extend([0; XATTR_HEADER]);
    for xattr in stored_xattrs(node) {
        let Some((prefix, suffix)) = split_xattr_name(&xattr.name) else { continue };
        // Both lengths were checked by the builder.
        out.extend([suffix.len() as u8, prefix]);
        out.extend((xattr.value.len() as u16).to_le_bytes());
        out.extend(suffix);
        out.extend(&xattr.value);
        // Inodes, the header and all entries are aligned to four.
        pad(out, position(out).next_multiple_of(4));
    }
}

/// What a directory or a link contains.
fn data(out: &mut Vec<u8>, tree: &Tree<'_>, order: &Order, id: NodeId, nids: &[u64]) {
    match tree.nodes.get(id.index()).map(|node| &node.kind) {
        Some(Kind::Symlink(target)) => out.extend(target),
        Some(Kind::Directory { children, .. }) => {
            let start = position(out);
            let mut packer = Packer::default();
            let mut block = Vec::new();
            for (name, child) in directory_entries(children, order.parent(id), id) {
                let before = packer.full_blocks;
                if packer.add(name.len()) {
                    directory_block(out, tree, nids, &block);
                    block.clear();
                    pad(out, start + (before + 1) * BLOCK_SIZE);
                }
                block.push((name, child));
            }
            directory_block(out, tree, nids, &block);
        }
        _ => {}
    }
}

fn directory_block(out: &mut Vec<u8>, tree: &Tree<'_>, nids: &[u64], entries: &[(&[u8], NodeId)]) {
    let mut offset = entries.len() * DIRENT;
    for (name, child) in entries {
        out.extend(nids.get(child.index()).copied().unwrap_or(0).to_le_bytes());
        out.extend((offset as u16).to_le_bytes());
        out.extend([tree.nodes.get(child.index()).map_or(0, |node| file_type(&node.kind)), 0]);
        offset += name.len();
    }
    entries.iter().for_each(|(name, _)| out.extend(*name));
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

fn position(out: &[u8]) -> u64 {
    out.len() as u64
}

/// Zeros up to a position.
fn pad(out: &mut Vec<u8>, to: u64) {
    // The whole was reserved at the beginning, so every position in it is a usize.
    if let Ok(to) = usize::try_from(to).map(|to| to.max(out.len())) {
        out.resize(to, 0);
    }
}
