//! From a zTOC to the tables of a layer file.

use erofs_image::{Attributes, Content, NewImage, NodeId, TreeBuilder, Xattr};
use oci_spec::image::Digest;
use sha2::{Digest as _, Sha256};
use ztoc::{Compression, Entry, EntryKind, Fingerprint, HeaderRange, SpanId, Spans, ZtocView};

use crate::aside;
use crate::disk::checksum::Checksum;
use crate::disk::headers::HeaderRow;
use crate::disk::manifest::Encoding;
use crate::disk::spans::{SpanRow, SpanRows};
use crate::error::CreateError;

/// Tar data begins on borders of this size, and so do the blocks of the image.
const BLOCK: u64 = 512;
/// Year 1: what upstream shows where a TOC has no usable time.
const NO_TIME: i64 = -62_135_596_800;

/// Everything that is written when a layer is created.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    bytes: &'a [u8],
    ztoc: ZtocView<'a>,
    pub(crate) image: NewImage<'a>,
    /// By entry.
    inodes: Vec<Inode>,
    headers: Headers,
    pub(crate) spans: SpanRows,
}

/// What an entry of the TOC became.
#[derive(Clone, Copy, Debug)]
struct Inode {
    node: NodeId,
    /// The node is a regular file with this entry's data.
    data: bool,
}

/// The tar's headers, as the TOC has them.
#[derive(Debug)]
struct Headers {
    /// In tar order.
    ranges: Vec<HeaderRange>,
    /// By entry.
    fingerprints: Vec<Fingerprint>,
}

impl<'a> Plan<'a> {
    /// Converts a zTOC whose digest and numbers were not checked yet. `max_span` bounds both sizes of a span.
    pub(crate) fn of(bytes: &'a [u8], max_span: u64) -> Result<Self, CreateError> {
        let ztoc = ZtocView::of(bytes).map_err(|source| CreateError::Decode { source })?;
        // Half of the work is hashing, and what goes with it, which the tree does not need. Each half reads the entries for itself: that costs less than
        // to keep them all, or to hand them over.
        let (headers, image) = aside::both(
            || Headers::of(&ztoc),
            || {
                let spans = spans_of(&ztoc, max_span)?;
                let (inodes, image) = image_of(&ztoc)?;
                Ok::<_, CreateError>((spans, inodes, image))
            },
        );
        let (headers, (spans, inodes, image)) = (headers?, image?);
        Ok(Self { bytes, ztoc, image, inodes, headers, spans })
    }

    /// Whether it was made from what has that digest.
    pub(crate) fn compare(&self, digest: &Digest) -> Result<(), CreateError> {
        compare(self.bytes, digest)
    }

    pub(crate) fn encoding(&self) -> Encoding {
        match self.ztoc.spans.compression() {
            Compression::Gzip => Encoding::Gzip,
            Compression::Uncompressed => Encoding::Tar,
        }
    }

    pub(crate) fn compressed_size(&self) -> u64 {
        self.ztoc.compressed_size
    }

    pub(crate) fn tar_size(&self) -> u64 {
        self.ztoc.uncompressed_size
    }

    /// The span table of the zTOC, which has the windows.
    pub(crate) fn checkpoints(&self) -> &Spans {
        &self.ztoc.spans
    }

    /// The header table, in tar order.
    pub(crate) fn headers(&self) -> impl ExactSizeIterator<Item = HeaderRow> + Clone {
        self.headers.ranges.iter().map(|header| {
            let inode = self.inodes.get(header.entry);
            let nid = inode.and_then(|inode| self.image.nid(inode.node));
            HeaderRow {
                range: header.range.start.0..header.range.end.0,
                // Each entry has one; no header would agree with this.
                fingerprint: *self.headers.fingerprints.get(header.entry).unwrap_or(&Fingerprint([0; 16])),
                nid: nid.map(|nid| nid.0),
                data: nid.is_some() && inode.is_some_and(|inode| inode.data),
            }
        })
    }
}

impl Headers {
    fn of(ztoc: &ZtocView<'_>) -> Result<Self, CreateError> {
        let entries = ztoc.entries();
        let mut places = Vec::with_capacity(entries.len());
        let mut fingerprints = Vec::with_capacity(entries.len());
        for entry in entries {
            let entry = entry.map_err(|source| CreateError::Decode { source })?;
            places.push(entry.place());
            fingerprints.push(entry.fingerprint());
        }
        let ranges = ztoc::header_ranges(&places, ztoc.uncompressed_size)
            .map_err(|source| CreateError::Toc { source })?;
        Ok(Self { ranges, fingerprints })
    }
}

/// Whether these bytes have that digest.
pub(crate) fn compare(ztoc: &[u8], digest: &Digest) -> Result<(), CreateError> {
    let actual = Sha256::digest(ztoc).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if actual == digest.digest() {
        Ok(())
    } else {
        Err(CreateError::Digest { expected: digest.to_string(), actual })
    }
}

/// The image, and what each entry is in it.
fn image_of<'a>(ztoc: &ZtocView<'a>) -> Result<(Vec<Inode>, NewImage<'a>), CreateError> {
    let entries = ztoc.entries();
    let mut tree = TreeBuilder::new();
    let mut inodes = Vec::with_capacity(entries.len());
    for entry in entries {
        let entry = entry.map_err(|source| CreateError::Decode { source })?;
        check_place(&entry, ztoc.uncompressed_size)?;
        let node = add(&mut tree, &entry)?;
        inodes.push(Inode { node, data: entry.kind == EntryKind::Regular && tree.is_regular(node) });
    }
    let image = NewImage::of(tree.finish(), ztoc.uncompressed_size)
        .map_err(|source| CreateError::Image { source })?;
    Ok((inodes, image))
}

/// The span table. The TOC's size of the tar ends at the tar's own end; spans of the padding behind it become empty, since nobody reads them.
fn spans_of(ztoc: &ZtocView<'_>, max_span: u64) -> Result<SpanRows, CreateError> {
    let refuse = |span, reason| CreateError::Span { span, reason };
    let tar_size = ztoc.uncompressed_size;
    let gzip = ztoc.spans.compression() == Compression::Gzip;
    let count = ztoc.spans.count();
    let mut rows = Vec::new();
    let mut expected_start = 0;
    for id in 0..count {
        let span = ztoc.spans.span(SpanId(id)).ok_or(refuse(id, "it is missing"))?;
        let (start, end) = (span.uncompressed.start.0, span.uncompressed.end.0);
        let last = id.checked_add(1) == Some(count);
        if start != expected_start || (!last && end < start) {
            return Err(refuse(id, "its uncompressed range does not follow the one before"));
        }
        expected_start = end;
        let start = start.min(tar_size);
        let end = if last { tar_size } else { end.clamp(start, tar_size) };
        let compressed = span.compressed.start.0..span.compressed.end.0;
        if end.saturating_sub(start) > max_span || compressed.end.saturating_sub(compressed.start) > max_span
        {
            return Err(refuse(id, "it is larger than this snapshotter's limit"));
        }
        let (bits, window) = if gzip {
            let checkpoint = ztoc.spans.checkpoint(SpanId(id)).ok_or(refuse(id, "it has no checkpoint"))?;
            (checkpoint.bits, Checksum::of(checkpoint.window))
        } else {
            if compressed.start != span.uncompressed.start.0
                || compressed.end.saturating_sub(compressed.start) < end.saturating_sub(start)
            {
                return Err(refuse(id, "its two ranges differ in an uncompressed layer"));
            }
            (0, Checksum::of(&[]))
        };
        rows.push(SpanRow { compressed, tar: start..end, digest: span.digest.0, window, bits });
    }
    SpanRows::new(rows, ztoc.compressed_size, tar_size)
        .map_err(|(at, reason)| refuse(u32::try_from(at).unwrap_or(u32::MAX), reason))
}

/// Checks that an entry's data lie in the tar, where the image can point to them.
fn check_place(entry: &Entry<&[u8]>, tar_size: u64) -> Result<(), CreateError> {
    let refuse = |reason| Err(CreateError::Entry { name: lossy(entry.name), reason });
    if !entry.data_offset.0.is_multiple_of(BLOCK) {
        return refuse("its data are not on a 512-byte border");
    }
    if entry.kind == EntryKind::Regular
        && entry.data_offset.0.checked_add(entry.size).is_none_or(|end| end > tar_size)
    {
        return refuse("its data lie beyond the end of the layer");
    }
    Ok(())
}

fn add<'a>(tree: &mut TreeBuilder<'a>, entry: &Entry<&'a [u8]>) -> Result<NodeId, CreateError> {
    let refuse = |source| CreateError::Tree { name: lossy(entry.name), source };
    let content = match entry.kind {
        EntryKind::Hardlink => return tree.hard_link(entry.name, entry.link_name).map_err(refuse),
        EntryKind::Regular => Content::Regular { tar_offset: entry.data_offset.0, size: entry.size },
        EntryKind::Directory => Content::Directory,
        EntryKind::Symlink => Content::Symlink(entry.link_name.to_vec()),
        EntryKind::CharDevice => {
            let (major, minor) = device(entry)?;
            Content::CharDevice { major, minor }
        }
        EntryKind::BlockDevice => {
            let (major, minor) = device(entry)?;
            Content::BlockDevice { major, minor }
        }
        EntryKind::Fifo => Content::Fifo,
    };
    let (mtime, mtime_nsec) = entry.mtime().unwrap_or((NO_TIME, 0));
    let attributes = Attributes {
        permissions: (entry.mode & 0o7777) as u16,
        uid: entry.uid,
        gid: entry.gid,
        mtime,
        mtime_nsec,
        xattrs: entry
            .xattrs()
            .map(|(name, value)| Xattr { name: name.to_vec(), value: value.to_vec() })
            .collect(),
    };
    tree.add(entry.name, attributes, content).map_err(refuse)
}

fn device(entry: &Entry<&[u8]>) -> Result<(u32, u32), CreateError> {
    u32::try_from(entry.dev_major)
        .ok()
        .zip(u32::try_from(entry.dev_minor).ok())
        .ok_or_else(|| CreateError::Entry { name: lossy(entry.name), reason: "no such device number" })
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
