//! Layers made here: trees of random files, entries in odd orders, programs with privileges.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use soci_snapshotter_grpc::snapshot::FrontEnd;
use tar::{EntryType, Header};

use crate::golden::{extract, kernel_view, three_views};
use crate::layers::Fixture;
use crate::view::{self, Mount};

/// SplitMix64; its seed is printed, and can be given in `SEED`.
pub struct Random(u64);

impl Random {
    fn new(test: &str) -> Random {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SEED").ok().map_or_else(now, |seed| seed.parse().unwrap());
        eprintln!("{test}: SEED={seed}");
        Random(seed)
    }

    pub fn seeded(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn name(&mut self) -> OsString {
        let length = if self.below(15) == 0 { 200 + self.below(50) } else { 1 + self.below(20) };
        let byte = |byte: u64| match byte as u8 {
            0 | b'/' => b'_',
            other => other,
        };
        OsString::from_vec((0..length).map(|_| byte(self.next())).collect())
    }

    fn data(&mut self) -> Vec<u8> {
        let length = [0, 1, 511, 512, 513, 4096, 5000, self.below(200_000)][self.below(8) as usize];
        let repeats = self.below(2) == 0;
        (0..length).map(|at| if repeats { (at / 100) as u8 } else { self.next() as u8 }).collect()
    }
}

/// Makes files of all kinds in a directory.
fn populate(random: &mut Random, root: &Path, count: usize) {
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut made = vec![root.to_owned()];
    for _ in 0..count {
        let parent = &directories[random.below(directories.len() as u64) as usize];
        let path = parent.join(random.name());
        if path.as_os_str().len() > 2000
            || path.parent() != Some(parent)
            || fs::symlink_metadata(&path).is_ok()
        {
            continue;
        }
        match random.below(10) {
            0 | 1 => {
                fs::create_dir(&path).unwrap();
                directories.push(path.clone());
            }
            2 => std::os::unix::fs::symlink(random.name(), &path).unwrap(),
            3 if !files.is_empty() => {
                fs::hard_link(&files[random.below(files.len() as u64) as usize], &path).unwrap();
                continue;
            }
            4 => {
                let (kind, device) = match random.below(3) {
                    0 => (FileType::Fifo, 0),
                    1 => (FileType::CharacterDevice, rustix::fs::makedev(random.below(500) as u32, 70000)),
                    _ => (FileType::BlockDevice, rustix::fs::makedev(7, random.below(1 << 20) as u32)),
                };
                rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device).unwrap();
            }
            _ => {
                fs::write(&path, random.data()).unwrap();
                if random.below(4) == 0 {
                    let value: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
                    rustix::fs::setxattr(&path, "user.random", &value, XattrFlags::empty()).unwrap();
                }
                files.push(path.clone());
            }
        }
        made.push(path);
    }
    // Children first, so that the times of their parents stay.
    for path in made.into_iter().rev() {
        let is_link = fs::symlink_metadata(&path).unwrap().is_symlink();
        std::os::unix::fs::lchown(&path, Some(random.below(70000) as u32), Some(random.below(70000) as u32))
            .unwrap();
        if !is_link {
            fs::set_permissions(&path, fs::Permissions::from_mode(random.below(0o10000) as u32)).unwrap();
        }
        let time = Timespec {
            tv_sec: random.below(1 << 30) as i64 - (1 << 20),
            tv_nsec: random.below(1_000_000_000) as i64,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

#[test]
fn random_trees() {
    let mut random = Random::new("random_trees");
    for round in 0..4 {
        let source = tempfile::tempdir().unwrap();
        populate(&mut random, source.path(), 100 * (round + 1));
        let xattrs = ["--format=posix", "--xattrs", "--xattrs-include=*"];
        let format = if round % 2 == 0 { xattrs.as_slice() } else { &["--format=gnu"] };
        let mut tar = Command::new("tar");
        tar.args(format).args(["--numeric-owner", "-cf", "-", "-C"]).arg(source.path()).arg(".");
        let tar = view::run(&mut tar);
        let (fixture, blob) = Fixture::made(&tar);
        three_views(&fixture, &blob);
        kernel_view(&Fixture::made(&tar).0, &blob);
    }
}

/// The source is slow, breaks off, and gives its ranges in whatever order, while many read here and there: each gets the bytes of the tar, and in the end
/// everything is as it should be.
#[test]
fn random_trees_of_a_faulty_source() {
    let mut random = Random::new("random_trees_of_a_faulty_source");
    for front_end in [FrontEnd::Fuse, FrontEnd::KernelOverFuse] {
        let source = tempfile::tempdir().unwrap();
        populate(&mut random, source.path(), 400);
        let mut tar = Command::new("tar");
        tar.args(["--format=posix", "--numeric-owner", "-cf", "-", "-C"]).arg(source.path()).arg(".");
        let (fixture, blob) = Fixture::made(&view::run(&mut tar));
        fixture.blob.chance.store(random.next() | 1, Ordering::Relaxed);
        let model = fixture.scratch("model");
        let files: Vec<PathBuf> = extract(&blob, &model)
            .into_iter()
            .filter(|(_, file)| file.kind() == libc::S_IFREG && file.data.len() > 1)
            .map(|(path, _)| path)
            .collect();
        let shown = fixture.show(front_end);
        thread::scope(|scope| {
            for _ in 0..8 {
                let mut random = Random::seeded(random.next());
                let (files, model, at) = (&files, &model, &shown.at);
                scope.spawn(move || {
                    for _ in 0..40 {
                        let path = &files[random.below(files.len() as u64) as usize];
                        let whole = fs::read(model.join(path)).unwrap();
                        let start = random.below(whole.len() as u64);
                        let mut part = vec![0; 1 + random.below(whole.len() as u64 - start) as usize];
                        File::open(at.join(path)).unwrap().read_exact_at(&mut part, start).unwrap();
                        assert!(part == whole[start as usize..][..part.len()], "{path:?} from {start}");
                    }
                });
            }
        });
        drop(shown);
        three_views(&fixture, &blob);
        assert!(fixture.blob.requests.load(Ordering::Relaxed) >= 2, "the first one breaks off");
    }
}

/// A tar, entry by entry.
struct Entries(tar::Builder<Vec<u8>>);

impl Entries {
    fn new() -> Entries {
        Entries(tar::Builder::new(Vec::new()))
    }

    fn add(&mut self, kind: EntryType, path: &str, mode: u32, link: &str, data: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1_500_000_000);
        header.set_size(data.len() as u64);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
    }

    fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.add(EntryType::Regular, path, mode, "", data);
    }

    fn device(&mut self, path: &str, mode: u32, (major, minor): (u32, u32)) {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Char);
        header.set_path(path).unwrap();
        header.set_mode(mode);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.0.append(&header, &b""[..]).unwrap();
    }

    fn directory(&mut self, path: &str, mode: u32) {
        self.add(EntryType::Directory, path, mode, "", b"");
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

#[test]
fn entries_that_come_again() {
    let mut entries = Entries::new();
    entries.directory("./", 0o751);
    entries.file("f", 0o600, b"first");
    entries.file("./f", 0o640, b"second, and longer");
    entries.directory("d", 0o700);
    entries.file("d/child", 0o600, b"stays");
    entries.directory("d/", 0o1777);
    entries.file("linked", 0o600, b"one file, two names");
    entries.add(EntryType::Link, "hard", 0o600, "linked", b"");
    entries.add(EntryType::Link, "hard-again", 0o600, "./hard", b"");
    entries.file("linked", 0o644, b"another file");
    entries.add(EntryType::Symlink, "s", 0o777, "f", b"");
    entries.file("s", 0o600, b"no link any more");
    entries.add(EntryType::Fifo, "p", 0o600, "", b"");
    entries.add(EntryType::Symlink, "p", 0o777, "d/child", b"");
    entries.add(EntryType::Link, "link-to-link", 0o777, "p", b"");
    entries.file("deep//x/./y", 0o600, b"cleaned");
    let (fixture, blob) = Fixture::made(&entries.finish());
    three_views(&fixture, &blob);
}

#[test]
fn programs_with_privileges() {
    let mut entries = Entries::new();
    entries.file("id", 0o4755, &fs::read("/usr/bin/id").unwrap());
    entries.file("secret", 0o600, b"only for the capable");
    // Version 2, effective; CAP_DAC_READ_SEARCH permitted.
    let mut capability = vec![1, 0, 0, 2, 4];
    capability.resize(20, 0);
    entries.0.append_pax_extensions([("SCHILY.xattr.security.capability", capability.as_slice())]).unwrap();
    entries.file("cat", 0o755, &fs::read("/usr/bin/cat").unwrap());
    entries.device("null", 0o666, (1, 3));
    let tar = entries.finish();
    for front_end in [FrontEnd::Fuse, FrontEnd::KernelOverFuse] {
        privileges_count(&Fixture::made(&tar).0, front_end);
    }
}

fn privileges_count(fixture: &Fixture, front_end: FrontEnd) {
    let mounted = fixture.show(front_end);
    let (upper, work, at) = (fixture.scratch("upper"), fixture.scratch("work"), fixture.scratch("merged"));
    let lower = format!("lowerdir={}", mounted.at.display());
    let options = format!("{lower},upperdir={},workdir={}", upper.display(), work.display());
    let overlay = Mount::new("overlay", &options, Path::new("overlay"), &at);
    for path in
        at.ancestors().filter(|path| path.starts_with(std::env::temp_dir()) && *path != std::env::temp_dir())
    {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let user = |program: &str, argument: &Path| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=12345", "--regid=12345", "--clear-groups"])
            .arg(overlay.0.join(program))
            .arg(argument);
        command
    };
    // The owner of the setuid program is user 5.
    assert_eq!(view::run(&mut user("id", Path::new("-u"))), b"5\n");
    assert_eq!(view::run(&mut user("cat", &overlay.0.join("secret"))), b"only for the capable");
    // A device of the lower layer is one.
    fs::write(overlay.0.join("null"), "gone").unwrap();
    assert_eq!(fs::read(overlay.0.join("null")).unwrap(), b"");
    let refused = Command::new("setpriv")
        .args(["--reuid=12345", "--regid=12345", "--clear-groups", "cat"])
        .arg(overlay.0.join("secret"))
        .output()
        .unwrap();
    assert!(!refused.status.success());
}
