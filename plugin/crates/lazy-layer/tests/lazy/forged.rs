//! zTOCs that lie.

use std::sync::Arc;

use erofs_image::Nid;
use lazy_layer::{CreateError, Layer, ReadError};
use ztoc::{Entry, PaxRecord, UncompressedOffset, Ztoc};

use crate::bed::{Bed, PATIENCE, nid, read, read_all};
use crate::making::{Made, Random, Shape, append, digest};

/// What the lie is called, and how it is told.
type Lie<T> = (&'static str, fn(&mut T));

fn entry<'a>(ztoc: &'a mut Ztoc, path: &str) -> &'a mut Entry {
    ztoc.entries.iter_mut().find(|entry| entry.name == path.as_bytes()).unwrap()
}

/// Three files, the second of which is the one to lie about, in spans of a few blocks, so that headers lie across borders too.
fn made(shape: Shape) -> Made {
    let mut random = Random::new(21);
    let mut tar = tar::Builder::new(Vec::new());
    let mut files = Vec::new();
    for name in ["first", "victim", "last"] {
        let content = random.bytes(3000);
        tar.append_pax_extensions([("SCHILY.xattr.user.note", name.as_bytes())]).unwrap();
        append(&mut tar, name, 0o755, &content);
        files.push((name.to_owned(), content));
    }
    Made::of_tar(tar.into_inner().unwrap(), files, shape, 1500)
}

#[test]
fn a_forged_row_makes_that_file_unreadable_and_no_other() {
    let lies: [Lie<Entry>; 9] = [
        ("setuid", |entry| entry.mode |= 0o4000),
        ("owner", |entry| entry.uid = 0),
        ("group", |entry| entry.gid = 5),
        ("size", |entry| entry.size -= 1),
        ("time", |entry| entry.mod_time = b"2020-01-01T00:00:00Z".to_vec()),
        ("name", |entry| entry.name = b"usr/bin/sudo".to_vec()),
        ("xattr value", |entry| entry.pax.iter_mut().for_each(|record| record.value = b"forged".to_vec())),
        ("xattr", |entry| {
            let record = PaxRecord { key: b"SCHILY.xattr.security.capability".to_vec(), value: vec![1; 20] };
            entry.pax.push(record);
        }),
        ("xattr left out", |entry| entry.pax.clear()),
    ];
    for shape in [Shape::Gzip, Shape::Plain] {
        let honest = made(shape);
        for (lie, forge) in lies {
            let forged = honest.with_ztoc(|ztoc| forge(entry(ztoc, "victim")));
            let bed = Bed::new();
            let (layer, _source, attachment) = bed.lazy(&forged);
            let victim = if lie == "name" { "usr/bin/sudo" } else { "victim" };
            let wanted = nid(&layer, victim);
            for _ in 0..2 {
                match read(&layer, victim) {
                    Err(ReadError::Header { nid }) => assert_eq!(nid, wanted),
                    other => panic!("{lie}: {other:?}"),
                }
            }
            for other in [0, 2] {
                assert_eq!(read(&layer, &forged.files[other].0).unwrap(), forged.files[other].1, "{lie}");
            }
            assert_eq!(layer.status().headers_refused, 1);
            the_layer_file_holds_back(&layer, &forged, wanted);

            drop((layer, attachment));
            let bed = bed.restart();
            let layer = bed.store.open_layer(&forged.key()).unwrap().unwrap();
            assert!(
                matches!(read(&layer, victim), Err(ReadError::Header { .. })),
                "{lie}: a restart forgives nothing"
            );
            assert_eq!(read(&layer, "last").unwrap(), forged.files[2].1);
        }
    }
}

/// Of the layer file too, every block is given but those of the file in question.
fn the_layer_file_holds_back(layer: &Arc<Layer>, made: &Made, victim: Nid) {
    let tar_start = layer.file_size() - made.ztoc.uncompressed_size.next_multiple_of(512);
    let at = made.ztoc.entries[1].data_offset.0;
    let hidden = at..at + layer.image().inode(victim).unwrap().size;
    for block in (0..made.ztoc.uncompressed_size).step_by(512) {
        let (tell, told) = std::sync::mpsc::channel();
        let reply = move |result: Result<&[u8], ReadError>| tell.send(result.map(<[u8]>::to_vec)).unwrap();
        layer.read_file(tar_start + block, 512, Box::new(reply));
        match told.recv_timeout(PATIENCE).unwrap() {
            Err(ReadError::Header { nid }) => assert!(hidden.contains(&block) && nid == victim, "{block}"),
            Ok(bytes) => {
                assert!(!hidden.contains(&block), "{block} of {hidden:?}");
                assert_eq!(bytes, made.tar[block as usize..block as usize + 512]);
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_truth_in_other_words_is_no_lie() {
    let honest = made(Shape::Gzip);
    let other = honest.with_ztoc(|ztoc| {
        let victim = entry(ztoc, "victim");
        assert_eq!(victim.mod_time, b"2020-09-13T12:26:40Z");
        victim.mod_time = b"2020-09-13T08:26:40-04:00".to_vec();
        victim.user_name = b"somebody".to_vec();
    });
    let bed = Bed::new();
    let (layer, _source, _attachment) = bed.lazy(&other);
    read_all(&layer, &other);
}

#[test]
fn a_forged_hard_link_makes_its_file_unreadable_when_it_is_seen() {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "harmless", 0o755, b"echo hello");
    append(&mut tar, "other", 0o755, b"other");
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Link);
    link.set_size(0);
    tar.append_link(&mut link, "alias", "other").unwrap();
    append(&mut tar, "end", 0o755, b"the end");
    let made = Made::of_tar(tar.into_inner().unwrap(), vec![], Shape::Gzip, 4 << 20);
    let forged = made.with_ztoc(|ztoc| entry(ztoc, "alias").link_name = b"harmless".to_vec());
    let bed = Bed::new();
    let (layer, _source, _attachment) = bed.lazy(&forged);
    assert_eq!(read(&layer, "end").unwrap(), b"the end");
    assert!(matches!(read(&layer, "alias"), Err(ReadError::Header { .. })));
    assert_eq!(read(&layer, "other").unwrap(), b"other");
}

#[test]
fn a_poisoned_index_poisons_only_itself() {
    let honest = made(Shape::Gzip);
    let forged = honest.with_ztoc(|ztoc| entry(ztoc, "victim").mode = 0o4755);
    let bed = Bed::new();
    let (poisoned, _source, _attached) = bed.lazy(&forged);
    assert!(read(&poisoned, "victim").is_err());
    let (clean, _source, _attached) = bed.lazy(&honest);
    read_all(&clean, &honest);
    assert!(read(&poisoned, "victim").is_err());
}

#[test]
fn numbers_that_lie_are_refused_at_creation() {
    let honest = made(Shape::Gzip);
    let lies: [Lie<Ztoc>; 9] = [
        ("size beyond the end", |ztoc| entry(ztoc, "last").size = 1 << 20),
        ("size that overflows", |ztoc| entry(ztoc, "last").size = i64::MAX as u64),
        ("size over the next member", |ztoc| entry(ztoc, "victim").size = 6000),
        ("offset in a block", |ztoc| entry(ztoc, "victim").data_offset.0 += 1),
        ("offset beyond the end", |ztoc| entry(ztoc, "last").data_offset = UncompressedOffset(1 << 40)),
        ("offset that overflows", |ztoc| {
            entry(ztoc, "last").data_offset = UncompressedOffset(i64::MAX as u64 & !511)
        }),
        ("two at one place", |ztoc| entry(ztoc, "last").data_offset = entry(ztoc, "victim").data_offset),
        ("a member left out", |ztoc| ztoc.entries.retain(|entry| entry.name != b"victim")),
        ("huge tar", |ztoc| ztoc.uncompressed_size = 1 << 50),
    ];
    for (lie, forge) in lies {
        let forged = honest.with_ztoc(forge);
        let bed = Bed::new();
        let result = bed.store.create_layer(&forged.key(), &forged.ztoc_bytes);
        if lie == "a member left out" {
            // Its header would be taken for a part of the next one's: that is found when it is read.
            let layer = result.unwrap();
            let source = crate::bed::Source::new(&forged.blob);
            let _attachment = layer.attach(source);
            assert!(matches!(read(&layer, "last"), Err(ReadError::Header { .. })));
        } else {
            assert!(result.is_err(), "{lie}");
            assert!(bed.store.keys().unwrap().is_empty(), "{lie}: nothing is left");
        }
    }
}

#[test]
fn garbage_is_refused() {
    let honest = made(Shape::Gzip);
    let bed = Bed::new();
    let mut key = honest.key();
    assert!(matches!(bed.store.create_layer(&key, b"else"), Err(CreateError::Digest { .. })));
    key.ztoc = digest(b"else");
    assert!(matches!(bed.store.create_layer(&key, b"else"), Err(CreateError::Decode { .. })));
    key.layer = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    assert!(matches!(bed.store.create_layer(&key, b"else"), Err(CreateError::Key(_))));
    let mut random = Random::seeded("garbage_is_refused");
    for _ in 0..100 {
        let mut bytes = honest.ztoc_bytes.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        let made = Made { ztoc_bytes: bytes, ..made(Shape::Gzip) };
        // Refused, or a layer that gives nothing but right bytes or errors.
        if let Ok(layer) = bed.store.create_layer(&made.key(), &made.ztoc_bytes) {
            let source = crate::bed::Source::new(&made.blob);
            let _attachment = layer.attach(source);
            for (path, content) in &made.files {
                let Some(found) = layer.image().lookup(layer.image().root(), path.as_bytes()).ok().flatten()
                else {
                    continue;
                };
                if let Ok(got) = crate::bed::ask(&layer, found, 0, 10_000).wait() {
                    assert!(got == *content, "{path}");
                }
            }
        }
        bed.store.remove_unused(&Default::default()).unwrap();
    }
}
