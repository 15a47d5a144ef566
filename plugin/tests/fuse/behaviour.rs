//! Everything about a mount but its tree.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use soci_snapshotter_grpc::fuse::{FuseMount, FuseOptions, MountError, Unmounted};
use soci_snapshotter_grpc::keeper::Hold;
use soci_snapshotter_grpc::snapshot::FrontEnd;

use crate::layers::Fixture;
use crate::view::{self, Mount};

fn mount_lines(at: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(1) == at.to_str()).map(str::to_owned).collect()
}

fn os_error<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn it_looks_like_upstreams() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mounted = fixture.mount();
    let options = "rw,nodev,relatime,user_id=0,group_id=0,allow_other";
    let line = format!("soci {} fuse.rawBridge {options} 0 0", mounted.at.display());
    assert_eq!(mount_lines(&mounted.at), [line]);
    let device = fs::metadata(&mounted.at).unwrap().dev();
    let path =
        format!("/sys/class/bdi/{}:{}/read_ahead_kb", rustix::fs::major(device), rustix::fs::minor(device));
    assert_eq!(fs::read_to_string(path).unwrap().trim(), "1024");
}

#[test]
fn unmounting_leaves_nothing() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mut mounted = fixture.mount();
    fs::read(mounted.at.join("etc/hosts")).unwrap();
    let threads = || {
        fs::read_dir("/proc/self/task")
            .unwrap()
            .filter(|task| {
                let name =
                    task.as_ref().ok().and_then(|task| fs::read_to_string(task.path().join("comm")).ok());
                name.is_some_and(|name| name.trim() == "fuse-7")
            })
            .count()
    };
    assert!(threads() > 0);
    assert_eq!(mounted.mount.take().unwrap().unmount().unwrap(), Unmounted::Gone);
    assert!(mount_lines(&mounted.at).is_empty());
    assert_eq!(fs::read_dir(&mounted.at).unwrap().count(), 0);
    // Somebody else was faster.
    let mut mounted = fixture.mount();
    view::run(Command::new("umount").arg(&mounted.at));
    assert_eq!(mounted.mount.take().unwrap().unmount().unwrap(), Unmounted::Gone);
}

#[test]
fn users_go_on_after_a_lazy_unmount() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mut mounted = fixture.mount();
    let mut file = File::open(mounted.at.join("usr/lib/rand")).unwrap();
    let (held, ended) = std::sync::mpsc::channel::<()>();
    let mount = mounted.mount.take().unwrap();
    mount.keep(held);
    assert_eq!(mount.unmount().unwrap(), Unmounted::InUse);
    assert!(mount_lines(&mounted.at).is_empty());
    let mut data = Vec::new();
    file.read_to_end(&mut data).unwrap();
    assert_eq!(data.len(), 60000);
    assert_eq!(ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty), "somebody still uses it");
    drop(file);
    let gone = ended.recv_timeout(std::time::Duration::from_secs(20));
    assert_eq!(gone, Err(std::sync::mpsc::RecvTimeoutError::Disconnected), "nobody needs it any more");
}

#[test]
fn what_a_dead_daemon_left_is_cleared() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mut mounted = fixture.mount();
    FuseMount::clear(&mounted.at).unwrap();
    assert!(mount_lines(&mounted.at).is_empty());
    FuseMount::clear(&mounted.at).unwrap();
    FuseMount::clear(Path::new("/nonexistent/fs")).unwrap();
    assert_eq!(mounted.mount.take().unwrap().unmount().unwrap(), Unmounted::Gone);
}

#[test]
fn a_mount_point_that_is_not_there() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let result =
        FuseMount::mount(fixture.layer.clone(), Path::new("/nonexistent/fs"), FuseOptions::default(), |_| {
            Hold::none()
        });
    assert!(matches!(result, Err(MountError::Mount { .. })));
}

#[test]
fn the_state_file() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mounted = fixture.mount();
    let names: Vec<_> = fs::read_dir(&mounted.at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.contains(&".soci-snapshotter".into()));
    let directory = mounted.at.join(".soci-snapshotter");
    let digest = fixture.layer.key().layer.to_string();
    let listed: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    let path = directory.join(format!("{digest}.json"));
    assert_eq!(listed, std::slice::from_ref(&path));
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o400);
    assert_eq!((metadata.uid(), metadata.ino(), fs::metadata(&directory).unwrap().ino()), (0, 3, 2));
    assert_eq!(os_error(fs::metadata(directory.join("other"))), Some(libc::ENOENT));

    let state = || -> serde_json::Value { serde_json::from_slice(&fs::read(&path).unwrap()).unwrap() };
    let before = state();
    assert_eq!(before["digest"], digest);
    assert!(before["size"].as_u64().unwrap() > 700_000);
    assert_eq!((before["fetchedSize"].as_u64(), before["fetchedPercent"].as_f64()), (Some(0), Some(0.0)));
    view::of(&mounted.at);
    let after = state();
    assert!(after["fetchedSize"].as_u64() > Some(700_000), "{after}");
    assert!(after["fetchedPercent"].as_f64() > Some(50.0), "{after}");
    assert!(after.get("error").is_none());
}

#[test]
fn failed_reads_are_io_errors() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mounted = fixture.mount();
    fixture.blob.gone.store(true, Ordering::Relaxed);
    assert_eq!(os_error(fs::read(mounted.at.join("etc/hosts"))), Some(libc::EIO));
    let state = mounted.at.join(format!(".soci-snapshotter/{}.json", fixture.layer.key().layer));
    let state: serde_json::Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
    assert!(state["error"].is_string(), "{state}");
    fixture.blob.gone.store(false, Ordering::Relaxed);
    fixture.blob.damaged.store(true, Ordering::Relaxed);
    assert_eq!(os_error(fs::read(mounted.at.join("usr/lib/rand"))), Some(libc::EIO));
    // And nothing of it is remembered.
    fixture.blob.damaged.store(false, Ordering::Relaxed);
    assert_eq!(fs::read(mounted.at.join("usr/lib/rand")).unwrap().len(), 60000);
}

#[test]
fn a_blocked_read_blocks_nobody_else() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mounted = fixture.mount();
    fs::read(mounted.at.join("etc/hosts")).unwrap();
    fixture.blob.stuck.store(true, Ordering::Relaxed);
    let big = mounted.at.join("usr/lib/big.txt");
    // Far from what came with the first read.
    let blocked: Vec<_> = (1..4_u64)
        .map(|part| {
            let big = big.clone();
            thread::spawn(move || {
                let mut file = File::open(big).unwrap();
                file.seek(SeekFrom::Start(part * 170_000 + 5)).unwrap();
                let mut data = vec![0; 1000];
                file.read_exact(&mut data).unwrap();
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    while fixture.layer.status().reads_that_waited == 0 {
        assert!(Instant::now() < deadline, "no read waits");
        thread::sleep(Duration::from_millis(10));
    }
    let began = Instant::now();
    assert_eq!(fs::read(mounted.at.join("etc/hosts")).unwrap().len(), 20);
    assert_eq!(fs::metadata(mounted.at.join("usr/bin/suid")).unwrap().len(), 70001);
    assert!(fs::read_dir(mounted.at.join("usr/lib")).unwrap().count() > 2);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(blocked.iter().all(|thread| !thread.is_finished()));
    fixture.blob.stuck.store(false, Ordering::Relaxed);
    blocked.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn metadata_needs_no_source() {
    let fixture = Fixture::golden("pax-gzip9.tgz");
    fixture.blob.gone.store(true, Ordering::Relaxed);
    let mounted = fixture.mount();
    let mut open = vec![mounted.at.clone()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        view::xattrs(&path);
        if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert_eq!(fixture.blob.requests.load(Ordering::Relaxed), 0);
}

#[test]
fn nothing_can_be_changed() {
    let fixture = Fixture::golden("pax-gzip9.tgz");
    let mounted = fixture.mount();
    let hosts = mounted.at.join("etc/hosts");
    let before = view::of(&mounted.at);
    // The kernel takes an open for granted, not what comes then.
    let written = OpenOptions::new()
        .append(true)
        .open(&hosts)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"x"));
    assert_eq!(os_error(written), Some(libc::EROFS));
    assert_eq!(os_error(File::create(mounted.at.join("new"))), Some(libc::EROFS));
    assert_eq!(os_error(OpenOptions::new().write(true).truncate(true).open(&hosts)), Some(libc::EROFS));
    assert_eq!(os_error(fs::create_dir(mounted.at.join("new"))), Some(libc::EROFS));
    assert_eq!(os_error(fs::remove_file(&hosts)), Some(libc::EROFS));
    assert_eq!(os_error(fs::remove_dir(mounted.at.join("emptydir"))), Some(libc::EROFS));
    assert_eq!(os_error(fs::rename(&hosts, mounted.at.join("new"))), Some(libc::EROFS));
    assert_eq!(os_error(fs::hard_link(&hosts, mounted.at.join("new"))), Some(libc::EROFS));
    assert_eq!(os_error(std::os::unix::fs::symlink("x", mounted.at.join("new"))), Some(libc::EROFS));
    assert_eq!(os_error(fs::set_permissions(&hosts, fs::Permissions::from_mode(0o777))), Some(libc::EROFS));
    let flags = rustix::fs::XattrFlags::empty();
    assert_eq!(rustix::fs::setxattr(&hosts, "user.x", b"x", flags), Err(rustix::io::Errno::ROFS));
    assert_eq!(rustix::fs::removexattr(&hosts, "user.x"), Err(rustix::io::Errno::ROFS));
    view::assert_same(&before, &view::of(&mounted.at));
}

#[test]
fn opaque_directories_answer_but_do_not_tell() {
    let fixture = Fixture::golden("whiteouts.tgz");
    let mounted = fixture.mount();
    let (opaque, plain) = (mounted.at.join("b"), mounted.at.join("a"));
    for name in [b"trusted.overlay.opaque".as_slice(), b"user.overlay.opaque"] {
        assert_eq!(view::xattr(&opaque, name).unwrap(), b"y");
        assert_eq!(view::xattr(&plain, name), Err(rustix::io::Errno::NODATA));
    }
    assert!(view::xattrs(&opaque).is_empty());

    // A layer without attributes is not asked twice.
    let fixture = Fixture::golden("mix-fixed.tgz");
    let mounted = fixture.mount();
    assert_eq!(view::xattr(&mounted.at, b"trusted.overlay.opaque"), Err(rustix::io::Errno::OPNOTSUPP));
}

#[test]
fn buffers_that_are_too_small() {
    let fixture = Fixture::golden("pax-gzip9.tgz");
    let mounted = fixture.mount();
    let file = mounted.at.join("usr/xattr/one");
    let mut buffer = [0; 100];
    assert_eq!(rustix::fs::getxattr(&file, "user.bin", &mut buffer), Err(rustix::io::Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&file, "user.empty", &mut buffer), Ok(0));
    assert_eq!(rustix::fs::listxattr(&file, &mut buffer[..3]), Err(rustix::io::Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&file, "user.none", &mut buffer), Err(rustix::io::Errno::NODATA));
}

#[test]
fn under_overlayfs() {
    for front_end in [FrontEnd::Fuse, FrontEnd::KernelOverFuse] {
        whiteouts_and_opaque_directories_count(front_end);
    }
}

fn whiteouts_and_opaque_directories_count(front_end: FrontEnd) {
    let fixture = Fixture::golden("whiteouts.tgz");
    let mounted = fixture.show(front_end);
    let base = fixture.scratch("base");
    for directory in ["a", "b"] {
        fs::create_dir(base.join(directory)).unwrap();
        for name in ["gone", "old"] {
            fs::write(base.join(directory).join(name), "").unwrap();
        }
    }
    fs::write(base.join("rootfile"), "").unwrap();
    let (upper, work, at) = (fixture.scratch("upper"), fixture.scratch("work"), fixture.scratch("merged"));
    let lower = format!("lowerdir={}:{}", mounted.at.display(), base.display());
    let options = format!("{lower},upperdir={},workdir={}", upper.display(), work.display());
    let overlay = Mount::new("overlay", &options, Path::new("overlay"), &at);
    let names: Vec<_> =
        view::of(&overlay.0).into_keys().map(|path| path.into_os_string().into_string().unwrap()).collect();
    let expected =
        ["", "a", "a/b", "a/b/c", "a/b/c/implicit-parent", "a/old", "b", "b/new", "notwh", "notwh/.whx"];
    assert_eq!(names, expected);
    // What is copied up does not take the attribute along.
    fs::write(at.join("b/written"), "x").unwrap();
    fs::set_permissions(at.join("b"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(view::xattr(&upper.join("b"), b"trusted.overlay.opaque").is_err());
    assert!(view::xattr(&upper.join("b"), b"user.overlay.opaque").is_err());
    assert_eq!(fs::read(at.join("b/new")).unwrap(), b"new\n");
}

#[test]
fn statfs() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mounted = fixture.mount();
    let stat = rustix::fs::statvfs(&mounted.at).unwrap();
    assert!(stat.f_blocks * stat.f_frsize > 700_000);
    assert_eq!((stat.f_bfree, stat.f_ffree, stat.f_namemax), (0, 0, 255));
}

#[test]
fn attributes_survive_a_copy_up() {
    for front_end in [FrontEnd::Fuse, FrontEnd::KernelOverFuse] {
        copy_up_takes_attributes_along(front_end);
    }
}

fn copy_up_takes_attributes_along(front_end: FrontEnd) {
    let fixture = Fixture::golden("pax-gzip9.tgz");
    let mounted = fixture.show(front_end);
    let (upper, work, at) = (fixture.scratch("upper"), fixture.scratch("work"), fixture.scratch("merged"));
    let lower = format!("lowerdir={}", mounted.at.display());
    let options = format!("{lower},upperdir={},workdir={}", upper.display(), work.display());
    let overlay = Mount::new("overlay", &options, Path::new("overlay"), &at);
    let file = overlay.0.join("usr/xattr/one");
    let before = view::stat(&file);
    assert!(before.xattrs.len() >= 4, "{:?}", before.xattrs);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let after = view::stat(&file);
    assert_eq!((&after.xattrs, &after.data, after.mtime), (&before.xattrs, &before.data, before.mtime));
    assert_eq!(view::xattrs(&upper.join("usr/xattr/one"))[b"security.capability".as_slice()].len(), 20);
}

#[test]
fn what_a_layer_cannot_do() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mounted = fixture.mount();
    let file = File::open(mounted.at.join("etc/hosts")).unwrap();
    assert_eq!(rustix::fs::ioctl_getflags(&file), Err(rustix::io::Errno::NOTTY));
    file.sync_all().unwrap();
    rustix::fs::access(mounted.at.join("etc/hosts"), rustix::fs::Access::READ_OK).unwrap();
    let (from, to) = (mounted.at.join("usr/lib/rand"), fixture.scratch("copy").join("rand"));
    assert_eq!(fs::copy(from, to).unwrap(), 60000);
}
