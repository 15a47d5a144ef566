//! A directory as everything that can be seen of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub type Files = BTreeMap<PathBuf, File>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub ino: u64,
    /// Kind and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub nlink: u64,
    pub rdev: u64,
    pub size: u64,
    pub target: PathBuf,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub data: Vec<u8>,
}

impl File {
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

pub fn of(root: &Path) -> Files {
    let mut files = Files::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let file = stat(&full);
        if file.kind() == libc::S_IFDIR {
            open.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        files.insert(path, file);
    }
    files
}

pub fn stat(path: &Path) -> File {
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.mode() & libc::S_IFMT;
    File {
        ino: metadata.ino(),
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        nlink: metadata.nlink(),
        rdev: if kind == libc::S_IFCHR || kind == libc::S_IFBLK { metadata.rdev() } else { 0 },
        size: if kind == libc::S_IFDIR { 0 } else { metadata.len() },
        target: if kind == libc::S_IFLNK { fs::read_link(path).unwrap() } else { PathBuf::new() },
        xattrs: xattrs(path),
        data: if kind == libc::S_IFREG { fs::read(path).unwrap() } else { Vec::new() },
    }
}

pub fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(length) => length,
        // A layer without attributes says that it does not know what that is.
        Err(rustix::io::Errno::NOTSUP) => return BTreeMap::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| (name.to_vec(), xattr(path, name).unwrap())).collect()
}

pub fn xattr(path: &Path, name: &[u8]) -> Result<Vec<u8>, rustix::io::Errno> {
    let mut value = vec![0; 1 << 16];
    let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice())?;
    value.truncate(length);
    Ok(value)
}

/// Compares two trees file by file, so that a difference is readable. Inode numbers count only as far as they tell hard links.
pub fn assert_same(left: &Files, right: &Files) {
    let names = |files: &Files| files.keys().cloned().collect::<BTreeSet<_>>();
    let (a, b) = (names(left), names(right));
    let only: Vec<_> = a.symmetric_difference(&b).collect();
    assert!(only.is_empty(), "only in one of them: {only:?}");
    let mut numbers = BTreeMap::new();
    for (path, left) in left {
        let right = &right[path];
        assert_eq!(
            *numbers.entry(left.ino).or_insert(right.ino),
            right.ino,
            "hard links of {}",
            path.display()
        );
        assert_eq!(File { ino: 0, ..left.clone() }, File { ino: 0, ..right.clone() }, "{}", path.display());
    }
    let different = |files: &Files| files.values().map(|file| file.ino).collect::<BTreeSet<_>>().len();
    assert_eq!(different(left), different(right), "number of inodes");
}

pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A mount made with mount(8), undone at the end.
pub struct Mount(pub PathBuf);

impl Mount {
    pub fn new(kind: &str, options: &str, source: &Path, at: &Path) -> Mount {
        run(Command::new("mount").args(["-t", kind, "-o", options]).arg(source).arg(at));
        Mount(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
