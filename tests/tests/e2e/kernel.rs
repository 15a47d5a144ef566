//! The front end above FUSE: the kernel's own EROFS.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::process::Signal;
use soci_tests::image::{Packing, digest};
use soci_tests::kernel;
use soci_tests::rootfs;
use soci_tests::stack::{Stack, container_name, eventually};

/// EROFS mounts of a stack's daemon, and what its loop devices read.
fn above_fuse(stack: &Stack) -> Vec<String> {
    let root = stack.daemon.root();
    let ours = |text: &str| text.contains(root.to_str().unwrap());
    let mounts = soci_tests::process::run("mount", &[]);
    let mut found: Vec<String> = mounts
        .lines()
        .filter(|line| ours(line) && line.contains(" type erofs "))
        .map(str::to_owned)
        .collect();
    for entry in fs::read_dir("/sys/block").unwrap() {
        let backing = fs::read_to_string(entry.unwrap().path().join("loop/backing_file"));
        found.extend(backing.ok().filter(|backing| ours(backing)));
    }
    found
}

/// Device of each layer's EROFS, which is another one if it is made anew; what is below the device may change at any time.
fn devices(stack: &Stack) -> Vec<u64> {
    let mut points: Vec<_> = stack
        .mounts()
        .iter()
        .map(|line| Path::new(line.split(' ').nth(2).unwrap()).with_file_name("erofs"))
        .collect();
    points.sort();
    points.iter().map(|point| fs::metadata(point).unwrap().dev()).collect()
}

/// Reference of an image with three lazy layers.
fn pulled(stack: &Stack) -> String {
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let (reference, _) = stack.publish(&image, "varied:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    reference
}

/// Every file of the container's image, by its digest.
const EVERYTHING: [&str; 3] =
    ["sh", "-c", "busybox find / -xdev -type f -exec sha256sum {} + | busybox sort -k 2"];

fn start(stack: &Stack, reference: &str) -> String {
    let name = container_name();
    stack.soci(&["run", "--detach", "--snapshotter", "soci", reference, &name, "sleep", "300"]).ok();
    name
}

/// What a running container reads.
fn read_everything(stack: &Stack, name: &str, exec: &str) -> String {
    stack.ctr(&[&["task", "exec", "--exec-id", exec, name], EVERYTHING.as_slice()].concat()).ok().out
}

/// What `mount | grep fuse` shows is what it was; containers have EROFS, and all of it goes with the image.
#[test]
fn containers_read_erofs_and_nothing_of_it_stays() {
    let stack = Stack::start();
    let reference = pulled(&stack);
    assert_eq!(stack.mounts().len(), 3);
    assert!(stack.mounts().iter().all(|line| line.contains(" type fuse.rawBridge ")));
    let found = above_fuse(&stack);
    assert_eq!(found.len(), 6, "{found:?}");
    assert!(found.iter().all(|line| line.contains("/.soci-snapshotter/") || !line.contains("fuse")));
    let said = stack.soci_run("soci", &[], &reference, &["cat", "/proc/mounts"]).ok().out;
    let overlay = said.lines().find(|line| line.starts_with("overlay / ")).unwrap();
    assert_eq!(overlay.matches("/erofs").count(), 3, "{overlay}");
    stack.forget();
    eventually("loop devices go", Duration::from_secs(10), || above_fuse(&stack).is_empty());
}

/// Switched off, everything is FUSE.
#[test]
fn switched_off() {
    let stack = Stack::with_config("[fuse]\nkernel = \"off\"");
    let reference = pulled(&stack);
    assert_eq!(stack.mounts().len(), 3);
    assert_eq!(above_fuse(&stack), [""; 0]);
    let said = stack.soci_run("soci", &[], &reference, &["cat", "/proc/mounts"]).ok().out;
    let overlay = said.lines().find(|line| line.starts_with("overlay / ")).unwrap();
    assert!(!overlay.contains("erofs"), "{overlay}");
}

/// The next daemon goes on with the very mounts of one that was killed, and containers with their reads.
#[test]
fn a_killed_daemon_leaves_its_mounts_to_the_next() {
    let mut stack = Stack::start();
    let reference = pulled(&stack);
    let name = start(&stack, &reference);
    let expected = read_everything(&stack, &name, "before");
    assert!(expected.lines().count() > 15, "{expected}");
    let before = devices(&stack);
    stack.restart_daemon(Signal::KILL);
    assert_eq!(devices(&stack), before);
    assert_eq!(stack.mounts().len(), 3);
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(read_everything(&stack, &name, "after"), expected);
}

/// Layers that were complete when they were mounted need no FUSE from the beginning.
#[test]
fn a_complete_layer_is_mounted_from_its_local_file_at_once() {
    let mut stack = Stack::with_config("[background_fetch]\nsilence_period_msec = 100\n");
    let reference = pulled(&stack);
    eventually("all layers are complete", Duration::from_secs(60), || {
        stack.daemon.log().matches("a complete layer needs FUSE no longer").count() == 3
    });
    stack.restart_daemon(Signal::INT);
    eventually("the layers are mounted again", Duration::from_secs(20), || {
        stack.daemon.log().matches("remote snapshots restored").count() == 1
    });
    let found = above_fuse(&stack);
    let local = |line: &&String| line.contains("/layer.erofs") && !line.contains("/.soci-snapshotter/");
    assert_eq!(found.iter().filter(local).count(), 3, "{found:?}");
    assert!(!found.iter().any(|line| line.contains("/.soci-snapshotter/")), "{found:?}");
    let said = stack.soci_run("soci", &[], &reference, &["cat", "/odd/linked2"]).ok();
    assert_eq!(said.out, "one inode, three names");
}

/// A machine that refuses what it could at the start: containers read FUSE, and each layer says so once.
#[test]
fn what_cannot_be_attached_goes_on_with_fuse_alone() {
    let mut stack = Stack::start();
    stack.daemon.stop(Signal::INT);
    stack.daemon.never_attaches();
    stack.daemon.launch();
    let reference = pulled(&stack);
    assert_eq!(stack.mounts().len(), 3);
    assert_eq!(above_fuse(&stack), [""; 0]);
    let said = stack.soci_run("soci", &[], &reference, &["cat", "/odd/linked2"]).ok();
    assert_eq!(said.out, "one inode, three names");
    let log = stack.daemon.log();
    assert_eq!(log.matches("a layer goes on with FUSE alone").count(), 3, "{log}");
    assert_eq!(log.matches("mount EROFS beside").count(), 3, "{log}");
}

/// What a container looks at: names that are there and one that is not, a directory, a link, contents. What is read here is not looked at otherwise: after
/// each reading the kernel asks FUSE for its time of access, as the mount is not marked as read-only.
fn look_at(root: &Path) -> Vec<String> {
    let open = |name: &str| rustix::fs::open(root.join(name), OFlags::RDONLY, Mode::empty()).unwrap();
    let mut seen: Vec<String> = Dir::new(open("bin"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
        .collect();
    seen.sort();
    for name in ["bin/cat-suid", "etc", "etc/group", "bin/ls"] {
        let stat = rustix::fs::lstat(root.join(name)).unwrap();
        seen.push(format!("{} {:o} {} {}", stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime));
    }
    seen.push(format!("{:?}", rustix::fs::stat(root.join("etc/shadow")).unwrap_err()));
    seen.push(format!("{:?}", rustix::fs::readlink(root.join("bin/sh"), Vec::new()).unwrap()));
    for name in ["etc/passwd", "bin/cat"] {
        let (file, mut content, mut buffer) = (open(name), Vec::new(), [0; 1 << 16]);
        loop {
            match rustix::io::read(&file, &mut buffer).unwrap() {
                0 => break,
                length => content.extend_from_slice(&buffer[..length]),
            }
        }
        seen.push(digest(&content));
    }
    seen
}

/// The kernel has it all and asks nobody again, not even whether it may open a file: the daemon is stopped, and would not answer.
fn asks_once(front_end: &str, what: fn(&Path) -> Vec<String>) {
    let stack = Stack::with_config(&format!(
        "[background_fetch]\ndisable = true\n[fuse]\nkernel = \"{front_end}\"\n"
    ));
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let fuse = stack.mounts()[0].split(' ').nth(2).map(PathBuf::from).unwrap();
    let root = if front_end == "off" { fuse } else { fuse.with_file_name("erofs") };
    assert_eq!(above_fuse(&stack).is_empty(), front_end == "off");
    let first = what(&root);
    stack.daemon.process().signal(Signal::STOP);
    let (done, again) = mpsc::channel();
    thread::spawn(move || done.send(what(&root)));
    let again = again.recv_timeout(Duration::from_secs(20));
    stack.daemon.process().signal(Signal::CONT);
    assert_eq!(again.expect("the kernel asks the daemon again"), first);
}

#[test]
fn fuse_is_asked_once() {
    asks_once("off", look_at);
}

#[test]
fn erofs_asks_fuse_once() {
    asks_once("auto", |root| {
        let mut seen = look_at(root);
        let mut value = [0; 100];
        let length =
            rustix::fs::lgetxattr(root.join("bin/cat-cap"), "security.capability", &mut value).unwrap();
        seen.push(format!("{:?}", &value[..length]));
        seen
    });
}

/// Who runs when the last byte comes needs nothing of ours from then on: the daemon is stopped, its program gone, every cache dropped.
#[test]
fn a_complete_image_needs_no_daemon() {
    needs_no_daemon(30);
}

/// Nor do those that start later, on the layers' files themselves, and the first goes on beside them.
#[test]
fn a_complete_image_needs_no_loop_device() {
    if kernel::mounts_files() {
        needs_no_daemon(0);
    }
}

fn needs_no_daemon(shared_cache_sec: u32) {
    let config = format!(
        "[background_fetch]\nsilence_period_msec = 100\n[fuse]\nshared_cache_sec = {shared_cache_sec}\n"
    );
    let mut stack = Stack::with_config(&config);
    stack.daemon.run_a_copy();
    stack.restart_daemon(Signal::INT);
    let reference = pulled(&stack);
    let name = start(&stack, &reference);
    let expected = read_everything(&stack, &name, "before");
    assert!(expected.lines().count() > 15, "{expected}");
    eventually("all layers are complete", Duration::from_secs(60), || {
        stack.daemon.log().matches("a complete layer needs FUSE no longer").count() == 3
    });
    let mut names = vec![name];
    if shared_cache_sec == 0 {
        eventually("all layers are mounted without a loop device", Duration::from_secs(60), || {
            stack.daemon.log().matches("a complete layer needs its loop device no longer").count() == 3
        });
        let mounts = above_fuse(&stack);
        assert_eq!(mounts.iter().filter(|line| line.contains("/layer.erofs on ")).count(), 3, "{mounts:?}");
        names.push(start(&stack, &reference));
    }
    stack.daemon.stop(Signal::INT);
    stack.daemon.remove_copy();
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    for name in names {
        assert_eq!(read_everything(&stack, &name, "after"), expected);
    }
}
