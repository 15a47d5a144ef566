//! Reading a zTOC that anybody may have written.

use planus::ReadAsRoot as _;
use soci_proto::ztoc::{CompressionAlgorithm, FileMetadataRef, XattrRef, ZtocRef};
use thiserror::Error;

use crate::zinfo::{GzipZinfo, TarZinfo, Zinfo, ZinfoError};
use crate::{Entry, EntryKind, PaxRecord, SpanDigest, Spans, UncompressedOffset};

/// Why bytes are no zTOC, or one that contradicts itself.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The flatbuffer is damaged.
    #[error("zTOC is damaged")]
    Flatbuffer(#[from] planus::Error),
    /// A part without which there is no zTOC.
    #[error("zTOC has no {0}")]
    Missing(&'static str),
    /// A number that cannot be negative.
    #[error("zTOC field {field} is {value}")]
    Negative {
        /// Name in the schema.
        field: &'static str,
        /// What it is.
        value: i64,
    },
    /// An entry is of no known kind.
    #[error("zTOC entry {entry} is of an unknown type")]
    UnknownKind {
        /// Its index.
        entry: usize,
    },
    /// An entry's data would end beyond what can be counted.
    #[error("zTOC entry {entry} is too long")]
    EntryTooLong {
        /// Its index.
        entry: usize,
    },
    /// A span digest is not `sha256:` and 64 hex digits.
    #[error("digest of span {span} is no SHA-256")]
    Digest {
        /// Its number.
        span: usize,
    },
    /// The recorded number of the last span is not that of the checkpoints.
    #[error("last span is {recorded}, but there are {spans} spans")]
    MaxSpan {
        /// In the zTOC.
        recorded: i32,
        /// In the zinfo.
        spans: usize,
    },
    /// The span table.
    #[error("zTOC has an unusable span table")]
    Zinfo(#[from] ZinfoError),
    /// Sub-tables are used again and again, so that it decodes to much more than its own size. No tool writes that.
    #[error("zTOC decodes to more than its own size")]
    Amplified,
}

/// A zTOC in the bytes that it came in. Everything but its members is read and checked; those are read each time they are asked for, so
/// that a layer of a million files takes no memory for them, and several threads can go through them at the same time.
#[derive(Clone, Debug)]
pub struct ZtocView<'a> {
    /// [`Ztoc::version`](crate::Ztoc::version).
    pub version: &'a [u8],
    /// [`Ztoc::build_tool`](crate::Ztoc::build_tool).
    pub build_tool: &'a [u8],
    /// [`Ztoc::compressed_size`](crate::Ztoc::compressed_size).
    pub compressed_size: u64,
    /// [`Ztoc::uncompressed_size`](crate::Ztoc::uncompressed_size).
    pub uncompressed_size: u64,
    /// The span table.
    pub spans: Spans,
    entries: Entries<'a>,
}

impl<'a> ZtocView<'a> {
    /// Reads what is not a member. What that takes in memory is bounded by a small multiple of `bytes`.
    ///
    /// # Errors
    ///
    /// When it is no zTOC, or contradicts itself.
    pub fn of(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let root = ZtocRef::read_as_root(bytes)?;
        // A flatbuffer may refer to one sub-table from many places, and vectors nest: a few kilobytes could decode to terabytes. What is
        // not shared cannot be larger than the buffer.
        let mut budget = Budget(bytes.len());
        let version = budget.text(root.version()?)?;
        let build_tool = budget.text(root.build_tool_identifier()?)?;
        let compressed_size = unsigned("compressed_archive_size", root.compressed_archive_size()?)?;
        let uncompressed_size = unsigned("uncompressed_archive_size", root.uncompressed_archive_size()?)?;

        let members = root.toc()?.ok_or(DecodeError::Missing("TOC"))?.metadata()?;
        let count = members.map_or(0, |members| members.len());
        budget.spend(count.saturating_mul(MIN_ENTRY_LEN))?;

        let compression = root.compression_info()?.ok_or(DecodeError::Missing("compression info"))?;
        let checkpoints = compression.checkpoints()?.ok_or(DecodeError::Missing("checkpoints"))?;
        let zinfo = match compression.compression_algorithm()? {
            CompressionAlgorithm::Gzip => Zinfo::Gzip(GzipZinfo::parse(checkpoints)?),
            CompressionAlgorithm::Uncompressed => Zinfo::Tar(TarZinfo::parse(checkpoints)?),
        };
        let max_span = compression.max_span_id()?;
        if usize::try_from(max_span).ok().and_then(|max| max.checked_add(1)) != Some(zinfo.count()) {
            return Err(DecodeError::MaxSpan { recorded: max_span, spans: zinfo.count() });
        }
        let texts = compression.span_digests()?.ok_or(DecodeError::Missing("span digests"))?;
        if texts.len() != zinfo.count() {
            return Err(ZinfoError::Digests { spans: zinfo.count(), digests: texts.len() }.into());
        }
        budget.spend(texts.len().saturating_mul(SpanDigest::TEXT_LEN))?;
        let mut digests = Vec::with_capacity(texts.len());
        for (span, text) in texts.iter().enumerate() {
            digests.push(SpanDigest::parse(text?).ok_or(DecodeError::Digest { span })?);
        }
        let spans = Spans::new(zinfo, compressed_size, uncompressed_size, digests)?;
        let entries = Entries { members, next: 0, budget };
        Ok(Self { version, build_tool, compressed_size, uncompressed_size, spans, entries })
    }

    /// The tar's members in archive order, as [`Ztoc::entries`](crate::Ztoc::entries). After an error the others are not worth asking for.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        self.entries.clone()
    }
}

/// The members of a [`ZtocView`], read one by one.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    members: Option<planus::Vector<'a, planus::Result<FileMetadataRef<'a>>>>,
    next: usize,
    budget: Budget,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<&'a [u8]>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        let member = self.members?.get(index)?;
        self.next = index.saturating_add(1);
        Some(member.map_err(DecodeError::from).and_then(|member| read_entry(index, member, &mut self.budget)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.members.map_or(0, |members| members.len()).saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// Less than what any entry takes in the buffer: its place in the vector, the offset of its vtable and those of its strings.
const MIN_ENTRY_LEN: usize = 32;
/// The same for a PAX record.
const MIN_RECORD_LEN: usize = 16;

/// How much of the buffer's length is not yet accounted for.
#[derive(Clone, Debug)]
struct Budget(usize);

impl Budget {
    fn spend(&mut self, len: usize) -> Result<(), DecodeError> {
        self.0 = self.0.checked_sub(len).ok_or(DecodeError::Amplified)?;
        Ok(())
    }

    fn text<'a>(&mut self, text: Option<&'a [u8]>) -> Result<&'a [u8], DecodeError> {
        let text = text.unwrap_or_default();
        self.spend(text.len())?;
        Ok(text)
    }
}

fn read_entry<'a>(
    index: usize,
    entry: FileMetadataRef<'a>,
    budget: &mut Budget,
) -> Result<Entry<&'a [u8]>, DecodeError> {
    let kind = EntryKind::from_wire(entry.type_()?.unwrap_or_default());
    let mut pax = Vec::new();
    if let Some(records) = entry.xattrs()? {
        budget.spend(records.len().saturating_mul(MIN_RECORD_LEN))?;
        pax.reserve_exact(records.len());
        for record in records {
            let record: XattrRef<'a> = record?;
            pax.push(PaxRecord { key: budget.text(record.key()?)?, value: budget.text(record.value()?)? });
        }
    }
    let entry = Entry {
        name: budget.text(entry.name()?)?,
        kind: kind.ok_or(DecodeError::UnknownKind { entry: index })?,
        data_offset: UncompressedOffset(unsigned("uncompressed_offset", entry.uncompressed_offset()?)?),
        size: unsigned("uncompressed_size", entry.uncompressed_size()?)?,
        link_name: budget.text(entry.linkname()?)?,
        mode: entry.mode()?,
        uid: entry.uid()?,
        gid: entry.gid()?,
        user_name: budget.text(entry.uname()?)?,
        group_name: budget.text(entry.gname()?)?,
        mod_time: budget.text(entry.mod_time()?)?,
        dev_major: entry.devmajor()?,
        dev_minor: entry.devminor()?,
        pax,
    };
    match entry.data_end().map(i64::try_from) {
        Some(Ok(_)) => Ok(entry),
        _ => Err(DecodeError::EntryTooLong { entry: index }),
    }
}

fn unsigned(field: &'static str, value: i64) -> Result<u64, DecodeError> {
    u64::try_from(value).map_err(|_| DecodeError::Negative { field, value })
}
