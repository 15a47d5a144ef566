//! The daemon dies between any two steps of what it does with snapshots, once at each. Afterwards the same is asked again and works, containerd
//! and the daemon agree on the snapshots, and nothing is left of anything else.
//!
//! The places are in the daemon's program (`failpoint`), in builds for tests only.

use std::time::Duration;

use rustix::process::Signal;
use soci_tests::forgery::publish_forged;
use soci_tests::holdings::{settled_disagreements, settled_disagreements_unasked, settled_remains};
use soci_tests::image::digest;
use soci_tests::process::Process;
use soci_tests::registry::user;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, container_name, eventually};

/// Kills the daemon at `place` during what `ask` starts, which may fail then, in one line if it is ours.
fn dies_at(stack: &mut Stack, place: &str, ask: impl FnOnce(&Stack) -> Process) {
    stack.daemon.relaunch_to_die_at(place);
    found_again(stack);
    let mut asked = ask(stack);
    stack.daemon.relaunch_after_death();
    let status = asked.wait(Duration::from_secs(60)).expect("who asked does not wait for ever");
    let output = asked.output();
    println!("{place}: {status}");
    let errors = output.lines().filter(|line| line.starts_with("soci: ")).count();
    let ours = asked.name() == "soci";
    assert!(!ours || errors == usize::from(!status.success()), "{place}: {status}\n{output}");
}

/// containerd has pauses of some seconds between two attempts to find a daemon; only `soci` waits for that.
fn found_again(stack: &Stack) {
    eventually("containerd reaches the daemon", Duration::from_secs(20), || {
        stack.ctr(&["snapshot", "--snapshotter", "soci", "ls"]).success
    });
}

/// They agree, and the image is what it should be.
fn all_is_well(stack: &Stack, reference: &str, place: &str) {
    let wanted = digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
    let said = stack.soci_run("soci", &[], reference, &["sha256sum", BIG.0]).ok();
    assert!(said.out.starts_with(&wanted), "{place}: {}", said.out);
    agree(stack, place);
}

#[track_caller]
fn agree(stack: &Stack, place: &str) {
    assert_eq!(settled_disagreements(stack), Vec::<String>::new(), "{place}");
}

#[track_caller]
fn nothing_stays(stack: &Stack, place: &str) {
    assert_eq!(settled_remains(stack), Vec::<String>::new(), "{place}");
}

/// One image, pulled with the daemon dying at each of these places.
fn pulls(
    stack: &mut Stack,
    places: &[&str],
    ask: impl Fn(&Stack) -> Process,
    again: impl Fn(&Stack),
    reference: &str,
) {
    for place in places {
        dies_at(stack, place, &ask);
        found_again(stack);
        again(stack);
        all_is_well(stack, reference, place);
        stack.forget();
        nothing_stays(stack, place);
    }
}

#[test]
fn a_lazy_layer_comes() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    let places = [
        "prepare.staged",
        "prepare.placed",
        "prepare.recorded",
        "prepare.resolved",
        "mount.held",
        "mount.fuse-mounted",
        "mount.fuse-served",
        "prepare.mounted",
        "commit.written",
        "prepare.committed",
    ];
    let ask = |stack: &Stack| stack.soci_start(&["image", "rpull", "--user", &user(), &reference]);
    pulls(&mut stack, &places, ask, |stack| drop(stack.rpull(&[], &reference).ok()), &reference);
}

/// The index has a zTOC that is of no use.
#[test]
fn a_layer_is_unpacked_by_the_daemon() {
    let mut stack = Stack::start();
    let (_, reference, index) = publish_forged(&stack, |ztoc| ztoc.truncate(ztoc.len() / 2));
    stack.forget();
    let options = ["--soci-index-digest", &index];
    let ask = |stack: &Stack| {
        stack.soci_start(&[&["image", "rpull", "--user", &user()], &options[..], &[&reference]].concat())
    };
    let places = ["prepare.applied", "prepare.unpacked", "prepare.committed-local"];
    pulls(&mut stack, &places, ask, |stack| drop(stack.rpull(&options, &reference).ok()), &reference);
}

/// The daemon finds it too small, and containerd unpacks.
#[test]
fn a_layer_is_left_to_containerd() {
    let mut stack = Stack::with_config("[snapshotter]\nmin_layer_size = 1000000000\n");
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    let ask = |stack: &Stack| stack.soci_start(&["image", "rpull", "--user", &user(), &reference]);
    let places = ["prepare.deferred", "commit.measured", "commit.written", "commit.recorded"];
    pulls(&mut stack, &places, ask, |stack| drop(stack.rpull(&[], &reference).ok()), &reference);
}

#[test]
fn the_daemon_starts_for_the_first_time() {
    let mut stack = Stack::start();
    stack.daemon.stop(Signal::INT);
    std::fs::remove_dir_all(stack.daemon.root()).unwrap();
    stack.daemon.relaunch_to_die_at("store.made");
    stack.daemon.relaunch_after_death();
    // A list of nothing does not need the daemon.
    eventually("containerd reaches the daemon", Duration::from_secs(20), || {
        stack.ctr(&["snapshot", "--snapshotter", "soci", "prepare", "first"]).success
    });
    agree(&stack, "store.made");
}

#[test]
fn a_container_starts() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    for place in ["prepare.staged", "prepare.placed", "prepare.recorded"] {
        dies_at(&mut stack, place, |stack| {
            stack.soci_start(&[
                "run",
                "--rm",
                "--snapshotter",
                "soci",
                &reference,
                &container_name(),
                "echo",
                "up",
            ])
        });
        all_is_well(&stack, &reference, place);
    }
    stack.forget();
    nothing_stays(&stack, "after all");
}

#[test]
fn an_image_goes() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    for place in [
        "remove.written",
        "remove.recorded",
        "clean.found",
        "clean.erofs-unmounted",
        "clean.unmounted",
        "clean.removed",
    ] {
        stack.rpull(&[], &reference).ok();
        all_is_well(&stack, &reference, place);
        dies_at(&mut stack, place, |stack| stack.ctr_start(&["image", "rm", "--sync", &reference]));
        nothing_stays(&stack, place);
        stack.forget();
    }
}

/// What containerd never got an answer about goes by itself.
#[test]
fn what_nobody_was_told_of_goes() {
    let mut stack = Stack::start();
    // containerd asks the daemon for a list only where it has something of it.
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    for place in ["prepare.staged", "prepare.placed", "prepare.recorded"] {
        dies_at(&mut stack, place, |stack| {
            stack.ctr_start(&["snapshot", "--snapshotter", "soci", "prepare", "unheard"])
        });
        assert_eq!(settled_disagreements_unasked(&stack), Vec::<String>::new(), "{place}");
    }
}

/// What is removed while no daemon is there is removed when there is one, without anything else being removed.
#[test]
fn what_containerd_dropped_while_the_daemon_was_away_goes() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    all_is_well(&stack, &reference, "before");
    stack.daemon.stop(Signal::KILL);
    stack.ctr(&["image", "rm", &reference]).ok();
    stack.collect_garbage();
    stack.daemon.launch();
    nothing_stays(&stack, "after");
}
