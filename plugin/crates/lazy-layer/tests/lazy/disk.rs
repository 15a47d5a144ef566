//! What survives a restart, a reboot and damage.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use lazy_layer::{BlobSource, OpenLayerError, ReadError};

use crate::bed::{Bed, Fault, Source, ask, asked_for, nid, read, read_all, spans_of};
use crate::making::{Made, Shape};

fn made() -> Made {
    Made::random(31, Shape::Gzip, 25, 32_768)
}

/// A bed with everything of the layer read.
fn filled(made: &Made) -> Bed {
    let bed = Bed::new();
    let (layer, _source, _attachment) = bed.lazy(made);
    read_all(&layer, made);
    bed
}

/// Flips a bit in the middle of a file's content in the layer file, without anybody knowing.
fn rot(bed: &Bed, made: &Made, path: &str) {
    let entry = made.ztoc.entries.iter().find(|entry| entry.name == path.as_bytes()).unwrap();
    let layer = bed.directory(made).join("layer.erofs");
    let file = fs::OpenOptions::new().read(true).write(true).open(layer).unwrap();
    let metadata =
        erofs_image::Image::open(fs::read(bed.directory(made).join("layer.erofs")).unwrap()).unwrap();
    let at = metadata.tar_start() + entry.data_offset.0 + entry.size / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn a_file(made: &Made) -> &str {
    made.files
        .iter()
        .find(|(path, content)| content.len() > 1000 && path != "hard")
        .map(|(path, _)| path)
        .unwrap()
}

#[test]
fn a_restart_uses_what_is_here_without_ztoc_or_source() {
    let made = made();
    let bed = filled(&made).restart();
    let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
    read_all(&layer, &made);
    assert_eq!(layer.status().reads_that_waited, 0);
}

#[test]
fn a_reboot_rechecks_and_fetches_what_rotted() {
    let made = made();
    let bed = filled(&made).reboot();
    rot(&bed, &made, a_file(&made));
    let (layer, source, attachment) = bed.lazy(&made);
    assert_eq!(layer.status().present, 0, "nothing is trusted unchecked");
    read_all(&layer, &made);
    let asked: Vec<usize> =
        (0..made.ztoc.spans.count() as usize).filter(|span| asked_for(&made, &source)[*span] > 0).collect();
    assert_eq!(asked.len(), 1, "only the rotten span is fetched: {asked:?}");
    assert!(spans_of(&made, a_file(&made)).contains(&(asked[0] as u32)));
    drop((layer, attachment));

    // Checked once is checked for this boot, even if the daemon is killed.
    let bed = bed.restart();
    let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
    read_all(&layer, &made);
    assert_eq!(layer.status().reads_that_waited, 0);
}

#[test]
fn a_daemon_killed_before_it_rechecked_leaves_the_doubt() {
    let made = made();
    let bed = filled(&made).reboot();
    drop(bed.store.open_layer(&made.key()).unwrap().unwrap());
    rot(&bed, &made, a_file(&made));
    let bed = bed.restart();
    let (layer, source, _attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    assert_eq!(asked_for(&made, &source).iter().sum::<usize>(), 1);
}

#[test]
fn after_an_orderly_end_a_reboot_rechecks_nothing() {
    let made = made();
    let bed = Bed::new();
    let (layer, _source, attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    bed.store.close().unwrap();
    drop((layer, attachment));
    let bed = bed.reboot();
    let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
    read_all(&layer, &made);
    assert_eq!(layer.status().reads_that_waited, 0);
}

#[test]
fn a_damaged_state_table_is_made_anew() {
    let made = made();
    let whole = filled(&made);
    let path = whole.directory(&made).join("states");
    let bytes = fs::read(&path).unwrap();
    let mut bed = whole;
    for damaged in [vec![], bytes[..70].to_vec(), vec![0xa5; bytes.len()], [&bytes[..], b"more"].concat()] {
        fs::write(&path, &damaged).unwrap();
        bed = bed.restart();
        let (layer, _source, attachment) = bed.lazy(&made);
        read_all(&layer, &made);
        drop((layer, attachment));
    }
    fs::remove_file(&path).unwrap();
    let (layer, source, _attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    assert!(!source.asked.lock().is_empty());
}

#[test]
fn damaged_files_make_the_layer_absent() {
    let made = made();
    let mut bed = Bed::new();
    for file in ["manifest.json", "layer.erofs", "spans", "headers", "windows"] {
        for damage in ["flip", "cut", "remove", "empty"] {
            if (file, damage) == ("windows", "flip") {
                continue;
            }
            drop(bed.create(&made));
            let path = bed.directory(&made).join(file);
            let mut bytes = fs::read(&path).unwrap();
            match damage {
                // Within the metadata, if it is the layer file: the tar's bytes have another guard.
                "flip" => {
                    let middle = bytes.len().min(4000) / 2;
                    bytes[middle] ^= 0x10;
                }
                "cut" => bytes.truncate(bytes.len() - 1),
                "empty" => bytes.clear(),
                _ => fs::remove_file(&path).unwrap(),
            }
            if damage != "remove" {
                fs::write(&path, &bytes).unwrap();
            }
            bed = bed.restart();
            assert!(bed.store.open_layer(&made.key()).unwrap().is_none(), "{file}, {damage}");
            assert!(!bed.directory(&made).exists(), "{file}, {damage}");
            let (layer, _source, attachment) = bed.lazy(&made);
            assert!(read(&layer, a_file(&made)).is_ok());
            drop((layer, attachment));
            bed = bed.restart();
        }
    }
}

#[test]
fn a_damaged_window_is_an_error_and_the_layer_is_made_anew() {
    let made = made();
    let bed = Bed::new();
    drop(bed.create(&made));
    let windows = bed.directory(&made).join("windows");
    let mut bytes = fs::read(&windows).unwrap();
    let len = bytes.len();
    bytes[32_768..len].fill(0x55);
    fs::write(&windows, &bytes).unwrap();
    let (layer, _source, attachment) = bed.lazy(&made);
    let results: Vec<_> = made.files.iter().map(|(path, content)| (read(&layer, path), content)).collect();
    assert!(results.iter().any(|(result, _)| result.is_err()));
    assert!(
        results
            .iter()
            .all(|(result, content)| result.as_ref().is_err() || result.as_ref().unwrap() == *content)
    );
    drop((layer, attachment));
    let bed = bed.restart();
    assert!(bed.store.open_layer(&made.key()).unwrap().is_none());
    let (layer, _source, _attachment) = bed.lazy(&made);
    read_all(&layer, &made);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let made = made();
    let bed = Bed::new();
    drop(bed.create(&made));
    let manifest = bed.directory(&made).join("manifest.json");
    fs::write(&manifest, r#"{"format": 2}"#).unwrap();
    let bed = bed.restart();
    assert!(matches!(bed.store.open_layer(&made.key()), Err(OpenLayerError::Format { found: 2, .. })));
    assert!(bed.store.create_layer(&made.key(), &made.ztoc_bytes).is_err());
    assert!(manifest.exists());
}

#[test]
fn another_layers_directory_is_not_believed() {
    let (made, other) = (made(), Made::random(32, Shape::Gzip, 5, 32_768));
    let bed = Bed::new();
    drop(bed.create(&made));
    fs::rename(bed.directory(&made), bed.directory(&other)).unwrap();
    assert!(bed.store.open_layer(&other.key()).unwrap().is_none());
}

#[test]
fn unused_layers_free_the_disk() {
    let (first, second, third) =
        (made(), Made::random(33, Shape::Plain, 25, 32_768), Made::random(34, Shape::Gzip, 5, 32_768));
    let bed = Bed::new();
    let (held, _source, _attachment) = bed.lazy(&first);
    {
        let (layer, _source, _attachment) = bed.lazy(&second);
        read_all(&layer, &second);
        bed.create(&third);
    }
    let before = bed.store.disk_use().unwrap();
    let freed = bed.store.remove_unused(&HashSet::from([third.key()])).unwrap();
    assert!(freed >= second.tar.len() as u64 / 2, "{freed}");
    assert_eq!(bed.store.disk_use().unwrap(), before - freed);
    assert!(bed.store.open_layer(&second.key()).unwrap().is_none());
    assert!(bed.store.open_layer(&third.key()).unwrap().is_some());
    read_all(&held, &first);
    assert_eq!(bed.store.keys().unwrap().len(), 2);
}

#[test]
fn a_layer_whose_fetch_hung_when_it_went_frees_the_disk_at_once() {
    let made = made();
    let bed = Bed::new();
    let (layer, source, attachment) = bed.lazy(&made);
    source.set(Fault::Hang);
    let hung = ask(&layer, nid(&layer, a_file(&made)), 0, 10);
    drop((layer, attachment));
    assert!(bed.store.remove_unused(&HashSet::new()).unwrap() > 0);
    assert!(matches!(hung.wait(), Err(ReadError::NoSource { .. })));
    assert!(!bed.directory(&made).exists());
}

#[test]
fn an_unfinished_creation_is_swept_away() {
    let made = made();
    let bed = Bed::new();
    drop(bed.create(&made));
    let layers = bed.root.path().join("layers");
    for name in [".new-1-0", ".old-7-3"] {
        fs::rename(bed.directory(&made), layers.join(name)).unwrap();
        drop(bed.create(&made));
    }
    let bed = bed.restart();
    assert_eq!(fs::read_dir(layers).unwrap().count(), 1);
    assert!(bed.store.open_layer(&made.key()).unwrap().is_some());
}

#[test]
fn creators_at_the_same_time_get_the_same_layer() {
    let made = Arc::new(made());
    let bed = Arc::new(Bed::new());
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (made, bed) = (Arc::clone(&made), Arc::clone(&bed));
            std::thread::spawn(move || bed.create(&made))
        })
        .collect();
    let layers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(layers.iter().all(|layer| Arc::ptr_eq(layer, &layers[0])));
}

#[test]
fn the_layer_file_is_metadata_and_the_tar() {
    let made = made();
    let bed = Bed::new();
    let layer = bed.create(&made);
    let _attachment = layer.attach(Source::new(&made.blob) as Arc<dyn BlobSource>);
    read_all(&layer, &made);
    let file = fs::read(layer.path()).unwrap();
    let image = erofs_image::Image::open(&file[..]).unwrap();
    let start = usize::try_from(image.tar_start()).unwrap();
    for (path, content) in &made.files {
        let inode = layer.image().inode(crate::bed::nid(&layer, path)).unwrap();
        let Some(range) = inode.tar_range else { continue };
        assert!(range.start as usize >= start);
        assert!(file[range.start as usize..range.end as usize] == content[..], "{path}");
    }
}
