//! Archives, applied to a directory.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use tar::{Builder, Header};

use super::*;

struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, link: &str, data: &[u8], mode: u32) -> Tar {
        let mut header = Header::new_ustar();
        // Written by hand: the builder refuses what an attacker would write.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn pax(mut self, pairs: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Tar {
        self.add(EntryType::Regular, name, "", data, 0o644)
    }

    fn directory(self, name: &str) -> Tar {
        self.add(EntryType::Directory, name, "", b"", 0o750)
    }

    fn apply(self, at: &Path, lower: &[Below]) -> io::Result<()> {
        apply(&mut self.0.into_inner().unwrap().as_slice(), at, lower, false)
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 100];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn everything_an_entry_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    Tar::new()
        .directory("d/")
        .add(EntryType::Regular, "d/suid", "", b"x", 0o4755)
        .add(EntryType::Link, "d/hard", "d/suid", b"", 0)
        .add(EntryType::Symlink, "link", "/etc/passwd", b"", 0o777)
        .add(EntryType::Char, "null", "", b"", 0o666)
        .add(EntryType::Fifo, "fifo", "", b"", 0o600)
        .pax(&[
            ("SCHILY.xattr.user.a", b"b"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/x"),
            ("mtime", b"12.5"),
        ])
        .file("d/attributes", b"")
        .apply(at, &[])
        .unwrap();
    let stat = |name: &str| fs::symlink_metadata(at.join(name)).unwrap();
    assert_eq!((stat("d").mode() & 0o7777, stat("d").mtime(), stat("d").uid()), (0o750, 1_000_000, 1000));
    assert_eq!(
        (stat("d/suid").mode() & 0o7777, stat("d/suid").gid(), stat("d/suid").nlink()),
        (0o4755, 1001, 2)
    );
    assert_eq!(stat("d/suid").ino(), stat("d/hard").ino());
    assert_eq!((stat("link").uid(), stat("link").mtime()), (1000, 1_000_000));
    assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert!(stat("fifo").file_type().is_fifo());
    assert_eq!((stat("d/attributes").mtime(), stat("d/attributes").mtime_nsec()), (12, 500_000_000));
    assert_eq!(xattr(&at.join("d/attributes"), "user.a").unwrap(), b"b");
    assert_eq!(xattr(&at.join("d/attributes"), "trusted.overlay.redirect"), None);
}

#[test]
fn whiteouts_become_overlayfs_own() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    Tar::new()
        .file("a/.wh.gone", b"")
        .file("a/kept", b"1")
        .file("a/.wh.kept", b"")
        .file("b/.wh..wh..opq", b"")
        .file("c/.wh.dir", b"")
        .directory("c/dir")
        .file(".wh..wh.plnk", b"")
        .apply(at, &[])
        .unwrap();
    let gone = fs::symlink_metadata(at.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(fs::read(at.join("a/kept")).unwrap(), b"1");
    assert_eq!(xattr(&at.join("b"), "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(xattr(&at.join("c/dir"), "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(xattr(&at.join("c"), "trusted.overlay.opaque"), None);
    assert!(!at.join(".wh..wh.plnk").exists());
}

#[test]
fn nothing_gets_out() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "untouched").unwrap();
    let there = outside.path().to_str().unwrap();
    for tar in [
        Tar::new().file("../../../../../../etc/soci-was-here", b"x"),
        Tar::new().add(EntryType::Symlink, "out", there, b"", 0o777).file("out/secret", b"overwritten"),
        Tar::new()
            .add(EntryType::Symlink, "out", "../../../../../../..", b"", 0o777)
            .file("out/soci-was-here", b"x"),
        Tar::new()
            .add(EntryType::Symlink, "f", secret.to_str().unwrap(), b"", 0o777)
            .file("f", b"overwritten"),
        Tar::new()
            .add(EntryType::Link, "hard", secret.to_str().unwrap(), b"", 0o777)
            .file("hard", b"overwritten"),
        Tar::new().add(EntryType::Symlink, "out", there, b"", 0o777).add(
            EntryType::Link,
            "h",
            "out/secret",
            b"",
            0,
        ),
        Tar::new().add(EntryType::Symlink, "out", there, b"", 0o777).file("out/.wh.secret", b""),
        Tar::new().add(EntryType::Symlink, "out", there, b"", 0o777).file("out/.wh..wh..opq", b""),
        Tar::new().add(EntryType::Symlink, "out", there, b"", 0o777).directory("out"),
        Tar::new().file(".wh...", b"").file("a/.wh..", b""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        // Whether it is refused or confined is all the same.
        let _ = tar.apply(dir.path(), &[]);
        assert_eq!(fs::read(&secret).unwrap(), b"untouched");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(xattr(outside.path(), "trusted.overlay.opaque"), None);
        assert!(fs::metadata(outside.path()).unwrap().uid() != 1000);
    }
    assert!(!Path::new("/etc/soci-was-here").exists() && !Path::new("/soci-was-here").exists());
}

#[test]
fn links_inside_are_followed_and_later_entries_replace_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    Tar::new()
        .directory("usr/lib")
        .add(EntryType::Symlink, "lib", "/usr/lib", b"", 0o777)
        .file("lib/so", b"1")
        .file("twice", b"1")
        .file("twice", b"22")
        .file("dir/f", b"1")
        .file("dir", b"now a file")
        .apply(at, &[])
        .unwrap();
    assert_eq!(fs::read(at.join("usr/lib/so")).unwrap(), b"1");
    assert_eq!(fs::read(at.join("twice")).unwrap(), b"22");
    assert_eq!(fs::read(at.join("dir")).unwrap(), b"now a file");
}

#[test]
fn directories_without_an_entry_look_as_below() {
    let lower = tempfile::tempdir().unwrap();
    fs::create_dir_all(lower.path().join("var/spool")).unwrap();
    std::os::unix::fs::chown(lower.path().join("var/spool"), Some(7), Some(8)).unwrap();
    rustix::fs::chmod(lower.path().join("var/spool"), Mode::from_raw_mode(0o1777)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    Tar::new()
        .file("var/spool/new/x", b"")
        .apply(dir.path(), &[Below::Directory(lower.path().to_owned())])
        .unwrap();
    let stat = |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap();
    assert_eq!((stat("var/spool").mode() & 0o7777, stat("var/spool").uid()), (0o1777, 7));
    assert_eq!((stat("var/spool/new").mode() & 0o7777, stat("var/spool/new").uid()), (0o755, 0));
}

#[test]
fn what_cannot_be_done_right_is_refused() {
    for tar in [
        Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("sparse", b"x"),
        Tar::new().pax(&[("uid", b"99999999999")]).file("owner", b"x"),
        Tar::new().add(EntryType::new(b'M'), "odd", "", b"", 0),
        Tar::new().add(EntryType::Link, "h", "nothing", b"", 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        assert!(tar.apply(dir.path(), &[]).is_err());
    }
}

#[test]
fn times_before_1970() {
    let parts = |text| time(text).map(|time| (time.tv_sec, time.tv_nsec));
    assert_eq!(parts("-1.25"), Some((-2, 750_000_000)));
    assert_eq!(parts("-3"), Some((-3, 0)));
    assert_eq!(parts("5.000000001"), Some((5, 1)));
    for odd in ["x", "1.-5", "1.+5", "1. 5", "1.5.5", ""] {
        assert_eq!(parts(odd), None, "{odd:?}");
    }
}

/// Counts what is read of it.
struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read(buffer)?;
        self.1 += length as u64;
        Ok(length)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::best());
    encoder.read_to_end(&mut blob).unwrap();
    blob
}

/// A header of this type that says that so many bytes follow.
fn header(kind: u8, format: Header, length: u64) -> Header {
    let mut header = format;
    header.set_entry_type(EntryType::new(kind));
    header.set_size(length);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.as_mut_bytes()[..4].copy_from_slice(b"name");
    header.set_cksum();
    header
}

#[test]
fn what_a_header_makes_us_remember_is_bounded() {
    const MEMBER: usize = 16 << 20;
    const LENGTH: u64 = 2 << 30;
    let zeros = gzip(&vec![0; MEMBER]);
    for (kind, format) in [
        (b'L', Header::new_gnu()),
        (b'K', Header::new_gnu()),
        (b'x', Header::new_ustar()),
        // Without the magic it is an entry of its own.
        (b'x', Header::new_old()),
    ] {
        let mut blob = gzip(header(kind, format, LENGTH).as_bytes());
        blob.extend(zeros.repeat(LENGTH as usize / MEMBER));
        assert!(blob.len() < 16 << 20);
        let mut tar = Counted(flate2::read::MultiGzDecoder::new(blob.as_slice()), 0);
        let dir = tempfile::tempdir().unwrap();
        let error = apply(&mut tar, dir.path(), &[], false).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        assert!(tar.1 <= MAX_HEADERS, "{}", tar.1);
    }
}

#[test]
fn a_sparse_files_map_is_bounded() {
    let mut first = Header::new_gnu();
    first.as_gnu_mut().unwrap().isextended = [1];
    let first = header(b'S', first, 0);
    // Each says that there is one more, and 21 times that nothing is at 0.
    let mut more = [b'0'; 512];
    more[504..].fill(0);
    more[504] = 1;
    let mut tar = Counted(first.as_bytes().as_slice().chain(Again(more)).take(1 << 30), 0);
    let dir = tempfile::tempdir().unwrap();
    let error = apply(&mut tar, dir.path(), &[], false).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    assert!(tar.1 <= MAX_HEADERS, "{}", tar.1);
}

/// The same block for ever.
struct Again([u8; 512]);

impl Read for Again {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(512);
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0.rotate_left(length);
        Ok(length)
    }
}

#[test]
fn bodies_may_be_longer_than_headers() {
    let dir = tempfile::tempdir().unwrap();
    let long = vec![7; MAX_HEADERS as usize + 1];
    let global = header(b'g', Header::new_ustar(), long.len() as u64);
    let mut tar = Tar::new();
    tar.0.append(&global, long.as_slice()).unwrap();
    tar.directory("d")
        .file("d/long", &long)
        // Of a directory nobody wants a body.
        .add(EntryType::Directory, "e", "", &long, 0o755)
        .file("last", b"1")
        .apply(dir.path(), &[])
        .unwrap();
    assert_eq!(fs::read(dir.path().join("d/long")).unwrap(), long);
    assert_eq!(fs::read(dir.path().join("last")).unwrap(), b"1");
    assert_eq!(fs::metadata(dir.path().join("d")).unwrap().mtime(), 1_000_000);
}

#[test]
fn directories_that_come_again_and_again_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let room = Cell::new(MAX_HEADERS);
    let root = Root::open(dir.path(), &[]).unwrap();
    let mut layer = Applying { root, opaque: "", room: &room, directories: Vec::new(), remembered: 0 };
    let time = Timespec { tv_sec: 1, tv_nsec: 0 };
    let path = Inside::of(&b"d/".repeat(2000)).unwrap();
    let most = (0..).find(|_| layer.remember(&path, time).is_err()).unwrap();
    assert!((10_000..MAX_DIRECTORIES / 4000).contains(&most), "{most}");
}
