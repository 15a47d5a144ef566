//! A file tree as data, to be compared with another: names, contents and every attribute.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::image::digest;

/// Everything that is compared about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Size in bytes; 0 for folders, whose size is the file system's own business.
    pub size: u64,
    /// Modification time: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Device number of a device, else 0.
    pub device: u64,
    /// Extended attributes, sorted.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Digest of the bytes of a file, or the target of a symbolic link.
    pub content: Vec<u8>,
    /// The other names of the same inode inside the tree, sorted (files only).
    pub links: Vec<PathBuf>,
}

/// Reads the tree below `root`; names are relative to it, the root itself is the empty name.
pub fn read(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut tree = BTreeMap::new();
    let mut inodes: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    visit(root, Path::new(""), &mut tree, &mut inodes);
    for names in inodes.values().filter(|names| names.len() > 1) {
        for name in names {
            let mut others: Vec<PathBuf> = names.iter().filter(|other| *other != name).cloned().collect();
            others.sort();
            tree.get_mut(name).unwrap().links = others;
        }
    }
    tree
}

fn visit(
    root: &Path,
    name: &Path,
    tree: &mut BTreeMap<PathBuf, Facts>,
    inodes: &mut BTreeMap<(u64, u64), Vec<PathBuf>>,
) {
    let path = root.join(name);
    let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kind = found.file_type();
    let content = if kind.is_file() {
        digest(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).into_bytes()
    } else if kind.is_symlink() {
        fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
    } else {
        Vec::new()
    };
    if !kind.is_dir() {
        inodes.entry((found.dev(), found.ino())).or_default().push(name.to_owned());
    }
    let facts = Facts {
        mode: found.mode(),
        owner: (found.uid(), found.gid()),
        size: if kind.is_dir() { 0 } else { found.size() },
        modified: (found.mtime(), found.mtime_nsec()),
        device: if kind.is_char_device() || kind.is_block_device() { found.rdev() } else { 0 },
        attributes: attributes(&path),
        content,
        links: Vec::new(),
    };
    tree.insert(name.to_owned(), facts);
    if kind.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for child in names {
            visit(root, &name.join(child), tree, inodes);
        }
    }
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 65536];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else { return BTreeMap::new() };
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0_u8; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap_or_else(|error| {
                panic!("{}: {}: {error}", path.display(), String::from_utf8_lossy(name))
            });
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Panics with every difference (the first 20) unless both trees are equal.
#[track_caller]
pub fn assert_equal(found: &BTreeMap<PathBuf, Facts>, expected: &BTreeMap<PathBuf, Facts>) {
    let mut differences = Vec::new();
    for (name, wanted) in expected {
        match found.get(name) {
            None => differences.push(format!("{} is missing", name.display())),
            Some(facts) if facts != wanted => {
                differences
                    .push(format!("{}:\n   found    {facts:?}\n   expected {wanted:?}", name.display()));
            }
            Some(_) => {}
        }
    }
    differences.extend(
        found
            .keys()
            .filter(|name| !expected.contains_key(*name))
            .map(|name| format!("{} is too much", name.display())),
    );
    let count = differences.len();
    differences.truncate(20);
    assert!(count == 0, "{count} differences\n{}", differences.join("\n"));
    assert!(expected.len() > 1, "an empty tree proves nothing");
}
