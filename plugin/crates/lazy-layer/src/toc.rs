//! From a zTOC to the tables of a layer file.

use std::ops::Range;

use erofs_image::{Attributes, Content, Image, Kind, NodeId, TreeBuilder, Written, Xattr};
use ztoc::{Compression, Entry, EntryKind, Fingerprint, SpanId, Ztoc};

use crate::aside;
use crate::disk::checksum::Checksum;
use crate::disk::headers::HeaderRow;
use crate::disk::manifest::Encoding;
use crate::disk::spans::{SpanRow, SpanRows};
use crate::error::CreateError;

/// Tar data begins on borders of this size, and so do the blocks of the image.
const BLOCK: u64 = 512;
/// Longest header (all extension headers of one member together). Each of them is limited to 1 MiB by those who read tars; a longer one
/// means that members are missing from the TOC.
const MAX_HEADER: u64 = 4 << 20;
/// Year 1: what upstream shows where a TOC has no usable time.
const NO_TIME: i64 = -62_135_596_800;

/// A zTOC in the memory that it came in.
pub(crate) type Borrowed<'a> = Ztoc<&'a [u8]>;

/// Everything that is written when a layer is created.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) written: Written,
    pub(crate) headers: Vec<HeaderRow>,
    pub(crate) spans: SpanRows,
    pub(crate) encoding: Encoding,
    pub(crate) compressed_size: u64,
    pub(crate) tar_size: u64,
}

impl Plan {
    /// Converts a zTOC whose numbers were not checked yet. `max_span` bounds both sizes of a span.
    pub(crate) fn of(ztoc: &Borrowed<'_>, max_span: u64) -> Result<Self, CreateError> {
        let spans = spans_of(ztoc, max_span)?;
        let ranges = header_ranges(ztoc)?;
        // A third of the work is hashing, which the tree does not need.
        let fingerprints = || ztoc.entries.iter().map(Entry::fingerprint).collect::<Vec<_>>();
        let (fingerprints, image) = aside::both(fingerprints, || image_of(ztoc));
        let (nodes, written) = image?;
        let headers = headers_of(ztoc, &ranges, &fingerprints, &nodes, &written)?;
        Ok(Self {
            written,
            headers,
            spans,
            encoding: match ztoc.spans.compression() {
                Compression::Gzip => Encoding::Gzip,
                Compression::Uncompressed => Encoding::Tar,
            },
            compressed_size: ztoc.compressed_size,
            tar_size: ztoc.uncompressed_size,
        })
    }
}

/// The metadata, and what each entry is in it.
fn image_of(ztoc: &Borrowed<'_>) -> Result<(Vec<NodeId>, Written), CreateError> {
    let mut tree = TreeBuilder::new();
    let mut nodes = Vec::with_capacity(ztoc.entries.len());
    for entry in &ztoc.entries {
        check_place(entry, ztoc.uncompressed_size)?;
        nodes.push(add(&mut tree, entry)?);
    }
    let written = erofs_image::write(&tree.finish(), ztoc.uncompressed_size)
        .map_err(|source| CreateError::Image { source })?;
    Ok((nodes, written))
}

/// The span table. The TOC's size of the tar ends at the tar's own end; spans of the padding behind it become empty, since nobody reads them.
fn spans_of(ztoc: &Borrowed<'_>, max_span: u64) -> Result<SpanRows, CreateError> {
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

/// Header ranges with the index of their entry, in tar order.
fn header_ranges(ztoc: &Borrowed<'_>) -> Result<Vec<(usize, Range<u64>)>, CreateError> {
    let ranges = ztoc.header_ranges().map_err(|source| CreateError::Toc { source })?;
    let mut end = 0;
    ranges
        .into_iter()
        .map(|header| {
            let range = header.range.start.0..header.range.end.0;
            let entry = ztoc.entries.get(header.entry);
            let refuse = |reason| CreateError::Entry {
                name: entry.map(|entry| lossy(entry.name)).unwrap_or_default(),
                reason,
            };
            let length = range
                .end
                .checked_sub(range.start)
                .ok_or_else(|| refuse("its header ends before it begins"))?;
            if range.start < end {
                return Err(refuse("its header overlaps another"));
            }
            if length < BLOCK {
                return Err(refuse("there is no room for its header"));
            }
            if length > MAX_HEADER {
                return Err(refuse("its header is larger than a header can be"));
            }
            end = range.end;
            Ok((header.entry, range))
        })
        .collect()
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

fn headers_of(
    ztoc: &Borrowed<'_>,
    ranges: &[(usize, Range<u64>)],
    fingerprints: &[Fingerprint],
    nodes: &[NodeId],
    written: &Written,
) -> Result<Vec<HeaderRow>, CreateError> {
    let refuse = |name: &[u8], reason| CreateError::Entry { name: lossy(name), reason };
    let image = Image::open(written.metadata.as_slice())
        .map_err(|_| refuse(b"/", "the new image does not read back"))?;
    let mut rows = Vec::with_capacity(ranges.len());
    for (at, range) in ranges {
        let (Some(entry), Some(fingerprint), Some(node)) =
            (ztoc.entries.get(*at), fingerprints.get(*at), nodes.get(*at))
        else {
            continue;
        };
        let nid = written.nid(*node);
        let data = match nid {
            Some(nid) if entry.kind == EntryKind::Regular => {
                let inode =
                    image.inode(nid).map_err(|_| refuse(entry.name, "its new inode does not read back"))?;
                inode.kind == Kind::Regular
            }
            _ => false,
        };
        let (range, fingerprint) = (range.clone(), *fingerprint);
        rows.push(HeaderRow { range, fingerprint, nid: nid.map(|nid| nid.0), data });
    }
    Ok(rows)
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
