//! The front end above FUSE: who waits for whom, what stays, what is gone on with.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use soci_snapshotter_grpc::fuse::Unmounted;
use soci_snapshotter_grpc::kernel::Unmounting;
use soci_snapshotter_grpc::snapshot::FrontEnd;

use crate::layers::{Fixture, Shown, attach, kernel};
use crate::view;

/// Nothing here takes so long; a test that hangs ends.
const HANGS: Duration = Duration::from_secs(20);

/// Backing files of loop devices, and mount points, below a directory.
pub fn left_below(directory: &Path) -> Vec<String> {
    let below = |text: &str| text.contains(directory.to_str().unwrap());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut left: Vec<String> = mounts.lines().filter(|line| below(line)).map(str::to_owned).collect();
    for entry in fs::read_dir("/sys/block").unwrap() {
        let backing = fs::read_to_string(entry.unwrap().path().join("loop/backing_file"));
        left.extend(backing.ok().filter(|backing| below(backing)));
    }
    left
}

pub fn loop_attribute(at: &Path, name: &str) -> String {
    let device = fs::metadata(at).unwrap().dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    fs::read_to_string(format!("/sys/dev/block/{device}/{name}")).unwrap().trim().to_owned()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANGS;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn unmount(mut shown: Shown) {
    shown.kernel.take().unwrap().unmount().unwrap();
    assert_eq!(shown.fuse.mount.take().unwrap().unmount().unwrap(), Unmounted::Gone);
}

#[test]
fn it_is_there_beside_fuse_and_leaves_nothing() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let directory = fixture.scratch("snapshots");
    for _ in 0..3 {
        let shown = fixture.show(FrontEnd::KernelOverFuse);
        assert_eq!(shown.at, shown.fuse.at.with_file_name("erofs"));
        assert_eq!(shown.kernel.as_ref().unwrap().front_end(), FrontEnd::KernelOverFuse);
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let line = mounts.lines().find(|line| line.contains(shown.at.to_str().unwrap())).unwrap();
        assert!(line.starts_with("/dev/loop") && line.contains(" erofs ro,nodev,relatime"), "{line}");
        assert!(!line.contains("fuse") && !line.contains("nosuid"), "{line}");
        let backing = loop_attribute(&shown.at, "loop/backing_file");
        assert!(backing.ends_with("/fs/.soci-snapshotter/layer.erofs"), "{backing}");
        let attributes = ["loop/dio", "loop/autoclear", "ro", "bdi/read_ahead_kb"];
        let attributes = attributes.map(|name| loop_attribute(&shown.at, name));
        assert_eq!(attributes, ["1", "1", "1", "1024"]);
        assert_eq!(fs::read(shown.at.join("etc/hosts")).unwrap().len(), 20);
        unmount(shown);
        assert_eq!(left_below(&directory), [""; 0]);
    }
}

#[test]
fn the_layer_file_is_hidden() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let mounted = fixture.mount();
    let directory = mounted.at.join(".soci-snapshotter");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    let path = directory.join("layer.erofs");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode(), metadata.uid(), metadata.ino()), (libc::S_IFREG | 0o400, 0, 4));
    assert_eq!(metadata.len(), fixture.layer.file_size());
    // Its bytes are those of the local file, once they are here.
    let mut through_fuse = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut through_fuse).unwrap();
    assert_eq!(through_fuse, fs::read(fixture.layer.path()).unwrap());
}

#[test]
fn a_missing_span_delays_only_who_needs_it() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let shown = fixture.show(FrontEnd::KernelOverFuse);
    // Present, but in no cache above FUSE.
    fs::read(shown.fuse.at.join("etc/hosts")).unwrap();
    fixture.blob.stuck.store(true, Ordering::Relaxed);
    let file = Arc::new(File::open(shown.at.join("usr/lib/big.txt")).unwrap());
    // Page by page: more reads at the same time than the kernel once let FUSE have in the background.
    rustix::fs::fadvise(&*file, 0, None, Advice::Random).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    assert!(pages > 120, "{pages} pages");
    let (done, ended) = mpsc::channel();
    let blocked: Vec<_> = (pages - 100..pages)
        .map(|page| {
            let (file, done) = (Arc::clone(&file), done.clone());
            thread::spawn(move || {
                let mut data = [0; 4096];
                file.read_exact_at(&mut data, page * 4096).unwrap();
                done.send(()).unwrap();
            })
        })
        .collect();
    wait_for("reads wait", || fixture.layer.status().reads_that_waited >= 100);
    // All of this in a thread of its own, so that it can be seen to hang.
    let (at, (others, answered)) = (shown.at.clone(), mpsc::channel());
    thread::spawn(move || {
        let hosts = fs::read(at.join("etc/hosts")).unwrap().len();
        let suid = fs::metadata(at.join("usr/bin/suid")).unwrap().len();
        let names = fs::read_dir(at.join("usr/lib")).unwrap().count();
        others.send((hosts, suid, names > 2)).unwrap();
    });
    assert_eq!(answered.recv_timeout(HANGS), Ok((20, 70001, true)));
    assert!(ended.try_recv().is_err(), "nothing has come for those who wait");
    fixture.blob.stuck.store(false, Ordering::Relaxed);
    blocked.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn what_cannot_be_fetched_is_an_io_error_and_not_remembered() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let shown = fixture.show(FrontEnd::KernelOverFuse);
    let path = shown.at.join("usr/lib/rand");
    fixture.blob.gone.store(true, Ordering::Relaxed);
    assert_eq!(fs::read(&path).unwrap_err().raw_os_error(), Some(libc::EIO));
    fixture.blob.gone.store(false, Ordering::Relaxed);
    assert_eq!(fs::read(&path).unwrap().len(), 60000);
}

#[test]
fn what_was_read_ahead_for_nobody_does_not_hold_up_an_unmount() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let directory = fixture.scratch("snapshots");
    let mut shown = fixture.show(FrontEnd::KernelOverFuse);
    fixture.blob.stuck.store(true, Ordering::Relaxed);
    let file = File::open(shown.at.join("usr/lib/big.txt")).unwrap();
    rustix::fs::fadvise(&file, 300_000, None, Advice::WillNeed).unwrap();
    wait_for("the kernel reads ahead", || fixture.layer.status().reads_that_waited > 0);
    drop(file);
    let kernel = shown.kernel.take().unwrap();
    assert_eq!(kernel.unmount().unwrap(), Unmounting::Waits);
    // It is for nobody, so it may fail.
    fixture.detach();
    assert_eq!(shown.fuse.mount.take().unwrap().unmount().unwrap(), Unmounted::Gone);
    assert_eq!(left_below(&directory), [""; 0]);
}

#[test]
fn users_go_on_after_a_lazy_unmount() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let directory = fixture.scratch("snapshots");
    let held = Arc::strong_count(&fixture.layer);
    let mut shown = fixture.show(FrontEnd::KernelOverFuse);
    let mut file = File::open(shown.at.join("usr/lib/rand")).unwrap();
    shown.kernel.take().unwrap().unmount().unwrap();
    assert_eq!(shown.fuse.mount.take().unwrap().unmount().unwrap(), Unmounted::InUse);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(directory.to_str().unwrap()));
    let mut data = Vec::new();
    file.read_to_end(&mut data).unwrap();
    assert_eq!(data.len(), 60000);
    assert!(Arc::strong_count(&fixture.layer) > held);
    drop(file);
    // The last user takes EROFS, loop device, FUSE mount and its thread along.
    wait_for("the session ends", || Arc::strong_count(&fixture.layer) == held);
}

#[test]
fn a_living_mount_is_gone_on_with_and_a_dead_one_replaced() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let directory = fixture.scratch("snapshots");
    let kernel = kernel(&fixture.scratch("probe"));
    let mut shown = fixture.show(FrontEnd::KernelOverFuse);
    let device = |shown: &Shown| fs::metadata(&shown.at).unwrap().dev();
    let first = device(&shown);
    let mut user = File::open(shown.at.join("usr/lib/rand")).unwrap();
    // As after a daemon that died: nothing is unmounted.
    drop(shown.kernel.take());
    shown.kernel = Some(attach(&kernel, &fixture.layer, &shown.fuse.at).unwrap());
    assert_eq!(device(&shown), first);
    assert_eq!(left_below(&directory).len(), 3, "FUSE, EROFS and one loop device");
    let mut data = Vec::new();
    user.read_to_end(&mut data).unwrap();
    assert_eq!(data.len(), 60000);

    // FUSE has been replaced: what reads through the old one goes on, new containers get the new one.
    drop(shown.kernel.take());
    let old = shown.fuse.mount.take().unwrap();
    let again = fixture.show(FrontEnd::KernelOverFuse);
    assert_ne!(device(&again), first);
    assert_eq!(fs::read(again.at.join("etc/hosts")).unwrap().len(), 20);
    drop(user);
    unmount(again);
    old.unmount().unwrap();
    wait_for("everything is gone", || left_below(&directory).is_empty());
}

#[test]
fn without_the_layer_file_there_is_only_fuse() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let at = fixture.scratch("snapshots/8/fs");
    let options = soci_snapshotter_grpc::fuse::FuseOptions::default();
    let mount =
        soci_snapshotter_grpc::fuse::FuseMount::mount(Arc::clone(&fixture.layer), &at, options, |_| {
            soci_snapshotter_grpc::keeper::Hold::none()
        })
        .unwrap();
    let result = attach(&kernel(&fixture.scratch("probe")), &fixture.layer, &at);
    let left = left_below(&fixture.scratch("snapshots"));
    let hosts = view::stat(&at.join("etc/hosts"));
    mount.unmount().unwrap();
    assert_eq!(result.unwrap_err().source.kind(), std::io::ErrorKind::NotFound);
    assert_eq!((left.len(), hosts.data.len()), (1, 20));
}
