//! What was put in comes out again.

use erofs_image::{Attributes, Content, Image, NewImage, Nid, TreeBuilder, WriteError};

use crate::random::{self, Layer, Random};
use crate::walk::{self, Files};

/// The layer file: metadata and tar.
pub fn file(layer: &Layer) -> Vec<u8> {
    let written = NewImage::of(layer.build().finish(), layer.tar.len() as u64).unwrap();
    assert_eq!(written.metadata().len() as u64, written.tar_start());
    assert_eq!(written.tar_start() % 4096, 0);
    let mut file = written.metadata();
    file.extend(&layer.tar);
    file.resize(written.file_size() as usize, 0);
    file
}

pub fn read(file: &[u8]) -> Files {
    let image = Image::open(file).unwrap();
    walk::image(&image, file, usize::MAX).unwrap()
}

#[test]
fn random_trees_come_back() {
    let mut random = Random::new("random_trees_come_back");
    for round in 0..40 {
        let layer = random::layer(&mut random, round * 8);
        let file = file(&layer);
        let seen = read(&file);
        let mut expected = layer.expected();
        random::adopt_numbers(&mut expected, &seen);
        walk::assert_same(&expected, &seen);
        let image = Image::open(file.as_slice()).unwrap();
        assert_eq!(image.has_xattrs(), seen.values().any(|file| !file.xattrs.is_empty()));
        assert_eq!(file, self::file(&layer), "the same tree gives the same bytes");
    }
}

#[test]
fn names_are_found_and_others_are_not() {
    let mut random = Random::new("names_are_found_and_others_are_not");
    let mut paths = Vec::new();
    for length in [1, 2, 5, 40, 254, 255] {
        for _ in 0..300 {
            let name = random.name(length);
            if name != b"." && name != b".." && !name.starts_with(b".wh.") {
                paths.push([b"d/".as_slice(), &name].concat());
            }
        }
    }
    let mut builder = TreeBuilder::new();
    let mut names = std::collections::BTreeMap::new();
    for path in &paths {
        let id = builder.add(path, Attributes::default(), Content::Fifo);
        names.insert(path[2..].to_vec(), id.unwrap());
    }
    let written = NewImage::of(builder.finish(), 0).unwrap();
    let image = Image::open(written.metadata()).unwrap();
    assert_eq!(image.inodes(), names.len() as u64 + 2);
    let directory = image.lookup(image.root(), b"d").unwrap().unwrap();
    for (name, id) in &names {
        assert_eq!(image.lookup(directory, name).unwrap(), written.nid(*id));
        for other in [&name[1..], &name[..name.len() - 1], &[name.as_slice(), b"!"].concat()] {
            let expected = match other {
                b"." => Some(directory),
                b".." => Some(Nid::ROOT),
                _ => names.get(other).and_then(|id| written.nid(*id)),
            };
            assert_eq!(image.lookup(directory, other).unwrap(), expected);
        }
    }
    let listed: Vec<_> =
        image.read_dir(directory, 0).unwrap().map(|entry| entry.unwrap().name.to_vec()).collect();
    assert!(listed.is_sorted());
    assert_eq!(listed.len(), names.len() + 2);
}

#[test]
fn a_directory_of_a_hundred_thousand() {
    let paths: Vec<_> = (0..100_000).map(|number| format!("some/where/file-{number}")).collect();
    let mut builder = TreeBuilder::new();
    for path in &paths {
        builder
            .add(path.as_bytes(), Attributes::default(), Content::Regular { tar_offset: 0, size: 0 })
            .unwrap();
    }
    let written = NewImage::of(builder.finish(), 0).unwrap();
    let image = Image::open(written.metadata()).unwrap();
    let some = image.lookup(image.root(), b"some").unwrap().unwrap();
    let directory = image.lookup(some, b"where").unwrap().unwrap();
    assert_eq!(image.read_dir(directory, 0).unwrap().filter(|entry| entry.is_ok()).count(), 100_002);
    for number in (0..100_000).step_by(77) {
        assert!(image.lookup(directory, format!("file-{number}").as_bytes()).unwrap().is_some());
        assert_eq!(image.lookup(directory, format!("file-{number}x").as_bytes()).unwrap(), None);
    }
}

#[test]
fn a_deep_tree_needs_no_stack() {
    let path = b"d/".repeat(2000);
    let mut builder = TreeBuilder::new();
    builder.add(&path, Attributes::default(), Content::Directory).unwrap();
    let written = NewImage::of(builder.finish(), 0).unwrap();
    let image = Image::open(written.metadata()).unwrap();
    let mut at = image.root();
    let mut depth = 0;
    while let Some(next) = image.lookup(at, b"d").unwrap() {
        assert_eq!(image.lookup(next, b"..").unwrap(), Some(at));
        at = next;
        depth += 1;
    }
    assert_eq!((depth, image.inode(at).unwrap().nlink), (2000, 2));
}

#[test]
fn data_has_to_be_in_the_tar() {
    let write_one = |tar_offset, size, tar_size| {
        let mut builder = TreeBuilder::new();
        builder.add(b"f", Attributes::default(), Content::Regular { tar_offset, size }).unwrap();
        NewImage::of(builder.finish(), tar_size)
    };
    assert!(matches!(write_one(100, 1, 1000), Err(WriteError::Unaligned { tar_offset: 100 })));
    assert!(matches!(write_one(512, 489, 1000), Err(WriteError::OutsideTar { .. })));
    assert!(matches!(write_one(512, u64::MAX, 1000), Err(WriteError::OutsideTar { .. })));
    assert!(matches!(write_one(0, 0, 1 << 41), Err(WriteError::TooBig { .. })));
    assert!(matches!(write_one(0, 0, u64::MAX), Err(WriteError::TooBig { .. })));
    let written = write_one(512, 5 << 30, 6 << 30).unwrap();
    let image = Image::open(written.metadata()).unwrap();
    let inode = image.inode(image.lookup(image.root(), b"f").unwrap().unwrap()).unwrap();
    let start = written.tar_start() + 512;
    assert_eq!((inode.size, inode.tar_range), (5 << 30, Some(start..start + (5 << 30))));
}
