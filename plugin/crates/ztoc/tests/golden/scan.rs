//! The scanner's rules, on headers made by hand.

use ztoc::{Entry, EntryKind, TarError, TarScanner, UncompressedOffset};

const USTAR: &[u8] = b"ustar\x0000";
const GNU: &[u8] = b"ustar  \0";

/// Makes a header block; the checksum comes last.
#[derive(Clone)]
struct Header([u8; 512]);

impl Header {
    fn new(name: &[u8], typeflag: u8) -> Self {
        let mut header = Self([0; 512]);
        header.put(0, name).put(100, b"0000644\0").put(108, b"0000000\0").put(116, b"0000000\0");
        header.put(124, b"00000000000\0").put(136, b"00000000000\0").put(156, &[typeflag]).put(257, USTAR);
        header
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn size(&mut self, size: u64) -> &mut Self {
        self.put(124, format!("{size:011o}\0").as_bytes())
    }

    fn block(&self) -> Vec<u8> {
        let mut block = self.0;
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.to_vec()
    }

    fn with(&mut self, body: &[u8]) -> Vec<u8> {
        let mut bytes = self.size(body.len() as u64).block();
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        body.extend_from_slice(format!("{len} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    Header::new(b"PaxHeaders/x", b'x').with(&body)
}

type Scanned = (Vec<(u64, Entry)>, Result<u64, TarError>);

fn scan_in(bytes: &[u8], push_size: usize) -> Scanned {
    let mut scanner = TarScanner::new();
    let mut entries = Vec::new();
    for push in bytes.chunks(push_size) {
        let result =
            scanner.push(push, &mut |scanned| entries.push((scanned.header_offset.0, scanned.entry)));
        if let Err(error) = result {
            assert_eq!(scanner.push(b"x", &mut |_| ()), Err(error.clone()));
            assert_eq!(scanner.finish(), Err(error.clone()));
            return (entries, Err(error));
        }
    }
    (entries, scanner.finish().map(|end| end.0))
}

/// Scans whole and byte by byte, which must be the same.
fn scan(bytes: &[u8]) -> Scanned {
    let whole = scan_in(bytes, bytes.len().max(1));
    assert_eq!(whole, scan_in(bytes, 1));
    assert_eq!(whole, scan_in(bytes, 509));
    whole
}

fn one(bytes: &[u8]) -> Entry {
    let (mut entries, end) = scan(bytes);
    end.unwrap();
    assert_eq!(entries.len(), 1);
    entries.pop().unwrap().1
}

fn error(bytes: &[u8]) -> TarError {
    scan(bytes).1.unwrap_err()
}

#[test]
fn the_end_of_an_archive() {
    let file = Header::new(b"file", b'0').with(b"content");
    let zeros = |count: usize| vec![0; 512 * count];
    let end = |tail: &[u8]| scan(&[&file, tail].concat()).1;
    assert_eq!(end(&[]), Ok(1024));
    assert_eq!(end(&zeros(1)), Ok(1536));
    assert_eq!(end(&zeros(2)), Ok(2048));
    assert_eq!(end(&zeros(20)), Ok(2048));
    assert_eq!(end(&[zeros(2), b"anything".to_vec()].concat()), Ok(2048));
    assert_eq!(scan(&[]), (vec![], Ok(0)));
    assert_eq!(scan(&zeros(1)), (vec![], Ok(512)));
    // Cut off inside a block, or no tar after one block of zeros.
    assert_eq!(end(&[1]), Err(TarError::Truncated { offset: UncompressedOffset(1025) }));
    assert_eq!(end(&[0; 100]), Err(TarError::Truncated { offset: UncompressedOffset(1124) }));
    assert_eq!(end(&[0; 600]), Err(TarError::Truncated { offset: UncompressedOffset(1624) }));
    assert_eq!(
        end(&[zeros(1), file.clone()].concat()),
        Err(TarError::Header { offset: UncompressedOffset(1536) })
    );
    // Padding may be missing, data may not.
    assert_eq!(scan(&file[..519]).1, Ok(519));
    assert_eq!(scan(&file[..518]).1, Err(TarError::Truncated { offset: UncompressedOffset(518) }));
    assert_eq!(scan(&file[..512]).1, Err(TarError::Truncated { offset: UncompressedOffset(512) }));
    // An extension header that belongs to nothing is ignored, with or without its padding.
    let extension = pax(&[("path", b"x")]);
    assert_eq!(scan(&extension), (vec![], Ok(1024)));
    assert_eq!(scan(&extension[..600]), (vec![], Ok(600)));
    assert!(matches!(error(&extension[..515]), TarError::Truncated { .. }));
}

#[test]
fn names_are_put_together() {
    let mut header = Header::new(b"tail", b'0');
    header.put(345, b"pre/fix");
    assert_eq!(one(&header.block()).name, b"pre/fix/tail");
    header.put(508, b"tar\0");
    assert_eq!(one(&header.block()).name, b"pre/fix/tail");
    // GNU has times there; only an old Go wrote a prefix.
    header.put(257, GNU);
    assert_eq!(one(&header.block()).name, b"pre/fix/tail");
    assert_eq!(
        one(Header::new(b"tail", b'0').put(257, GNU).put(345, b"00000000000\0").block().as_slice()).name,
        b"tail"
    );
    assert_eq!(one(header.put(345, b"pr\xe9/fix").block().as_slice()).name, b"tail");
    // V7 has nothing after the link name.
    let mut v7 = Header::new(b"tail", 0);
    v7.put(257, &[0; 8]).put(345, b"pre/fix").put(265, b"alice");
    assert_eq!(one(&v7.block()).name, b"tail");
    assert_eq!(one(&v7.block()).user_name, b"");
    // All 100 bytes may be used, and are raw.
    assert_eq!(one(&Header::new(&[b'\xe9'; 100], b'0').block()).name, [b'\xe9'; 100]);
}

#[test]
fn extension_headers_win_in_order() {
    let long = |typeflag, name: &[u8]| Header::new(b"././@LongLink", typeflag).put(257, GNU).with(name);
    let member = Header::new(b"short", b'2').put(157, b"target").block();
    let path = pax(&[("path", b"from-pax"), ("linkpath", b"target-from-pax")]);
    let entry =
        one(&[long(b'L', b"from-gnu\0junk"), path.clone(), long(b'K', b"target-from-gnu"), member.clone()]
            .concat());
    assert_eq!((entry.name, entry.link_name), (b"from-gnu".to_vec(), b"target-from-gnu".to_vec()));
    let entry = one(&[long(b'L', b"\0"), path, member.clone()].concat());
    assert_eq!((entry.name, entry.link_name), (b"from-pax".to_vec(), b"target-from-pax".to_vec()));
    // They are about one member only, and its headers begin with the first of them.
    let (entries, _) = scan(&[long(b'L', b"first"), member.clone(), member].concat());
    let names: Vec<_> = entries.iter().map(|(offset, entry)| (*offset, entry.name.as_slice())).collect();
    assert_eq!(names, [(0, &b"first"[..]), (1536, b"short")]);
}

#[test]
fn pax_records_override_and_are_recorded() {
    let records: &[(&str, &[u8])] = &[
        ("uid", b"4294967297"),
        ("gid", b"-1"),
        ("uname", b"alice"),
        ("size", b"3"),
        ("mtime", b"-1.5"),
        ("gname", b""),
        ("SCHILY.xattr.user.k=v", b"x"),
        ("SCHILY.xattr.security.capability", b"\x01\0\xff\n"),
        ("a-first", b"1"),
        ("a-first", b"2"),
    ];
    let mut member = Header::new(b"name", b'0');
    member.put(297, b"staff");
    let entry = one(&[pax(records), member.block(), b"abc".to_vec()].concat());
    assert_eq!((entry.uid, entry.gid, entry.size), (1, u32::MAX, 3));
    assert_eq!((entry.user_name.as_slice(), entry.group_name.as_slice()), (&b"alice"[..], &b"staff"[..]));
    assert_eq!(entry.mod_time, b"1969-12-31T23:59:58.5Z");
    assert_eq!(entry.mtime(), Some((-2, 500_000_000)));
    let keys: Vec<&[u8]> = entry.pax.iter().map(|record| record.key.as_slice()).collect();
    assert!(keys.is_sorted(), "{keys:?}");
    assert_eq!(entry.pax.len(), 9);
    assert_eq!(entry.pax.iter().find(|record| record.key == b"a-first").unwrap().value, b"2");
    let xattrs: Vec<_> = entry.xattrs().collect();
    // The key ends at the first '='.
    assert_eq!(xattrs, [(&b"security.capability"[..], &b"\x01\0\xff\n"[..]), (b"user.k", b"v=x")]);
}

#[test]
fn kinds_and_bodies() {
    for (typeflag, name, kind) in [
        (b'0', &b"file/"[..], EntryKind::Regular),
        (0, b"file", EntryKind::Regular),
        (0, b"dir/", EntryKind::Directory),
        (b'1', b"x", EntryKind::Hardlink),
        (b'2', b"x", EntryKind::Symlink),
        (b'3', b"x", EntryKind::CharDevice),
        (b'4', b"x", EntryKind::BlockDevice),
        (b'5', b"x", EntryKind::Directory),
        (b'6', b"x", EntryKind::Fifo),
    ] {
        assert_eq!(one(&Header::new(name, typeflag).block()).kind, kind);
    }
    for typeflag in [b'7', b'g', b'V', b'M', b'Z', 0xff] {
        let offset = UncompressedOffset(0);
        assert_eq!(error(&Header::new(b"x", typeflag).block()), TarError::Unsupported { typeflag, offset });
    }
    // A hard link with a size has no body all the same.
    let mut link = Header::new(b"x", b'1');
    let bytes = [link.size(600).block(), Header::new(b"y", b'0').block()].concat();
    let (entries, end) = scan(&bytes);
    assert_eq!((entries.len(), entries[0].1.size, end), (2, 600, Ok(1024)));
}

#[test]
fn numbers_of_every_form() {
    let mut header = Header::new(b"x", b'3');
    header.put(108, &[0xff; 8]).put(116, &[0x80, 0, 0, 1, 0, 0, 0, 7]).put(100, b"7777777\0");
    header.put(136, &[0xff; 12]).put(329, b"     5 \0").put(337, &[0x80, 0, 0, 0, 0, 0x10, 0, 3]);
    let entry = one(&header.block());
    assert_eq!((entry.uid, entry.gid, entry.mode), (u32::MAX, 7, 0o7_777_777));
    assert_eq!((entry.dev_major, entry.dev_minor), (5, 0x10_0003));
    assert_eq!(entry.mod_time, b"1969-12-31T23:59:59Z");
    let far =
        one(Header::new(b"x", b'0').put(136, &[0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0]).block().as_slice());
    assert_eq!((far.mod_time.as_slice(), far.mtime()), (&b""[..], None));
}

#[test]
fn checksums_may_be_signed() {
    let mut block = Header::new(b"latin-\xe9\xff", b'0').block();
    let signed: i32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { i32::from(byte as i8) })
        .sum();
    block[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    assert_eq!(one(&block).name, b"latin-\xe9\xff");
    block[0] ^= 1;
    assert!(matches!(error(&block), TarError::Header { .. }));
}

#[test]
fn malformed_headers_are_errors() {
    let header = TarError::Header { offset: UncompressedOffset(0) };
    for (at, field) in
        [(100, &b"00006x4\0"[..]), (108, b"-000001\0"), (124, b"9"), (136, b"x"), (329, b"x"), (337, b"x")]
    {
        assert_eq!(error(Header::new(b"x", b'0').put(at, field).block().as_slice()), header, "{field:?}");
    }
    // Negative sizes, of files and of extension headers.
    for typeflag in [b'0', b'x', b'L'] {
        assert_eq!(error(Header::new(b"x", typeflag).put(124, &[0xff; 12]).block().as_slice()), header);
    }
    let member = Header::new(b"x", b'0').block();
    for records in [
        &[("size", &b"x"[..])][..],
        &[("size", b"-1")],
        &[("uid", b"1.5")],
        &[("mtime", b"now")],
        &[("atime", b"x")],
        &[("ctime", b"")],
        &[("path", b"a\0b")],
        &[("GNU.sparse.numbytes", b"1")],
    ] {
        let result = scan(&[pax(records), member.clone()].concat()).1;
        let is_empty = records[0].1.is_empty();
        assert_eq!(result.is_ok(), is_empty, "{records:?}: {result:?}");
    }
    assert!(matches!(
        error(Header::new(b"x", b'x').size((1 << 20) + 1).block().as_slice()),
        TarError::HeaderTooLong { .. }
    ));
    let mut huge = Header::new(b"x", b'0');
    assert_eq!(
        error(
            huge.put(124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
                .block()
                .as_slice()
        ),
        header
    );
}

#[test]
fn sparse_files_are_seen_in_every_format() {
    let member = Header::new(b"x", b'0').block();
    for records in [
        &[("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0")][..],
        &[("GNU.sparse.map", b"0,1"), ("GNU.sparse.numblocks", b"1")],
        &[("GNU.sparse.offset", b"0"), ("GNU.sparse.numbytes", b"1")],
    ] {
        assert!(matches!(error(&[pax(records), member.clone()].concat()), TarError::Sparse { .. }));
    }
    assert!(matches!(error(&Header::new(b"x", b'S').put(257, GNU).block()), TarError::Sparse { .. }));
    one(&[pax(&[("GNU.sparse.major", b"3"), ("GNU.sparse.minor", b"0")]), member].concat());
}
