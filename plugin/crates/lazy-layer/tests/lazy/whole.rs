//! Complete layers, checked as a whole; and a disk that is full.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use lazy_layer::{BlobSource, Completeness, Layer, ReadError};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::bed::{Bed, Fault, PATIENCE, Source, ask, nid, read, read_all};
use crate::making::{Made, Random, Shape, append, digest};

const SHAPES: [Shape; 3] = [Shape::Gzip, Shape::Members(100_000), Shape::Plain];

pub fn diff_id(made: &Made) -> oci_spec::image::Digest {
    diff_id_of(&made.blob)
}

/// The digest of the whole tar, by another decoder.
pub fn diff_id_of(blob: &[u8]) -> oci_spec::image::Digest {
    let mut tar = Vec::new();
    match MultiGzDecoder::new(blob).read_to_end(&mut tar) {
        Ok(_) => digest(&tar),
        Err(_) => digest(blob),
    }
}

/// Whether the layer is complete, when that is known.
pub fn settled(bed: &Bed, layer: &Layer) -> bool {
    let completed = layer.completed();
    bed.runtime.block_on(async { tokio::time::timeout(PATIENCE, completed).await.unwrap() })
}

#[test]
fn a_layer_is_complete_when_it_is_what_the_image_says() {
    for shape in SHAPES {
        let made = Made::random(51, shape, 40, 32_768);
        let bed = Bed::new();
        let (layer, source, attachment) = bed.lazy(&made);
        layer.expect(&diff_id(&made));
        read(&layer, &made.files[4].0).unwrap();
        assert_eq!(layer.status().completeness, Completeness::Incomplete, "{shape:?}");
        read_all(&layer, &made);
        // Whatever no file is in: directories, the end.
        layer.read_file(0, u32::MAX, Box::new(|_| {}));
        assert!(settled(&bed, &layer), "{shape:?}");
        assert!(layer.is_complete());
        read_all(&layer, &made);
        let asked = source.asked.lock().len();

        // A restart does not repeat it: not even this would be seen.
        drop((layer, attachment));
        let path = bed.directory(&made).join("layer.erofs");
        let bed = bed.restart();
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
        assert!(layer.is_complete(), "known at once: an image has said what it is before");
        assert_eq!(source.asked.lock().len(), asked);
    }
}

#[test]
fn a_layer_that_is_something_else_is_refused_until_somebody_says_the_truth() {
    let made = Made::random(52, Shape::Gzip, 20, 32_768);
    let bed = Bed::new();
    let (layer, _source, attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    layer.read_file(0, u32::MAX, Box::new(|_| {}));
    assert_eq!(layer.status().completeness, Completeness::Incomplete, "nobody has said what it should be");
    layer.expect(&digest(b"something else"));
    assert!(!settled(&bed, &layer));
    assert_eq!(layer.status().completeness, Completeness::Refused);
    assert!(matches!(read(&layer, &made.files[4].0), Err(ReadError::Refused)));
    let file = std::sync::mpsc::channel();
    layer.read_file(0, 4096, Box::new(move |bytes| file.0.send(bytes.is_err()).unwrap()));
    assert!(file.1.recv().unwrap());
    // It stays so after a restart.
    drop((layer, attachment));
    let bed = bed.restart();
    let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
    layer.expect(&digest(b"something else"));
    assert_eq!(layer.status().completeness, Completeness::Refused);
    // Another image shares the layer, and is right.
    layer.expect(&diff_id(&made));
    assert!(layer.is_complete());
    layer.expect(&digest(b"a third thing"));
    assert!(layer.is_complete(), "a lie takes nothing from who knows better");
    read_all(&layer, &made);
    drop(layer);
    let bed = bed.restart();
    let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
    assert!(layer.is_complete(), "that somebody has said the truth is kept");
    layer.expect(&digest(b"something else"));
    assert!(layer.is_complete());
}

#[test]
fn the_order_in_which_a_layer_comes_does_not_matter() {
    let mut random = Random::seeded("the_order_in_which_a_layer_comes_does_not_matter");
    for shape in SHAPES {
        for honest in [true, false] {
            let made = Made::random(random.next(), shape, 30, 32_768);
            let bed = Bed::new();
            let (layer, _source, _attachment) = bed.lazy(&made);
            let said = if honest { diff_id(&made) } else { digest(b"something else") };
            let mut order: Vec<_> = made.files.iter().map(|(path, _)| path.as_str()).collect();
            // From the front to the back, from the back to the front, or in no order.
            match random.below(3) {
                0 => {}
                1 => order.reverse(),
                _ => order.sort_by_cached_key(|_| random.next()),
            }
            let moment = random.below(order.len() as u64 + 1) as usize;
            for (number, path) in order.iter().enumerate() {
                if number == moment {
                    layer.expect(&said);
                }
                // The last read of what is a lie may come too late.
                let _ = read(&layer, path);
            }
            layer.read_file(0, u32::MAX, Box::new(|_| {}));
            if moment == order.len() {
                layer.expect(&said);
            }
            assert_eq!(settled(&bed, &layer), honest, "{shape:?}, told after {moment} of {order:?}");
            let now = if honest { Completeness::Complete } else { Completeness::Refused };
            assert_eq!(layer.status().completeness, now);
        }
    }
}

#[test]
fn an_index_that_says_something_else_than_the_layer_is_refused() {
    let honest = Made::random(53, Shape::Gzip, 20, 32_768);
    let forged = honest.with_ztoc(|ztoc| ztoc.entries[7].mode ^= 0o4000);
    let hidden = honest.with_ztoc(|ztoc| drop(ztoc.entries.pop()));
    for made in [forged, hidden] {
        let bed = Bed::new();
        let (layer, _source, _attachment) = bed.lazy(&made);
        layer.expect(&diff_id(&made));
        for (path, content) in &made.files[..made.files.len() - 1] {
            let _ = ask(&layer, nid(&layer, path), 0, content.len() as u32).wait();
        }
        layer.read_file(0, u32::MAX, Box::new(|_| {}));
        assert!(!settled(&bed, &layer));
        assert!(matches!(read(&layer, &made.files[3].0), Err(ReadError::Refused)));
    }
}

#[test]
fn what_follows_the_archive_belongs_to_the_layer() {
    let plain = Made::random(54, Shape::Plain, 10, 32_768);
    for shape in SHAPES {
        for tail in [vec![0; 512 * 3], vec![0; 512 * 200 + 7], b"not a tar".to_vec(), vec![b'x'; 400_000]] {
            let tar = [plain.tar.as_slice(), &tail].concat();
            let made = Made::of_tar(tar, plain.files.clone(), shape, 32_768);
            let bed = Bed::new();
            let (layer, source, _attachment) = bed.lazy(&made);
            read_all(&layer, &made);
            layer.read_file(0, u32::MAX, Box::new(|_| {}));
            // The end of the layer may have to be fetched once more.
            source.set(Fault::Flip(1));
            layer.expect(&diff_id(&made));
            assert!(settled(&bed, &layer), "{shape:?}, {} bytes", tail.len());
        }
    }
}

#[test]
fn the_background_completes_and_checks() {
    let made = Made::random(55, Shape::Gzip, 60, 32_768);
    let bed = Bed::with(|options| {
        options.fill.disable = false;
        options.fill.silence = Duration::ZERO;
    });
    let layer = bed.create(&made);
    layer.expect(&diff_id(&made));
    let _attachment = layer.attach(Source::new(&made.blob) as Arc<dyn BlobSource>);
    assert!(settled(&bed, &layer));
    assert_eq!(layer.status().present, layer.status().size);
}

/// A file system of a few megabytes.
struct Small(tempfile::TempDir);

impl Small {
    fn new(bytes: u64) -> Self {
        let at = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount("tmpfs", at.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str()))
            .expect("this test mounts a tmpfs");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_costs_speed_and_no_bytes() {
    let mut random = crate::making::Random::new(56);
    let mut tar = tar::Builder::new(Vec::new());
    let mut files = Vec::new();
    for number in 0..60 {
        let content = random.bytes(100_000);
        append(&mut tar, &format!("f{number}"), 0o644, &content);
        files.push((format!("f{number}"), content));
    }
    let made = Made::of_tar(tar.into_inner().unwrap(), files, Shape::Gzip, 200_000);
    let small = Small::new(4 << 20);
    let bed = Bed::with(|options| {
        options.root = small.0.path().to_owned();
        options.min_free = 0;
    });
    let layer = bed.create(&made);
    let source = Source::new(&made.blob);
    let attachment = layer.attach(Arc::clone(&source) as Arc<dyn BlobSource>);
    for _ in 0..2 {
        read_all(&layer, &made);
    }
    let status = layer.status();
    assert!(status.present > 0 && status.present < status.size, "{status:?}");
    // Reads over several spans, some here and some not, in both directions.
    for (path, content) in &made.files {
        let asked: Vec<_> = (0..4).map(|_| ask(&layer, nid(&layer, path), 0, 100_000)).collect();
        asked.into_iter().for_each(|asked| assert!(asked.wait().unwrap() == *content, "{path}"));
    }
    drop((layer, attachment));
    drop(bed);
}

#[test]
fn the_background_compares_what_an_unclean_boot_left() {
    let made = Made::random(57, Shape::Gzip, 40, 32_768);
    let bed = Bed::new();
    let (layer, _source, attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    layer.read_file(0, u32::MAX, Box::new(|_| {}));
    drop((layer, attachment));
    let bed = bed.reboot_with(|options| {
        options.fill.disable = false;
        options.fill.silence = Duration::ZERO;
    });
    let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
    assert_eq!(layer.status().spans_present, 0);
    layer.expect(&diff_id(&made));
    let source = Source::new(&made.blob);
    let _attachment = layer.attach(Arc::clone(&source) as Arc<dyn BlobSource>);
    assert!(settled(&bed, &layer));
    let end = made.ztoc.compressed_size;
    assert!(source.asked.lock().iter().all(|range| range.end == end), "only the end may be fetched anew");
}

/// A layer that does not end in zeros, all of it here but what follows the archive.
fn with_tail(bed: &Bed, seed: u64) -> (Made, Arc<Layer>, Arc<Source>, lazy_layer::Attachment) {
    let plain = Made::random(seed, Shape::Plain, 10, 32_768);
    let tar = [plain.tar.as_slice(), b"not a tar"].concat();
    let made = Made::of_tar(tar, plain.files, Shape::Gzip, 32_768);
    let (layer, source, attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    layer.read_file(0, u32::MAX, Box::new(|_| {}));
    wait_until("it is not all here", || layer.status().present == layer.status().size);
    (made, layer, source, attachment)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_check_that_failed_is_made_again() {
    // As long as that after each failure.
    let bed = Bed::with(|options| options.read_deadline = Duration::from_secs(4));
    let (made, layer, source, _attachment) = with_tail(&bed, 58);
    let asked = source.asked.lock().len();
    source.set(Fault::Gone);
    layer.expect(&diff_id(&made));
    // Often enough to be given up.
    wait_until("its end was not asked for", || source.asked.lock().len() >= asked + 3);
    source.set(Fault::None);
    assert!(settled(&bed, &layer), "nobody has asked for that anew");
}

#[test]
fn a_check_goes_on_with_the_next_source() {
    let bed = Bed::with(|options| options.attempt_timeout = 2 * PATIENCE);
    let (made, layer, source, attachment) = with_tail(&bed, 59);
    let asked = source.asked.lock().len();
    source.set(Fault::Hang);
    layer.expect(&diff_id(&made));
    wait_until("its end was not asked for", || source.asked.lock().len() > asked);
    drop(attachment);
    // Nothing keeps it open: whoever has it is this test.
    let weak = Arc::downgrade(&layer);
    wait_until("the check holds a layer without a source", || weak.strong_count() == 1);
    let _attachment = layer.attach(Source::new(&made.blob) as Arc<dyn BlobSource>);
    assert!(settled(&bed, &layer));
}

#[test]
fn ends_of_layers_are_fetched_one_at_a_time() {
    let bed = Bed::new();
    let all: Vec<_> = (60..64).map(|seed| with_tail(&bed, seed)).collect();
    let before: Vec<usize> = all.iter().map(|(_, _, source, _)| source.asked.lock().len()).collect();
    for (made, layer, source, _) in &all {
        source.set(Fault::Hang);
        layer.expect(&diff_id(made));
    }
    let fetched = || -> usize {
        let now = all.iter().map(|(_, _, source, _)| source.asked.lock().len());
        now.zip(&before).map(|(now, before)| now - before).sum()
    };
    for number in 1..=all.len() {
        wait_until("no end was asked for", || fetched() >= number);
        assert_eq!(fetched(), number);
        // Only that one is let through.
        let asked = all.iter().zip(&before).filter(|((_, layer, source, _), before)| {
            source.asked.lock().len() > **before && !layer.is_complete()
        });
        asked.for_each(|((_, _, source, _), _)| source.set(Fault::None));
    }
    for (_, layer, ..) in &all {
        assert!(settled(&bed, layer));
    }
}

#[test]
fn lies_do_not_crowd_out_the_truth() {
    let made = Made::random(64, Shape::Gzip, 20, 32_768);
    let bed = Bed::with(|options| options.max_claims = 3);
    let (layer, _source, _attachment) = bed.lazy(&made);
    let lies: Vec<_> = (0..3u8).map(|number| digest(&[number])).collect();
    for lie in &lies {
        layer.expect(lie);
    }
    layer.expect(&diff_id(&made));
    read_all(&layer, &made);
    layer.read_file(0, u32::MAX, Box::new(|_| {}));
    wait_until("it was not checked", || layer.is_checked());
    layer.expect(&lies[0]);
    assert_eq!(layer.status().completeness, Completeness::Incomplete, "somebody may have said the truth");
    read_all(&layer, &made);
    layer.expect(&diff_id(&made));
    assert!(layer.is_complete());
}

/// What an image has confirmed of a complete layer stands for the layer, whoever described it how; anything less does not.
#[test]
fn a_complete_layer_has_twins() {
    let made = Made::random(57, Shape::Gzip, 30, 32_768);
    let coarse = Made::of_tar(made.tar.clone(), made.files.clone(), Shape::Gzip, 131_072);
    assert_eq!(made.key().layer, coarse.key().layer);
    let other = Made::random(58, Shape::Gzip, 3, 32_768);
    let twins = |bed: &Bed, made: &Made| bed.store.twins(&made.key()).unwrap();
    let bed = Bed::new();
    let (layer, _source, attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    layer.read_file(0, u32::MAX, Box::new(|_| {}));
    assert!(twins(&bed, &coarse).is_empty(), "nobody has said what it is");
    layer.expect(&digest(b"something else"));
    assert!(!settled(&bed, &layer));
    assert!(twins(&bed, &coarse).is_empty(), "it is not what an image says");
    layer.expect(&diff_id(&made));
    let expected = vec![(made.key(), diff_id(&made))];
    let start = std::time::Instant::now();
    while twins(&bed, &coarse) != expected {
        assert!(start.elapsed() < PATIENCE, "{:?}", twins(&bed, &coarse));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(twins(&bed, &made).is_empty(), "it is here itself");
    assert!(twins(&bed, &other).is_empty(), "another layer's");
    drop((layer, attachment));
    let bed = bed.restart();
    assert_eq!(twins(&bed, &coarse), expected);
    // It is mounted as it is, and mended from whoever has the layer.
    let bed = bed.reboot();
    let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
    let _attachment = layer.attach(Source::new(&coarse.blob));
    read_all(&layer, &coarse);
    drop(bed.create(&coarse));
    assert!(twins(&bed, &coarse).is_empty(), "now it has one of its own");
}

/// Described otherwise than it is, a layer is of no use to others, however true its diff ID.
#[test]
fn a_forged_layer_is_no_twin() {
    let honest = Made::random(59, Shape::Gzip, 20, 32_768);
    let forged = honest.with_ztoc(|ztoc| {
        let victim = ztoc.entries.iter_mut().find(|entry| entry.size > 1000).unwrap();
        victim.mode |= 0o4000;
    });
    let bed = Bed::new();
    let (layer, _source, _attachment) = bed.lazy(&forged);
    for (path, _) in &forged.files {
        let _ = read(&layer, path);
    }
    layer.read_file(0, u32::MAX, Box::new(|_| {}));
    layer.expect(&diff_id(&forged));
    assert!(!settled(&bed, &layer));
    assert!(bed.directory(&forged).join("checked").exists());
    assert!(bed.store.twins(&honest.key()).unwrap().is_empty());
}
