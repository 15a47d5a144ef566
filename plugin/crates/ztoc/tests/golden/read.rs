//! Every zTOC of the Go tools is read, written again byte for byte, and used.

use ztoc::{Compression, SpanId, SpanInflater, UncompressedOffset, Want, Ztoc, extract_gzip};

use crate::corpus::{self, Golden, Layer};

#[test]
fn every_ztoc_is_written_again_byte_for_byte() {
    for golden in Golden::all() {
        assert_eq!(corpus::sha256(&golden.bytes), golden.digest, "{}", golden.file);
        let ztoc = Ztoc::decode(&golden.bytes).unwrap_or_else(|error| panic!("{}: {error}", golden.file));
        assert_eq!(ztoc.build_tool, golden.build_tool.as_bytes());
        assert_eq!(ztoc.version, b"0.9");
        assert_eq!(u64::try_from(ztoc.span_size()).unwrap(), golden.span_size);
        assert!(ztoc.encode() == golden.bytes, "{} differs", golden.file);
    }
}

#[test]
fn span_tables_are_those_of_the_manifest() {
    for golden in Golden::all() {
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        let spans: Vec<[u64; 4]> = ztoc
            .spans
            .iter()
            .map(|span| {
                [
                    span.compressed.start.0,
                    span.compressed.end.0,
                    span.uncompressed.start.0,
                    span.uncompressed.end.0,
                ]
            })
            .collect();
        assert_eq!(spans, golden.spans, "{}", golden.file);
        assert_eq!(ztoc.spans.span(SpanId(ztoc.spans.count())), None);
    }
}

#[test]
fn offsets_find_their_span() {
    for golden in Golden::all() {
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        for span in ztoc.spans.iter().filter(|span| span.uncompressed_len() > 0) {
            let (start, end) = (span.uncompressed.start, span.uncompressed.end);
            assert_eq!(ztoc.spans.at(start), span.id, "{}", golden.file);
            assert_eq!(ztoc.spans.at(UncompressedOffset(end.0 - 1)), span.id, "{}", golden.file);
            assert_eq!(ztoc.spans.covering(start..end), span.id..=span.id);
            assert_eq!(ztoc.spans.covering(start..start), span.id..=span.id);
        }
        let last = SpanId(ztoc.spans.count() - 1);
        assert_eq!(ztoc.spans.at(UncompressedOffset(u64::MAX)), last);
        let all = UncompressedOffset(0)..UncompressedOffset(u64::MAX);
        assert_eq!(ztoc.spans.covering(all).into_inner().1, last);
    }
}

#[test]
fn entries_are_those_of_the_tar() {
    for golden in Golden::all() {
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        let files = corpus::json(&format!("files/{}.json", golden.layer));
        let rows = files["entries"].as_array().unwrap();
        assert_eq!(ztoc.entries.len(), rows.len(), "{}", golden.file);
        for (entry, row) in ztoc.entries.iter().zip(rows) {
            let name = match row["name"].as_str() {
                Some(name) => name.as_bytes().to_vec(),
                None => unhex(row["name_hex"].as_str().unwrap()),
            };
            assert_eq!(entry.name, name);
            assert_eq!(entry.kind.as_str(), row["type"].as_str().unwrap());
            assert_eq!(entry.data_offset.0, row["offset"].as_u64().unwrap());
            assert_eq!(entry.size, row["size"].as_u64().unwrap());
            assert_eq!(format!("{:o}", entry.mode), row["mode"].as_str().unwrap());
            assert_eq!(u64::from(entry.uid), row["uid"].as_u64().unwrap());
            assert_eq!(u64::from(entry.gid), row["gid"].as_u64().unwrap());
            assert_eq!(entry.mod_time, row["mod_time"].as_str().unwrap().as_bytes());
            assert_eq!(entry.mtime().is_none(), entry.mod_time.is_empty());
            let records = row["pax_records"].as_array().map_or(&[][..], Vec::as_slice);
            assert_eq!(entry.pax.len(), records.len());
            for (ours, theirs) in entry.pax.iter().zip(records) {
                assert_eq!(ours.key, theirs["key"].as_str().unwrap().as_bytes());
                assert_eq!(ours.value, unhex(theirs["value_hex"].as_str().unwrap()));
            }
        }
    }
}

#[test]
fn every_file_is_extracted_span_by_span() {
    let mut files = 0;
    for golden in Golden::all() {
        let layer = Layer::open(&golden.layer);
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        let spans = corpus::decode_spans(&ztoc, &layer.blob);
        let expected = corpus::json(&format!("files/{}.json", golden.layer));
        for (entry, row) in ztoc.entries.iter().zip(expected["entries"].as_array().unwrap()) {
            let Some(digest) = row["sha256"].as_str() else { continue };
            if row.get("unreadable").is_some() {
                continue;
            }
            let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
            let content = corpus::content(&ztoc, &spans, entry);
            assert_eq!(content.len() as u64, entry.size);
            assert_eq!(corpus::sha256(&content), format!("sha256:{digest}"), "{} {row}", golden.file);
            files += 1;
        }
    }
    assert!(files > 500, "only {files} files were compared");
}

#[test]
fn the_last_span_decodes_to_the_end_of_the_stream() {
    for golden in Golden::all() {
        let layer = Layer::open(&golden.layer);
        if layer.compression != Compression::Gzip {
            continue;
        }
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        let tar = layer.tar();
        let last = ztoc.spans.iter().last().unwrap();
        let compressed = &layer.blob[last.compressed.start.0 as usize..];
        let checkpoint = ztoc.spans.checkpoint(last.id).unwrap();
        let expected = &tar[last.uncompressed.start.0 as usize..];
        let limit = expected.len();
        let decoded = extract_gzip(checkpoint.into(), compressed, Want::ToEnd { limit }).unwrap();
        assert!(decoded == expected, "{}", golden.file);
        if limit > 0 {
            extract_gzip(checkpoint.into(), compressed, Want::ToEnd { limit: limit - 1 }).unwrap_err();
        }
        extract_gzip(checkpoint.into(), compressed, Want::Exactly(limit)).unwrap();
        extract_gzip(checkpoint.into(), compressed, Want::Exactly(limit + 1)).unwrap_err();
        let cut = &compressed[..compressed.len() - 1];
        extract_gzip(checkpoint.into(), cut, Want::ToEnd { limit }).unwrap_err();
        let garbage = [compressed, b"x"].concat();
        extract_gzip(checkpoint.into(), &garbage, Want::ToEnd { limit }).unwrap_err();
    }
}

#[test]
fn pieces_of_any_size_decode_as_the_whole() {
    let mut state = 1_u64;
    let mut below = move |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    for golden in Golden::all() {
        let layer = Layer::open(&golden.layer);
        if layer.compression != Compression::Gzip {
            continue;
        }
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        let spans = corpus::decode_spans(&ztoc, &layer.blob);
        for (span, expected) in ztoc.spans.iter().zip(&spans) {
            let compressed = &layer.blob[span.compressed.start.0 as usize..span.compressed.end.0 as usize];
            let mut inflater = SpanInflater::new(ztoc.spans.checkpoint(span.id).unwrap().into()).unwrap();
            let (mut got, mut rest) = (Vec::new(), compressed);
            while got.len() < expected.len() {
                let piece = &rest[..rest.len().min(1 + below(3000))];
                let mut room = vec![0; (expected.len() - got.len()).min(1 + below(9000))];
                let pushed = inflater.push(piece, &mut room).unwrap();
                assert!(pushed.consumed == piece.len() || pushed.written == room.len(), "{}", golden.file);
                assert!(pushed.written > 0 || !rest.is_empty(), "{}", golden.file);
                got.extend_from_slice(&room[..pushed.written]);
                rest = &rest[pushed.consumed..];
            }
            assert!(got == *expected, "{}", golden.file);
            assert_eq!(inflater.written(), got.len());
        }
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}
