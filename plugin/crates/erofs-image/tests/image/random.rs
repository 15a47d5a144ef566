//! Random layers, and what they should look like by a second, simpler set of the rules.

use std::collections::BTreeMap;

use erofs_image::{Attributes, Content, Kind, TreeBuilder, Xattr};

use crate::walk::{File, Files};

/// SplitMix64; its seed is printed, and can be given in `SEED`.
pub struct Random(u64);

impl Random {
    pub fn new(test: &str) -> Random {
        let now =
            || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SEED").ok().map_or_else(now, |seed| seed.parse().unwrap());
        eprintln!("{test}: SEED={seed}");
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn bytes(&mut self, n: u64) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    /// Any byte but those that a name cannot have.
    pub fn name(&mut self, length: u64) -> Vec<u8> {
        let mut name = self.bytes(length);
        name.iter_mut().filter(|byte| **byte == 0 || **byte == b'/').for_each(|byte| *byte = b'-');
        name
    }
}

/// A layer: what goes into the builder, and the tar's bytes.
pub struct Layer {
    pub entries: Vec<Entry>,
    pub tar: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Entry {
    Add(Vec<u8>, Attributes, Content),
    Link(Vec<u8>, Vec<u8>),
}

impl Layer {
    pub fn build(&self) -> TreeBuilder<'_> {
        let mut builder = TreeBuilder::new();
        for entry in &self.entries {
            match entry {
                Entry::Add(path, attributes, content) => {
                    builder.add(path, attributes.clone(), content.clone())
                }
                Entry::Link(path, target) => builder.hard_link(path, target),
            }
            .unwrap_or_else(|error| panic!("{entry:?}: {error}"));
        }
        builder
    }

    pub fn push(&mut self, path: &[u8], attributes: Attributes, content: Content) {
        self.entries.push(Entry::Add(path.to_vec(), attributes, content));
    }

    /// Puts data into the tar.
    pub fn data(&mut self, data: &[u8]) -> Content {
        self.tar.resize(self.tar.len().next_multiple_of(512) + 512, b'h');
        let tar_offset = self.tar.len() as u64;
        self.tar.extend(data);
        Content::Regular { tar_offset, size: data.len() as u64 }
    }

    /// What one sees in the end. Without inode numbers.
    pub fn expected(&self) -> Files {
        Model::of(self)
    }
}

pub fn layer(random: &mut Random, count: usize) -> Layer {
    let mut layer = Layer { entries: Vec::new(), tar: Vec::new() };
    let mut directories = vec![Vec::new()];
    let mut files: Vec<Vec<u8>> = Vec::new();
    while layer.entries.len() < count {
        let parent = directories[random.below(directories.len() as u64) as usize].clone();
        let name = match random.below(10) {
            0 => [b".".as_slice(), &random.name(3)].concat(),
            1 => random.name(255),
            2 => format!("{}", random.below(20)).into_bytes(),
            _ => {
                let length = 1 + random.below(30);
                random.name(length)
            }
        };
        if name == b"." || name == b".." || name.starts_with(b".wh.") {
            continue;
        }
        let path = if parent.is_empty() { name } else { [&parent, b"/".as_slice(), &name].concat() };
        if path.len() > 3000 || directories.contains(&path) || files.contains(&path) {
            continue;
        }
        let attributes = attributes(random);
        let content = match random.below(12) {
            0..=2 => {
                directories.push(path.clone());
                Content::Directory
            }
            3 => {
                let length =
                    if random.below(4) == 0 { 400 + random.below(3696) } else { 1 + random.below(60) };
                Content::Symlink(random.name(length))
            }
            4 => Content::CharDevice {
                major: random.below(1 << 12) as u32,
                minor: random.below(1 << 20) as u32,
            },
            5 => Content::BlockDevice {
                major: random.below(1 << 12) as u32,
                minor: random.below(1 << 20) as u32,
            },
            6 => Content::Fifo,
            7 if !files.is_empty() => {
                let target = files[random.below(files.len() as u64) as usize].clone();
                files.push(path.clone());
                layer.entries.push(Entry::Link(path, target));
                continue;
            }
            _ => {
                let length = [0, 1, 511, 512, 513, 4096, random.below(20000)][random.below(7) as usize];
                let data = random.bytes(length);
                layer.data(&data)
            }
        };
        if content != Content::Directory {
            files.push(path.clone());
        }
        let mut attributes = attributes;
        if !matches!(content, Content::Directory | Content::Regular { .. }) {
            // The kernel lists attributes of users on other kinds of files, and denies having them.
            attributes.xattrs.retain(|xattr| !xattr.name.starts_with(b"user."));
        }
        layer.push(&path, attributes, content);
    }
    layer
}

pub fn attributes(random: &mut Random) -> Attributes {
    let mut xattrs = Vec::new();
    if random.below(4) == 0 {
        for _ in 0..=random.below(5) {
            let prefix = ["user.", "security.", "user.", "user."][random.below(4) as usize];
            let length = if random.below(20) == 0 { 1 + random.below(240) } else { 1 + random.below(20) };
            let name = [prefix.as_bytes(), &random.name(length)].concat();
            let length = if random.below(20) == 0 { random.below(65536) } else { random.below(100) };
            xattrs.push(Xattr { name, value: random.bytes(length) });
        }
    }
    Attributes {
        permissions: random.below(0o10000) as u16,
        uid: random.next() as u32 >> random.below(32),
        gid: random.next() as u32 >> random.below(32),
        mtime: random.next() as i64 >> (20 + random.below(40)),
        mtime_nsec: random.below(1_000_000_000) as u32,
        xattrs,
    }
}

/// The rules for a layer without whiteouts and repeated names, on a flat map.
struct Model;

impl Model {
    fn of(layer: &Layer) -> Files {
        let mut files = Files::new();
        let mut number = 1;
        files.insert(Vec::new(), directory(&Attributes { permissions: 0o755, ..Attributes::default() }));
        for entry in &layer.entries {
            match entry {
                Entry::Add(path, attributes, content) => {
                    number += 1;
                    let mut file = directory(attributes);
                    file.ino = number;
                    file.nlink = 1;
                    file.size = Some(0);
                    match content {
                        Content::Directory => {
                            file.size = None;
                            file.nlink = 2;
                            files.get_mut(parent(path)).unwrap().nlink += 1;
                        }
                        Content::Regular { tar_offset, size } => {
                            file.kind = Kind::Regular;
                            file.size = Some(*size);
                            file.data = layer.tar[*tar_offset as usize..][..*size as usize].to_vec();
                        }
                        Content::Symlink(target) => {
                            file.kind = Kind::Symlink;
                            file.size = Some(target.len() as u64);
                            file.target = target.clone();
                        }
                        Content::CharDevice { major, minor } => {
                            file.kind = Kind::CharDevice;
                            file.rdev = (*major, *minor);
                        }
                        Content::BlockDevice { major, minor } => {
                            file.kind = Kind::BlockDevice;
                            file.rdev = (*major, *minor);
                        }
                        Content::Fifo => file.kind = Kind::Fifo,
                    }
                    files.insert(path.clone(), file);
                }
                Entry::Link(path, target) => {
                    let file = files[target].clone();
                    let links = file.nlink + 1;
                    files.insert(path.clone(), file.clone());
                    files
                        .values_mut()
                        .filter(|other| other.ino == file.ino)
                        .for_each(|file| file.nlink = links);
                }
            }
        }
        files
    }
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

fn directory(attributes: &Attributes) -> File {
    let mut xattrs = BTreeMap::new();
    attributes.xattrs.iter().for_each(|xattr| {
        xattrs.insert(xattr.name.clone(), xattr.value.clone());
    });
    File {
        ino: 1,
        kind: Kind::Directory,
        permissions: attributes.permissions,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: (attributes.mtime, attributes.mtime_nsec),
        nlink: 2,
        rdev: (0, 0),
        size: None,
        target: Vec::new(),
        xattrs,
        data: Vec::new(),
    }
}

/// Gives files the inode numbers of another view of the same tree, if hard links are the same in both.
pub fn adopt_numbers(files: &mut Files, from: &Files) {
    let mut numbers = BTreeMap::new();
    let mut back = BTreeMap::new();
    for (path, file) in files.iter_mut() {
        let Some(theirs) = from.get(path).map(|file| file.ino) else { continue };
        assert_eq!(*numbers.entry(file.ino).or_insert(theirs), theirs, "hard links differ");
        assert_eq!(*back.entry(theirs).or_insert(file.ino), file.ino, "hard links differ");
        file.ino = theirs;
    }
}
