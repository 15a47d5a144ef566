//! The daemon is killed while something waits in the kernel for a mount that only the daemon can serve.
//!
//! What waits is a process of its own, and the test holds it there: the daemon is stopped in the moment in which that process appears, so that
//! nobody answers what it asks of the mount, and is then killed.

use std::fs::{self, File};
use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;
use soci_tests::image::digest;
use soci_tests::process::Process;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, eventually};

/// Processes at work for a daemon on one kind of errand.
fn errands(daemon: u32, kind: &str) -> Vec<u32> {
    let children = fs::read_dir(format!("/proc/{daemon}/task"))
        .into_iter()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|line| line.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.into_iter().filter(|pid| command(*pid).starts_with(&format!("kernel-errand {kind}"))).collect()
}

/// Its arguments; nothing once it has ended.
fn command(pid: u32) -> String {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split('\0').skip(1).collect::<Vec<_>>().join(" ")
}

/// Stops the daemon as soon as it has an errand of this kind under way that then does not end; returns its number. None where the log has `last`, which says that all of them have
/// ended: the last was too short.
fn hold(stack: &Stack, kind: &str, last: Option<&str>) -> Option<u32> {
    let daemon = stack.daemon.process();
    let deadline = Instant::now() + Duration::from_secs(30);
    for look in 1.. {
        assert!(Instant::now() < deadline, "no {kind} to be held");
        if look % 100 == 0 && last.is_some_and(|last| stack.daemon.log().contains(last)) {
            return None;
        }
        let Some(errand) = errands(daemon.id(), kind).first().copied() else {
            thread::sleep(Duration::from_micros(200));
            continue;
        };
        daemon.signal(Signal::STOP);
        thread::sleep(Duration::from_millis(400));
        let line = command(errand);
        if line.starts_with(&format!("kernel-errand {kind}")) {
            return Some(errand);
        }
        // It was done already.
        daemon.signal(Signal::CONT);
    }
    None
}

/// Kills and restarts the daemon, whose errand has to wait until then and to end afterwards.
fn killed_meanwhile(stack: &mut Stack, errand: u32) {
    let line = command(errand);
    stack.daemon.stop(Signal::KILL);
    assert_eq!(command(errand), line, "it did not wait for the daemon");
    stack.daemon.launch();
    eventually("what waited goes on", Duration::from_secs(20), || command(errand).is_empty());
}

/// Mount points below the daemon's root, the files that are mounted there, and those of its loop devices.
fn below(stack: &Stack) -> Vec<String> {
    let root = stack.daemon.root();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned);
    let files =
        table.lines().filter_map(|line| line.split_once(" - ")?.1.split(' ').nth(1)).map(str::to_owned);
    let devices = fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("loop/backing_file")).ok());
    mounts.chain(files).chain(devices).filter(|path| Path::new(path.trim()).starts_with(&root)).collect()
}

/// Everything goes with the image.
fn nothing_stays(stack: &mut Stack) {
    stack.forget();
    eventually("mounts and loop devices go", Duration::from_secs(20), || below(stack).is_empty());
    let snapshots = stack.daemon.root().join("snapshotter/snapshots");
    eventually("directories go", Duration::from_secs(20), || {
        fs::read_dir(&snapshots).unwrap().next().is_none()
    });
    stack.daemon.stop(Signal::INT);
    assert_eq!(stack.daemon.keepers(), Vec::<i32>::new());
}

fn whole() -> String {
    digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "")
}

/// Where the EROFS of the only layer is.
fn erofs(stack: &Stack) -> PathBuf {
    let found = below(stack).into_iter().find(|path| path.ends_with("/erofs"));
    PathBuf::from(found.expect("there is an EROFS mount"))
}

#[test]
fn while_erofs_is_being_mounted() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    let user = soci_tests::registry::user();
    let pull = stack.soci_start(&["image", "rpull", "--user", &user, &reference]);
    let errand = hold(&stack, "attach", None).unwrap();
    killed_meanwhile(&mut stack, errand);
    ended(pull);
    let said = stack.soci_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
    assert!(said.out.starts_with(&whole()), "{}", said.out);
    nothing_stays(&mut stack);
}

/// The pull of that time goes through.
fn ended(mut pull: Process) {
    let status = pull.wait(Duration::from_secs(60));
    assert!(status.is_some_and(|status| status.success()), "{}", pull.output());
}

/// The layer is complete and about to leave FUSE, under a reader.
#[test]
fn while_the_backing_file_is_being_exchanged() {
    // On a busy machine it is over before the daemon is stopped.
    assert!((0..5).any(|_| killed_in_an_exchange()), "it was too short each time");
}

/// Whether it could be killed in time.
fn killed_in_an_exchange() -> bool {
    let mut stack = Stack::with_config("[background_fetch]\nsilence_period_msec = 2000\n");
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let big = erofs(&stack).join(BIG.0.trim_start_matches('/'));
    let done = AtomicBool::new(false);
    let read = || {
        let mut buffer = vec![0; 128 << 10];
        while !done.load(Ordering::Relaxed) {
            let mut file = File::open(&big).unwrap();
            while file.read(&mut buffer).unwrap() > 0 {}
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
    };
    let held = thread::scope(|scope| {
        // So that there is always a read under way.
        let reader = scope.spawn(read);
        let held = catch_unwind(AssertUnwindSafe(|| {
            let errand = hold(&stack, "exchange", Some("a complete layer needs FUSE no longer"));
            errand.map(|errand| killed_meanwhile(&mut stack, errand)).is_some()
        }));
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        held.unwrap()
    });
    if !held {
        return false;
    }
    let local = stack.daemon.root().join("layers");
    let devices = below(&stack);
    assert!(
        devices.iter().any(|path| path.starts_with(local.to_str().unwrap())),
        "it has not left FUSE: {devices:?}"
    );
    let said = stack.soci_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
    assert!(said.out.starts_with(&whole()), "{}", said.out);
    nothing_stays(&mut stack);
    true
}

/// What the kernel reads ahead for nobody is in the way of an unmount.
#[test]
fn while_erofs_is_being_unmounted() {
    let mut stack = Stack::with_config("[background_fetch]\ndisable = true\n");
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let file = erofs(&stack).join(BIG.0.trim_start_matches('/'));
    stack.registry.hang();
    fadvise(File::open(file).unwrap(), 0, None, Advice::WillNeed).unwrap();
    let listed = stack.ctr(&["image", "ls", "-q"]).ok().out;
    stack.ctr(&[&["image", "rm"], listed.split_whitespace().collect::<Vec<_>>().as_slice()].concat()).ok();
    let errand = hold(&stack, "unmount", None).unwrap();
    stack.registry.go_on();
    killed_meanwhile(&mut stack, errand);
    nothing_stays(&mut stack);
}
