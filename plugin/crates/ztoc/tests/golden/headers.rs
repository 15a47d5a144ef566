//! The layer's own headers against the TOC.

use ztoc::{Compression, Entry, EntryKind, HeaderMismatch, InvalidToc, PaxRecord, Ztoc, verify_header};

use crate::corpus::{Golden, Layer};

#[test]
fn true_headers_agree() {
    for golden in Golden::all().into_iter().filter(|golden| !golden.is_unindexable()) {
        let tar = Layer::open(&golden.layer).tar();
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        let ranges = ztoc.header_ranges().unwrap();
        assert_eq!(ranges.len(), ztoc.entries.len());
        for header in ranges {
            let (start, end) = (header.range.start, header.range.end);
            let entry = &ztoc.entries[header.entry];
            assert_eq!(entry.data_offset, end);
            let bytes = &tar[start.0 as usize..end.0 as usize];
            verify_header(bytes, &entry.fingerprint(), end, start).unwrap();
        }
    }
}

#[test]
fn layers_that_cannot_be_served_are_refused() {
    for golden in Golden::all().into_iter().filter(Golden::is_unindexable) {
        let tar = Layer::open(&golden.layer).tar();
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        let Ok(ranges) = ztoc.header_ranges() else { continue };
        let all_agree = ranges.into_iter().all(|header| {
            let (start, end) = (header.range.start, header.range.end);
            let entry = &ztoc.entries[header.entry];
            verify_header(&tar[start.0 as usize..end.0 as usize], &entry.fingerprint(), end, start).is_ok()
        });
        assert!(!all_agree, "{}", golden.file);
    }
}

#[test]
fn every_changed_field_is_found() {
    type Change = fn(&mut Entry);
    let changes: [(&str, Change); 15] = [
        ("name", |entry| entry.name.push(b'x')),
        ("kind", |entry| {
            entry.kind = if entry.kind == EntryKind::Fifo { EntryKind::Regular } else { EntryKind::Fifo };
        }),
        ("size", |entry| entry.size += 1),
        ("link name", |entry| entry.link_name.push(b'x')),
        ("mode", |entry| entry.mode ^= 0o4000),
        ("uid", |entry| entry.uid ^= 1),
        ("gid", |entry| entry.gid ^= 1),
        ("mtime", |entry| entry.mod_time = b"2001-01-01T00:00:00Z".to_vec()),
        ("mtime fraction", |entry| entry.mod_time = b"2001-01-01T00:00:00.5Z".to_vec()),
        ("no mtime", |entry| entry.mod_time.clear()),
        ("major", |entry| entry.dev_major += 1),
        ("minor", |entry| entry.dev_minor += 1),
        ("new xattr", |entry| entry.pax.push(record("SCHILY.xattr.user.new", b""))),
        ("xattr value", |entry| {
            match entry.pax.iter_mut().find(|record| record.key.starts_with(b"SCHILY.xattr.")) {
                Some(record) => record.value.push(0),
                None => entry.mode ^= 1,
            }
        }),
        ("lost xattr", |entry| {
            match entry.pax.iter().position(|record| record.key.starts_with(b"SCHILY.xattr.")) {
                Some(at) => drop(entry.pax.remove(at)),
                None => entry.mode ^= 1,
            }
        }),
    ];
    for name in ["pax-gzip9", "gnu-gzip6", "ustar-gzip1-fname"] {
        let golden = Golden::all().into_iter().find(|golden| golden.layer == name).unwrap();
        let tar = Layer::open(name).tar();
        let ztoc = Ztoc::decode(&golden.bytes).unwrap();
        for header in ztoc.header_ranges().unwrap() {
            let (start, end) = (header.range.start, header.range.end);
            let bytes = &tar[start.0 as usize..end.0 as usize];
            for (what, change) in &changes {
                let mut entry = ztoc.entries[header.entry].clone();
                change(&mut entry);
                let result = verify_header(bytes, &entry.fingerprint(), end, start);
                assert!(matches!(result, Err(HeaderMismatch::Content)), "{what} of {entry:?}: {result:?}");
            }
        }
    }
}

#[test]
fn another_zone_and_records_that_nobody_serves_do_not_matter() {
    let golden = Golden::all().into_iter().find(|golden| golden.layer == "gnu-gzip6").unwrap();
    for entry in Ztoc::decode(&golden.bytes).unwrap().entries {
        let mut other = entry.clone();
        let text = String::from_utf8(entry.mod_time.clone()).unwrap();
        other.mod_time = text.replace('Z', "+00:00").into_bytes();
        other.pax.push(record("comment", b"hello"));
        other.user_name = b"somebody".to_vec();
        assert_eq!(entry.fingerprint(), other.fingerprint());
    }
}

#[test]
fn a_header_is_looked_for_in_its_place_only() {
    let golden = Golden::all().into_iter().find(|golden| golden.layer == "whiteouts").unwrap();
    let tar = Layer::open("whiteouts").tar();
    let ztoc = Ztoc::decode(&golden.bytes).unwrap();
    let ranges = ztoc.header_ranges().unwrap();
    let (start, end) = (ranges[0].range.start, ranges[0].range.end);
    let fingerprint = ztoc.entries[0].fingerprint();
    let bytes = &tar[start.0 as usize..end.0 as usize];
    let check = |bytes: &[u8], start: u64, end: u64| {
        verify_header(bytes, &fingerprint, ztoc::UncompressedOffset(end), ztoc::UncompressedOffset(start))
    };
    check(bytes, start.0, end.0).unwrap();
    check(bytes, start.0 + 512, end.0 + 512).unwrap();
    // Two members' headers, half a header, none, zeros, and a range of another length.
    assert!(check(&tar[..1024], 0, 1024).is_err());
    assert!(check(&bytes[..256], 0, 256).is_err());
    assert!(check(&[], 0, 0).is_err());
    assert!(check(&[0; 512], 0, 512).is_err());
    assert!(check(bytes, start.0, end.0 + 1).is_err());
    assert!(check(bytes, end.0, start.0).is_err());
}

#[test]
fn impossible_places_are_refused() {
    let golden = Golden::all().into_iter().find(|golden| golden.layer == "plain").unwrap();
    let ztoc = Ztoc::decode(&golden.bytes).unwrap();
    assert_eq!(ztoc.spans.compression(), Compression::Uncompressed);
    let result = |change: fn(&mut Ztoc)| {
        let mut ztoc = ztoc.clone();
        change(&mut ztoc);
        ztoc.header_ranges().map(drop)
    };
    result(|_| ()).unwrap();
    result(|ztoc| ztoc.entries.reverse()).unwrap();
    result(|ztoc| ztoc.entries.clear()).unwrap();
    assert!(matches!(
        result(|ztoc| ztoc.entries[3].data_offset.0 += 1),
        Err(InvalidToc::Misaligned { entry: 3, .. })
    ));
    assert!(matches!(
        result(|ztoc| ztoc.entries[0].data_offset.0 = 0),
        Err(InvalidToc::Overlap { entry: 0 })
    ));
    assert!(matches!(result(|ztoc| ztoc.entries[3].size += 512), Err(InvalidToc::Overlap { entry: 4 })));
    assert!(matches!(
        result(|ztoc| ztoc.entries[3].data_offset = ztoc.entries[2].data_offset),
        Err(InvalidToc::Overlap { entry: 3 })
    ));
    assert!(matches!(
        result(|ztoc| ztoc.entries.last_mut().unwrap().size += 4096),
        Err(InvalidToc::BeyondEnd { .. })
    ));
    assert!(matches!(
        result(|ztoc| {
            ztoc.entries.truncate(1);
            ztoc.entries[0].data_offset.0 = 8 << 20;
        }),
        Err(InvalidToc::HeaderTooLong { entry: 0, .. })
    ));
}

fn record(key: &str, value: &[u8]) -> PaxRecord {
    PaxRecord { key: key.as_bytes().to_vec(), value: value.to_vec() }
}
