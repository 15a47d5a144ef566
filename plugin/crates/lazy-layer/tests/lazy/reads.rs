//! That what is read is what the layer has.

use std::sync::Arc;
use std::time::Duration;

use erofs_image::Nid;
use lazy_layer::{BlobSource, Layer, MAX_READ, ReadError};

use crate::bed::{Bed, Fault, PATIENCE, Source, ask, asked_for, nid, read, read_all};
use crate::making::{Made, Random, Shape, append};

const SHAPES: [Shape; 3] = [Shape::Gzip, Shape::Members(100_000), Shape::Plain];

#[test]
fn random_concurrent_reads_equal_the_plain_bytes() {
    let mut random = Random::seeded("random_concurrent_reads_equal_the_plain_bytes");
    for shape in SHAPES {
        let made = Arc::new(Made::random(random.next(), shape, 40, 65_536));
        let bed = Bed::new();
        let (layer, source, attachment) = bed.lazy(&made);
        source.set(Fault::Delay(Duration::from_millis(1)));
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let (layer, made) = (Arc::clone(&layer), Arc::clone(&made));
                let mut random = Random::new(random.next());
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let (path, content) = &made.files[random.below(made.files.len() as u64) as usize];
                        let offset = random.below(content.len() as u64 + 10);
                        let len = random.below(140_000) as u32;
                        let got = ask(&layer, nid(&layer, path), offset, len).wait().unwrap();
                        let start = (offset as usize).min(content.len());
                        let end = (start + len as usize).min(content.len());
                        assert!(got == content[start..end], "{path} at {offset}, {len} bytes");
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.join().unwrap();
        }
        read_all(&layer, &made);
        assert!(asked_for(&made, &source).iter().all(|times| *times <= 1), "{:?}", asked_for(&made, &source));
        assert_eq!(layer.status().headers_refused, 0);
        drop(attachment);
    }
}

#[test]
fn each_span_is_fetched_once_however_many_read() {
    let made = Made::random(1, Shape::Gzip, 30, 32_768);
    let bed = Bed::new();
    let (layer, source, _attachment) = bed.lazy(&made);
    source.set(Fault::Delay(Duration::from_millis(30)));
    let asked: Vec<_> = (0..20)
        .flat_map(|_| made.files.iter())
        .map(|(path, content)| (ask(&layer, nid(&layer, path), 0, content.len() as u32), content))
        .collect();
    for (asked, content) in asked {
        assert_eq!(&asked.wait().unwrap(), content);
    }
    assert!(asked_for(&made, &source).iter().all(|times| *times <= 1), "{:?}", asked_for(&made, &source));
    let status = layer.status();
    let fetched: u64 = source.asked.lock().iter().map(|range| range.end - range.start).sum();
    assert_eq!(status.fetched_on_demand, fetched);
    assert!(status.reads_that_waited > 0 && status.present <= status.size);
}

#[test]
fn adjacent_spans_of_one_read_come_in_one_range() {
    let mut tar = tar::Builder::new(Vec::new());
    let content = Random::new(3).bytes(1_000_000);
    append(&mut tar, "big", 0o644, &content);
    for shape in SHAPES {
        let files = vec![("big".to_owned(), content.clone())];
        let made = Made::of_tar(tar.get_ref().clone(), files, shape, 65_536);
        let bed = Bed::new();
        let (layer, source, _attachment) = bed.lazy(&made);
        read_all(&layer, &made);
        assert_eq!(source.asked.lock().len(), 1, "{shape:?}: {:?}", source.asked.lock());

        let bed = Bed::with(|options| options.max_range = 100_000);
        let (layer, source, _attachment) = bed.lazy(&made);
        read_all(&layer, &made);
        let asked = source.asked.lock();
        assert!(asked.len() > 2 && asked.iter().all(|range| range.end - range.start <= 100_000), "{asked:?}");
    }
}

#[test]
fn the_edges_of_files() {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "empty", 0o644, b"");
    append(&mut tar, "five", 0o644, b"12345");
    append(&mut tar, "block", 0o644, &[7; 512]);
    append(&mut tar, "dir/last", 0o644, b"z");
    for shape in SHAPES {
        let made = Made::of_tar(tar.get_ref().clone(), vec![], shape, 512);
        let bed = Bed::new();
        let (layer, source, _attachment) = bed.lazy(&made);
        assert_eq!(read(&layer, "empty").unwrap(), b"");
        assert!(source.asked.lock().is_empty(), "an empty file needs nothing");
        let five = nid(&layer, "five");
        for (offset, len, expected) in
            [(0, 5, "12345"), (0, u32::MAX, "12345"), (4, 1, "5"), (4, 9, "5"), (5, 1, ""), (2, 0, "")]
        {
            assert_eq!(ask(&layer, five, offset, len).wait().unwrap(), expected.as_bytes());
        }
        assert_eq!(ask(&layer, five, u64::MAX, u32::MAX).wait().unwrap(), b"");
        assert_eq!(read(&layer, "block").unwrap(), [7; 512]);
        assert_eq!(read(&layer, "dir/last").unwrap(), b"z");
        assert!(matches!(ask(&layer, nid(&layer, "dir"), 0, 1).wait(), Err(ReadError::NotAFile { .. })));
        for wild in [0, 1, u64::MAX, 1 << 40] {
            assert!(ask(&layer, Nid(wild), 0, 1).wait().is_err());
        }
    }
}

#[test]
fn a_huge_read_is_cut() {
    let mut tar = tar::Builder::new(Vec::new());
    let content = vec![9; MAX_READ as usize + 70_000];
    append(&mut tar, "huge", 0o644, &content);
    let made = Made::of_tar(tar.into_inner().unwrap(), vec![], Shape::Gzip, 4 << 20);
    let bed = Bed::new();
    let (layer, _source, _attachment) = bed.lazy(&made);
    let huge = nid(&layer, "huge");
    assert_eq!(ask(&layer, huge, 0, u32::MAX).wait().unwrap().len(), MAX_READ as usize);
    assert_eq!(ask(&layer, huge, u64::from(MAX_READ), u32::MAX).wait().unwrap().len(), 70_000);
}

/// No timing: the uncached reader cannot go on, and the cached one is answered before `read` returns.
#[test]
fn a_hung_fetch_does_not_hold_up_who_reads_what_is_here() {
    let made = Made::random(5, Shape::Gzip, 40, 32_768);
    let bed = Bed::with(|options| options.max_fetches = 1);
    let (layer, source, _attachment) = bed.lazy(&made);
    let (here, content) = made.files.iter().find(|(_, content)| content.len() > 2000).unwrap();
    read(&layer, here).unwrap();
    source.set(Fault::Hang);
    let (absent, absent_content) =
        made.files.iter().rev().find(|(path, content)| content.len() > 50_000 && path != "hard").unwrap();
    let hung: Vec<_> =
        (0..100).map(|_| ask(&layer, nid(&layer, absent), 0, absent_content.len() as u32)).collect();
    for _ in 0..100 {
        let answer = ask(&layer, nid(&layer, here), 0, content.len() as u32).now();
        assert_eq!(&answer.expect("answered on the caller's thread").unwrap(), content);
    }
    assert!(hung.iter().all(|asked| asked.now().is_none()));
    source.set(Fault::None);
    for asked in hung {
        assert_eq!(&asked.wait().unwrap(), absent_content);
    }
}

#[test]
fn images_share_a_layer_file_and_its_sources() {
    let made = Made::random(6, Shape::Gzip, 20, 32_768);
    let bed = Bed::new();
    let (layer, first, attached_first) = bed.lazy(&made);
    let again = bed.store.open_layer(&made.key()).unwrap().unwrap();
    assert!(Arc::ptr_eq(&layer, &again));
    let second = Source::with(&made.blob, Fault::Gone);
    let _attached_second = again.attach(Arc::clone(&second) as Arc<dyn BlobSource>);
    read_all(&again, &made);
    assert!(!second.asked.lock().is_empty(), "the newest source is asked first");
    assert!(!first.asked.lock().is_empty(), "and the other one when it fails");
    drop(attached_first);

    let other = made.with_ztoc(|ztoc| ztoc.build_tool = b"somebody else".to_vec());
    let (apart, source, _attachment) = bed.lazy(&other);
    assert!(!Arc::ptr_eq(&layer, &apart));
    read_all(&apart, &other);
    assert!(!source.asked.lock().is_empty(), "another ztoc shares nothing");
}

fn ask_file(layer: &Arc<Layer>, offset: u64, len: u32) -> Result<Vec<u8>, ReadError> {
    let (tell, told) = std::sync::mpsc::channel();
    let reply = move |result: Result<&[u8], ReadError>| tell.send(result.map(<[u8]>::to_vec)).unwrap();
    layer.read_file(offset, len, Box::new(reply));
    told.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn the_layer_file_reads_as_it_will_be_when_it_is_complete() {
    let mut random = Random::seeded("the_layer_file_reads_as_it_will_be_when_it_is_complete");
    for shape in SHAPES {
        let made = Made::random(random.next(), shape, 40, 65_536);
        let bed = Bed::new();
        let (layer, source, attachment) = bed.lazy(&made);
        let size = layer.file_size();
        assert_eq!(std::fs::metadata(layer.path()).unwrap().len(), size);
        let tar_start = size - made.ztoc.uncompressed_size.next_multiple_of(512);
        let metadata = std::fs::read(layer.path()).unwrap()[..tar_start as usize].to_vec();
        assert_eq!(ask_file(&layer, 0, tar_start as u32).unwrap(), metadata);
        assert!(source.asked.lock().is_empty(), "the metadata are here");
        let tar = &made.tar[..made.ztoc.uncompressed_size as usize];
        let mut whole = [&metadata, tar].concat();
        whole.resize(size as usize, 0);
        for _ in 0..300 {
            let offset = random.below(size + 5000);
            let len = random.below(100_000) as u32;
            let start = offset.min(size) as usize;
            let end = (offset + u64::from(len)).min(size) as usize;
            assert!(
                ask_file(&layer, offset, len).unwrap() == whole[start..end.max(start)],
                "{offset}, {len} bytes"
            );
        }
        for (offset, len) in [(size, 1), (u64::MAX, u32::MAX), (5, 0)] {
            assert!(ask_file(&layer, offset, len).unwrap().is_empty());
        }
        assert!(ask_file(&layer, 0, u32::MAX).unwrap() == whole);
        drop(attachment);
    }
}
