//! Nothing that is damaged, cut off or forged makes anything panic, hang or grow.

use std::time::{Duration, Instant};

use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use ztoc::{
    CheckpointRef, Compression, DecodeError, ExtractError, SpanId, UncompressedOffset, Want, Ztoc,
    extract_gzip, extract_gzip_into,
};

use crate::build::build;
use crate::corpus::{Golden, Layer, Random};

/// How long each of these tests goes on.
const TIME: Duration = Duration::from_secs(4);

/// Asks everything that there is to ask; the answers only have to come.
fn exercise(ztoc: &Ztoc) {
    let _ = ztoc.header_ranges();
    let _ = ztoc.span_size();
    for entry in &ztoc.entries {
        let _ = (entry.fingerprint(), entry.mtime(), entry.xattrs().count());
        let end = UncompressedOffset(entry.data_offset.0 + entry.size);
        let covering = ztoc.spans.covering(entry.data_offset..end);
        assert!(ztoc.spans.span(*covering.start()).is_some() && ztoc.spans.span(*covering.end()).is_some());
    }
    let last = ztoc.spans.count() - 1;
    for span in ztoc.spans.iter() {
        assert!(span.compressed.start < span.compressed.end && span.compressed.end.0 <= ztoc.compressed_size);
        assert!(span.uncompressed.start <= span.uncompressed.end || span.id.0 == last);
        assert!(span.uncompressed_len() <= span.compressed_len().saturating_mul(1032));
        if let Some(checkpoint) = ztoc.spans.checkpoint(span.id) {
            assert!(checkpoint.bits < 8);
        }
    }
    assert_eq!(ztoc.spans.span(SpanId(u32::MAX)), None);
    assert_eq!(ztoc.spans.at(UncompressedOffset(u64::MAX)), SpanId(last));
    assert_eq!(Ztoc::decode(&ztoc.encode()).unwrap(), *ztoc);
}

#[test]
fn damaged_ztocs() {
    let mut random = Random::new("damaged_ztocs");
    let goldens = Golden::all();
    let (until, mut survivors, mut rounds) = (Instant::now() + TIME, 0, 0);
    while Instant::now() < until {
        let mut bytes = goldens[random.below(goldens.len())].bytes.clone();
        // Most of a zTOC is windows, where damage goes unnoticed: half of the rounds strike outside of them.
        if random.below(2) == 0 {
            random.damage(&mut bytes);
        } else {
            let len = bytes.len();
            let at = if random.below(2) == 0 {
                random.below(512.min(len))
            } else {
                len - 1 - random.below(len.min(8192))
            };
            bytes[at] ^= 1 << random.below(8);
        }
        if let Ok(ztoc) = Ztoc::decode(&bytes) {
            exercise(&ztoc);
            survivors += 1;
        }
        rounds += 1;
    }
    assert!(rounds > 50 && survivors > 0 && survivors < rounds, "{survivors} of {rounds}");
}

#[test]
fn truncated_ztocs() {
    for golden in Golden::all() {
        let len = golden.bytes.len();
        let step = (len / 200).max(1);
        for cut in (0..len).step_by(step).chain(len.saturating_sub(64)..len) {
            if let Ok(ztoc) = Ztoc::decode(&golden.bytes[..cut]) {
                exercise(&ztoc);
            }
        }
    }
}

#[test]
fn damaged_layers_when_building() {
    let mut random = Random::new("damaged_layers_when_building");
    let goldens = Golden::all();
    let until = Instant::now() + TIME;
    while Instant::now() < until {
        let golden = &goldens[random.below(goldens.len())];
        let layer = Layer::open(&golden.layer);
        let mut blob = layer.blob;
        random.damage(&mut blob);
        if let Ok(built) = build(layer.compression, &blob, golden.span_size, "test", || random.push_size()) {
            exercise(&built.ztoc);
        }
    }
}

#[test]
fn damaged_tars_when_building() {
    let mut random = Random::new("damaged_tars_when_building");
    let layers: Vec<_> =
        ["pax-gzip9", "gnu-gzip6", "whiteouts", "sparse-pax00"].map(|name| Layer::open(name).tar()).into();
    let until = Instant::now() + TIME;
    while Instant::now() < until {
        let mut tar = layers[random.below(layers.len())].clone();
        random.damage(&mut tar);
        if let Ok(built) = build(Compression::Uncompressed, &tar, 100_000, "test", || random.push_size()) {
            exercise(&built.ztoc);
            built.ztoc.header_ranges().unwrap();
        }
    }
}

#[test]
fn damaged_spans() {
    let mut random = Random::new("damaged_spans");
    let goldens: Vec<_> = Golden::all();
    let until = Instant::now() + TIME;
    while Instant::now() < until {
        let golden = &goldens[random.below(goldens.len())];
        let layer = Layer::open(&golden.layer);
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        for span in ztoc.spans.iter() {
            let Some(checkpoint) = ztoc.spans.checkpoint(span.id) else { continue };
            let mut compressed =
                layer.blob[span.compressed.start.0 as usize..span.compressed.end.0 as usize].to_vec();
            random.damage(&mut compressed);
            let len = span.uncompressed_len() as usize;
            let window = &checkpoint.window[..random.below(32769)];
            let bits = random.below(10) as u8;
            for checkpoint in [checkpoint.into(), CheckpointRef { bits, window }] {
                if let Ok(data) = extract_gzip(checkpoint, &compressed, Want::Exactly(len)) {
                    assert_eq!(data.len(), len);
                }
                let limit = random.below(2 * len + 1);
                if let Ok(data) = extract_gzip(checkpoint, &compressed, Want::ToEnd { limit }) {
                    assert!(data.len() <= limit);
                }
            }
        }
    }
}

#[test]
fn checkpoints_out_of_range_are_errors() {
    let out = &mut [0; 1];
    for bits in 8..=255 {
        let result = extract_gzip_into(CheckpointRef { bits, window: &[] }, b"\xff", out);
        assert!(matches!(result, Err(ExtractError::Bits(_))));
    }
    for bits in 0..8 {
        let result = extract_gzip_into(CheckpointRef { bits, window: &[] }, b"", out);
        assert!(matches!(result, Err(ExtractError::Truncated(0))));
    }
}

type Offset = WIPOffset<UnionWIPOffset>;

fn slot(id: u16) -> u16 {
    4 + 2 * id
}

/// Size of a tar of one span.
const TAR: i64 = 1 << 20;

/// The zinfo of that tar.
fn tar_zinfo() -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let table = builder.start_table();
    builder.push_slot_always::<i64>(slot(1), TAR);
    builder.push_slot_always::<i64>(slot(2), TAR);
    let root = builder.end_table(table);
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

/// Writes a zTOC of such a tar whose entries, and the records in them, are one and the same table many times.
fn amplified(entries: usize, records: usize) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let text = builder.create_byte_string(&[b'x'; 4000]).as_union_value();
    let kind = builder.create_byte_string(b"reg").as_union_value();
    let table = builder.start_table();
    builder.push_slot_always::<Offset>(slot(0), text);
    builder.push_slot_always::<Offset>(slot(1), text);
    let record = builder.end_table(table).as_union_value();
    let records = builder.create_vector(&vec![record; records]).as_union_value();
    let table = builder.start_table();
    builder.push_slot_always::<Offset>(slot(0), text);
    builder.push_slot_always::<Offset>(slot(1), kind);
    builder.push_slot_always::<Offset>(slot(13), records);
    let entry = builder.end_table(table).as_union_value();
    let entries = builder.create_vector(&vec![entry; entries]).as_union_value();
    let table = builder.start_table();
    builder.push_slot_always::<Offset>(slot(0), entries);
    let toc = builder.end_table(table).as_union_value();
    let digest = builder.create_string(&format!("sha256:{:064}", 0));
    let digests = builder.create_vector(&[digest]).as_union_value();
    let checkpoints = builder.create_vector(&tar_zinfo()).as_union_value();
    let table = builder.start_table();
    // Uncompressed.
    builder.push_slot_always::<i8>(slot(0), 2);
    builder.push_slot_always::<Offset>(slot(2), digests);
    builder.push_slot_always::<Offset>(slot(3), checkpoints);
    let compression = builder.end_table(table).as_union_value();
    let table = builder.start_table();
    builder.push_slot_always::<i64>(slot(2), TAR);
    builder.push_slot_always::<i64>(slot(3), TAR);
    builder.push_slot_always::<Offset>(slot(4), toc);
    builder.push_slot_always::<Offset>(slot(5), compression);
    let root = builder.end_table(table);
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

#[test]
fn shared_tables_do_not_multiply() {
    for (entries, records) in [(100_000, 100_000), (1, 100_000), (100_000, 0), (100_000, 1)] {
        let bytes = amplified(entries, records);
        assert!(bytes.len() < 1 << 20);
        let result = Ztoc::decode(&bytes);
        assert!(
            matches!(result, Err(DecodeError::Amplified)),
            "{entries} × {records}: {:?}",
            result.map(drop)
        );
    }
    assert_eq!(Ztoc::decode(&amplified(1, 0)).unwrap().entries.len(), 1);
}
