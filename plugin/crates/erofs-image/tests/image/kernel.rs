//! The kernel's EROFS mounts our images and sees the same tree. Needs root and loop devices.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use erofs_image::{Attributes, Content, Image, Kind, NewImage, TreeBuilder, Xattr};

use crate::random::{self, Layer, Random};
use crate::round_trip;
use crate::walk::{self, File, Files};

struct Mount {
    directory: tempfile::TempDir,
}

impl Mount {
    fn new(directory: tempfile::TempDir) -> Mount {
        fs::create_dir(directory.path().join("mnt")).unwrap();
        let mount = Mount { directory };
        let image = mount.directory.path().join("image");
        run(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(mount.path()));
        mount
    }

    fn of(image: &[u8]) -> Mount {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("image"), image).unwrap();
        Mount::new(directory)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr} (this test needs root, loop devices and EROFS)");
}

fn kernel_view(root: &Path) -> Files {
    let mut files = Files::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let file = stat(&full);
        if file.kind == Kind::Directory {
            open.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        files.insert(path.as_os_str().as_bytes().to_vec(), file);
    }
    files
}

fn stat(path: &Path) -> File {
    let metadata = fs::symlink_metadata(path).unwrap();
    let file_type = metadata.file_type();
    let kind = match () {
        () if file_type.is_dir() => Kind::Directory,
        () if file_type.is_file() => Kind::Regular,
        () if file_type.is_symlink() => Kind::Symlink,
        () if file_type.is_char_device() => Kind::CharDevice,
        () if file_type.is_block_device() => Kind::BlockDevice,
        () => Kind::Fifo,
    };
    let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    let device = metadata.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    File {
        ino: metadata.ino(),
        kind,
        permissions: (metadata.permissions().mode() & 0o7777) as u16,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
        nlink: metadata.nlink(),
        rdev: if is_device { (major, minor) } else { (0, 0) },
        size: (kind != Kind::Directory).then_some(metadata.len()),
        target: if kind == Kind::Symlink {
            fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            vec![]
        },
        xattrs: xattrs(path),
        data: if kind == Kind::Regular { fs::read(path).unwrap() } else { vec![] },
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice()).unwrap();
        value.truncate(length);
        value
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| (name.to_vec(), value(name))).collect()
}

#[test]
fn the_kernel_sees_what_we_see() {
    let mut random = Random::new("the_kernel_sees_what_we_see");
    for count in [0, 1, 50, 400, 1500] {
        let mut layer = random::layer(&mut random, count);
        if count == 400 {
            special(&mut layer);
        }
        let file = round_trip::file(&layer);
        let seen = round_trip::read(&file);
        let mount = Mount::of(&file);
        let kernel = kernel_view(&mount.path());
        walk::assert_same(&seen, &kernel);
        let mut expected = layer.expected();
        random::adopt_numbers(&mut expected, &kernel);
        walk::assert_same(&expected, &kernel);
    }
}

/// Everything that random layers have too rarely.
fn special(layer: &mut Layer) {
    let plain = || Attributes { permissions: 0o644, ..Attributes::default() };
    layer.push(b"special", Attributes { permissions: 0o7777, ..plain() }, Content::Directory);
    for number in 0..3000 {
        layer.push(format!("special/{number}").as_bytes(), plain(), Content::Fifo);
    }
    for name in ["!", "-", ".-", ".0", "...", ".a", "..a", "a.", "~"] {
        layer.push(format!("special/{name}").as_bytes(), plain(), Content::Fifo);
    }
    // Sizes around the border between inline and plain, with and without attributes.
    for length in (380..460).chain([511, 512, 513, 4095]) {
        let target = vec![b'x'; length];
        layer.push(format!("special/link-{length}").as_bytes(), plain(), Content::Symlink(target.clone()));
        let xattrs = vec![Xattr { name: b"security.x".into(), value: vec![1; 20] }];
        let attributes = Attributes { xattrs, ..plain() };
        layer.push(format!("special/xlink-{length}").as_bytes(), attributes, Content::Symlink(target));
    }
    for length in [1, 5, 12, 13, 60, 200, 255] {
        let directory = format!("special/directory-{length}");
        layer.push(directory.as_bytes(), plain(), Content::Directory);
        for number in 0..10 {
            let name = format!("{directory}/{}{number}", "n".repeat(length - 1));
            layer.push(name.as_bytes(), plain(), Content::Fifo);
        }
    }
    let xattrs = (0..4).map(|n| Xattr { name: format!("user.big-{n}").into(), value: vec![n; 65000] });
    layer.push(b"special/xattrs", Attributes { xattrs: xattrs.collect(), ..plain() }, Content::Directory);
    // Version 2; owner, user 1000, group, mask, others.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, id) in [(1_u16, u32::MAX), (2, 1000), (4, u32::MAX), (16, u32::MAX), (32, u32::MAX)] {
        acl.extend([tag.to_le_bytes(), 4_u16.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let acls = ["system.posix_acl_access", "system.posix_acl_default"];
    let xattrs = acls.map(|name| Xattr { name: name.into(), value: acl.clone() }).to_vec();
    layer.push(b"special/acl", Attributes { xattrs, ..plain() }, Content::Directory);
}

#[test]
fn whiteouts_and_opaque_directories_work_under_overlay() {
    let mut builder = TreeBuilder::new();
    let empty = || Content::Regular { tar_offset: 0, size: 0 };
    let plain = || Attributes { permissions: 0o755, ..Attributes::default() };
    for path in
        [".wh.gone", "opaque/.wh..wh..opq", "opaque/new", "merged/new", ".wh.replaced", "replaced/new"]
    {
        builder.add(path.as_bytes(), plain(), empty()).unwrap();
    }
    let mount = Mount::of(&NewImage::of(builder.finish(), 0).unwrap().metadata());
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().join("base");
    for directory in ["opaque", "merged", "replaced"] {
        fs::create_dir_all(base.join(directory)).unwrap();
        fs::write(base.join(directory).join("old"), "").unwrap();
    }
    fs::write(base.join("gone"), "").unwrap();
    let merged = scratch.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let options = format!("lowerdir={}:{}", mount.path().display(), base.display());
    run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged));
    let files = std::panic::catch_unwind(|| kernel_view(&merged));
    run(Command::new("umount").arg(&merged));
    let files = files.unwrap();
    let names: Vec<_> = files.keys().map(|name| std::str::from_utf8(name).unwrap()).collect();
    let expected =
        ["", "merged", "merged/new", "merged/old", "opaque", "opaque/new", "replaced", "replaced/new"];
    assert_eq!(names, expected);
}

#[test]
fn a_file_over_four_gibibytes() {
    const SIZE: u64 = (5 << 30) + 123;
    const AT: u64 = 7 * 512;
    let mut builder = TreeBuilder::new();
    builder.add(b"big", Attributes::default(), Content::Regular { tar_offset: AT, size: SIZE }).unwrap();
    let written = NewImage::of(builder.finish(), AT + SIZE + 1000).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut image = fs::File::create_new(directory.path().join("image")).unwrap();
    image.write_all(&written.metadata()).unwrap();
    image.set_len(written.file_size()).unwrap();
    let inode = Image::open(written.metadata()).unwrap();
    let nid = inode.lookup(inode.root(), b"big").unwrap().unwrap();
    let range = inode.inode(nid).unwrap().tar_range.unwrap();
    let places = [0, 1, (4 << 30) - 7, 4 << 30, SIZE - 5];
    for place in places {
        image.seek(SeekFrom::Start(range.start + place)).unwrap();
        image.write_all(&place.to_le_bytes()[..5]).unwrap();
    }
    image.sync_all().unwrap();
    let mount = Mount::new(directory);
    let mut file = fs::File::open(mount.path().join("big")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    for place in &places[1..] {
        file.seek(SeekFrom::Start(*place)).unwrap();
        let mut bytes = [0; 5];
        file.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, place.to_le_bytes()[..5]);
    }
    assert_eq!(file.read(&mut [0]).unwrap(), 0);
}
