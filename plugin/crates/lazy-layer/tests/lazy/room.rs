//! Less room on the disk than everybody would like.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bed::{Bed, PATIENCE, asked_for, read_all};
use crate::making::{Made, Shape};

/// Bytes of disk that the files of a directory take.
fn taken(directory: &Path) -> u64 {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

fn made(seed: u64) -> Made {
    Made::random(seed, Shape::Gzip, 25, 32_768)
}

#[test]
fn what_does_not_fit_is_served_and_not_kept() {
    let made = made(71);
    let bed = Bed::new();
    drop(bed.create(&made));
    let empty = taken(&bed.directory(&made));
    let room = 64 << 10;
    let bed = bed.restart_with(|options| options.max_disk = empty + room);
    let (layer, source, _attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    let asked: usize = asked_for(&made, &source).iter().sum();
    read_all(&layer, &made);
    assert!(asked_for(&made, &source).iter().sum::<usize>() > asked, "what was not kept is fetched again");
    assert!(taken(&bed.directory(&made)) <= empty + room, "the limit holds");
    assert!(layer.status().present < layer.status().size);
}

#[test]
fn a_file_system_is_not_filled_to_the_brim() {
    let made = made(72);
    let bed = Bed::with(|options| options.min_free = u64::MAX);
    let (layer, _source, _attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    assert_eq!(layer.status().present, 0);
}

/// Three layers, none open: the one that was opened longest ago goes for a fourth, and no more than has to.
#[test]
fn layers_that_nobody_has_open_make_room() {
    let all: Vec<Made> = (80..84).map(made).collect();
    let mut bed = Bed::new();
    for made in &all[..3] {
        let (layer, _source, attachment) = bed.lazy(made);
        read_all(&layer, made);
        drop((layer, attachment));
        bed = bed.restart();
        // Their times have to differ.
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(bed.create(&all[3]));
    let used = bed.store.disk_use().unwrap();
    let bed = bed.restart_with(|options| options.max_disk = used);
    let (layer, _source, _attachment) = bed.lazy(&all[3]);
    read_all(&layer, &all[3]);
    let start = Instant::now();
    while bed.directory(&all[0]).exists() {
        assert!(start.elapsed() < PATIENCE, "nothing was removed");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(bed.directory(&all[2]).exists(), "what was used last stays");
    assert!(bed.directory(&all[3]).exists(), "what is open stays");
    read_all(&layer, &all[3]);
    assert_eq!(layer.status().present, layer.status().size, "now there is room");
}

/// What somebody is about to open stays, however little room there is, and whether or not anybody names it.
#[test]
fn a_pinned_layer_stays() {
    let all: Vec<Made> = (84..87).map(made).collect();
    let bed = Bed::new();
    all.iter().for_each(|made| drop(bed.create(made)));
    let bed = bed.restart_with(|options| options.max_disk = 1);
    let pins = [bed.store.pin(all[0].key()), bed.store.pin(all[0].key())];
    let (layer, _source, attachment) = bed.lazy(&all[1]);
    read_all(&layer, &all[1]);
    let start = Instant::now();
    while bed.directory(&all[2]).exists() {
        assert!(start.elapsed() < PATIENCE, "nothing was removed");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop((layer, attachment));
    for pin in pins {
        bed.store.remove_unused(&HashSet::new()).unwrap();
        assert!(bed.directory(&all[0]).exists(), "it is pinned still");
        drop(pin);
    }
    bed.store.remove_unused(&HashSet::new()).unwrap();
    assert!(bed.store.keys().unwrap().is_empty());
}
