//! Writing a zTOC byte for byte as the Go tools do.
//!
//! A flatbuffer's bytes depend on the order in which its parts are made. Upstream's order, which is kept here: version and tool; entries
//! from last to first; the metadata vector and the TOC; checkpoints, digests, their vector; the compression info with its fields in the
//! order 1, 2, 3, 0; the root with 0, 1, 4, 2, 3, 5. Strings are never shared.

use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, VOffsetT, WIPOffset};

use crate::{Compression, Entry, SpanDigest, Ztoc};

/// Offsets are untyped here: the schema is in this module's order of calls, not in generated types.
type Offset = WIPOffset<UnionWIPOffset>;

/// Wire values of the compression algorithm; the first is the default and therefore not written.
pub(crate) const GZIP: i8 = 1;
pub(crate) const UNCOMPRESSED: i8 = 2;

/// The vtable offset of field `id`.
pub(crate) const fn slot(id: VOffsetT) -> VOffsetT {
    4 + 2 * id
}

pub(crate) fn encode(ztoc: &Ztoc) -> Vec<u8> {
    let mut writer =
        Writer { builder: FlatBufferBuilder::with_capacity(estimated_len(ztoc)), offsets: Vec::new() };
    let version = writer.text(&ztoc.version);
    let tool = writer.text(&ztoc.build_tool);

    let mut entries: Vec<Offset> = ztoc.entries.iter().rev().map(|entry| writer.entry(entry)).collect();
    entries.reverse();
    let metadata = writer.vector(&entries);
    let table = writer.builder.start_table();
    writer.builder.push_slot_always(slot(0), metadata);
    let toc = writer.builder.end_table(table);

    let checkpoints = writer.builder.create_vector(ztoc.spans.zinfo().as_bytes());
    let digests: Vec<Offset> =
        ztoc.spans.iter().map(|span| writer.text(span.digest.to_string().as_bytes())).collect();
    let digests = writer.vector(&digests);
    let builder = &mut writer.builder;
    let table = builder.start_table();
    let max_span = i32::try_from(ztoc.spans.count()).map_or(i32::MAX, |count| count.saturating_sub(1));
    builder.push_slot(slot(1), max_span, 0);
    builder.push_slot_always(slot(2), digests);
    builder.push_slot_always(slot(3), checkpoints);
    let algorithm = match ztoc.spans.compression() {
        Compression::Gzip => GZIP,
        Compression::Uncompressed => UNCOMPRESSED,
    };
    builder.push_slot(slot(0), algorithm, GZIP);
    let compression = builder.end_table(table);

    let table = builder.start_table();
    builder.push_slot_always(slot(0), version);
    builder.push_slot_always(slot(1), tool);
    builder.push_slot_always(slot(4), toc);
    builder.push_slot(slot(2), ztoc.compressed_size.cast_signed(), 0);
    builder.push_slot(slot(3), ztoc.uncompressed_size.cast_signed(), 0);
    builder.push_slot_always(slot(5), compression);
    let root = builder.end_table(table);
    builder.finish_minimal(root);
    let (mut bytes, start) = writer.builder.collapse();
    bytes.drain(..start);
    bytes
}

struct Writer<'b> {
    builder: FlatBufferBuilder<'b>,
    /// Reused from entry to entry.
    offsets: Vec<Offset>,
}

impl Writer<'_> {
    fn text(&mut self, text: &[u8]) -> Offset {
        self.builder.create_byte_string(text).as_union_value()
    }

    fn vector(&mut self, offsets: &[Offset]) -> Offset {
        self.builder.create_vector(offsets).as_union_value()
    }

    fn entry(&mut self, entry: &Entry) -> Offset {
        let name = self.text(&entry.name);
        let kind = self.text(entry.kind.as_str().as_bytes());
        let link_name = self.text(&entry.link_name);
        let user_name = self.text(&entry.user_name);
        let group_name = self.text(&entry.group_name);
        let mod_time = self.text(&entry.mod_time);
        let mut records = std::mem::take(&mut self.offsets);
        records.clear();
        for record in &entry.pax {
            let key = self.text(&record.key);
            let value = self.text(&record.value);
            let table = self.builder.start_table();
            self.builder.push_slot_always(slot(0), key);
            self.builder.push_slot_always(slot(1), value);
            records.push(self.builder.end_table(table).as_union_value());
        }
        let pax = self.vector(&records);
        self.offsets = records;

        let builder = &mut self.builder;
        let table = builder.start_table();
        builder.push_slot_always(slot(0), name);
        builder.push_slot_always(slot(1), kind);
        builder.push_slot(slot(2), entry.data_offset.0.cast_signed(), 0);
        builder.push_slot(slot(3), entry.size.cast_signed(), 0);
        builder.push_slot_always(slot(4), link_name);
        builder.push_slot(slot(5), entry.mode, 0);
        builder.push_slot(slot(6), entry.uid, 0);
        builder.push_slot(slot(7), entry.gid, 0);
        builder.push_slot_always(slot(8), user_name);
        builder.push_slot_always(slot(9), group_name);
        builder.push_slot_always(slot(10), mod_time);
        builder.push_slot(slot(11), entry.dev_major, 0);
        builder.push_slot(slot(12), entry.dev_minor, 0);
        builder.push_slot_always(slot(13), pax);
        builder.end_table(table).as_union_value()
    }
}

/// An upper bound of what an entry takes, its vtable shared: fields, the string lengths, their terminators and padding.
pub(crate) fn entry_len(entry: &Entry) -> usize {
    let text = |text: &[u8]| text.len().saturating_add(8);
    let fixed = [&entry.name, &entry.link_name, &entry.user_name, &entry.group_name, &entry.mod_time]
        .into_iter()
        .fold(160_usize, |sum, field| sum.saturating_add(text(field)));
    entry.pax.iter().fold(fixed, |sum, record| {
        sum.saturating_add(16).saturating_add(text(&record.key)).saturating_add(text(&record.value))
    })
}

/// An upper bound of what one span's digest takes.
pub(crate) const DIGEST_LEN: usize = SpanDigest::TEXT_LEN + 13;

fn estimated_len(ztoc: &Ztoc) -> usize {
    let entries = ztoc.entries.iter().fold(0_usize, |sum, entry| sum.saturating_add(entry_len(entry)));
    let digests = DIGEST_LEN.saturating_mul(usize::try_from(ztoc.spans.count()).unwrap_or(0));
    let texts = ztoc.version.len().saturating_add(ztoc.build_tool.len());
    [ztoc.spans.zinfo().as_bytes().len(), digests, texts, 512]
        .into_iter()
        .fold(entries, usize::saturating_add)
}
