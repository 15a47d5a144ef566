//! A keeper in a thread, and daemons that come and go.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread::JoinHandle;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::client::{Client, SOCKET};
use super::wire::{self, Packet};
use super::*;

const OPTIONS: KeeperOptions = KeeperOptions {
    holder: HolderOptions { names: 100, daemons: 8, send_sec: 1, alone_sec: 10 },
    answer: Duration::from_secs(5),
    secrets_bytes: 100,
};

fn socket() -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn address(root: &Path) -> SocketAddrUnix {
    SocketAddrUnix::new(root.join(SOCKET)).unwrap()
}

fn start(root: &Path) -> JoinHandle<usize> {
    start_with(root, OPTIONS.holder)
}

fn start_with(root: &Path, options: HolderOptions) -> JoinHandle<usize> {
    let listener = socket();
    rustix::net::bind(&listener, &address(root)).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    thread::spawn(move || process::serve(listener.as_fd(), options).len())
}

fn file(text: &str) -> OwnedFd {
    let file = File::from(record::memory("test").unwrap());
    file.write_all_at(text.as_bytes(), 0).unwrap();
    file.into()
}

fn text(descriptor: &OwnedFd) -> String {
    let mut text = String::new();
    File::from(descriptor.try_clone().unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn name(number: u64) -> Name {
    Name::numbered(MOUNT, number)
}

#[test]
fn a_successor_finds_what_was_held() {
    let root = tempfile::tempdir().unwrap();
    let keeper = start(root.path());
    let mut first = Client::find(root.path(), OPTIONS).unwrap();
    for number in 0..40 {
        first.hold(name(number), vec![file(&format!("a{number}")), file(&format!("b{number}"))]).unwrap();
    }
    first.hold(name(7), vec![file("other")]).unwrap();
    first.release(&name(8)).unwrap();
    first.release(&name(8)).unwrap();
    drop(first);

    let mut second = Client::find(root.path(), OPTIONS).unwrap();
    let held = second.held();
    assert_eq!(held.len(), 39);
    assert!(held.keys().is_sorted());
    let texts = |number: u64| held[&name(number)].iter().map(text).collect::<Vec<_>>();
    assert_eq!(texts(39), ["a39", "b39"]);
    assert_eq!(texts(7), ["other"]);
    second.end().unwrap();
    assert_eq!(keeper.join().unwrap(), 1);
    // What it was told is the last word.
    assert!(!second.again().unwrap());
}

#[test]
fn it_ends_with_the_last_thing_and_the_last_daemon() {
    let root = tempfile::tempdir().unwrap();
    let keeper = start(root.path());
    let mut daemon = Client::find(root.path(), OPTIONS).unwrap();
    daemon.hold(name(1), vec![file("x")]).unwrap();
    drop(daemon);
    let mut daemon = Client::find(root.path(), OPTIONS).unwrap();
    assert!(!keeper.is_finished());
    daemon.release(&name(1)).unwrap();
    assert!(!keeper.is_finished(), "a daemon is connected");
    drop(daemon);
    assert_eq!(keeper.join().unwrap(), 0);
}

#[test]
fn it_holds_no_more_than_it_was_told_to() {
    let root = tempfile::tempdir().unwrap();
    let keeper = start_with(root.path(), HolderOptions { names: 2, ..OPTIONS.holder });
    let mut daemon = Client::find(root.path(), OPTIONS).unwrap();
    daemon.hold(name(1), vec![file("a")]).unwrap();
    daemon.hold(name(2), vec![file("b")]).unwrap();
    assert!(matches!(daemon.hold(name(3), vec![file("c")]), Err(HoldError::Full)));
    daemon.hold(name(2), vec![file("in its place")]).unwrap();
    daemon.release(&name(1)).unwrap();
    daemon.hold(name(3), vec![file("c")]).unwrap();
    daemon.end().unwrap();
    keeper.join().unwrap();
}

/// The process has them from its command line alone.
#[test]
fn its_bounds_come_back() {
    use crate::args::{Args, Command};
    let options = HolderOptions { names: 7, daemons: 3, send_sec: 5, alone_sec: 11 };
    let line = ["soci-snapshotter-grpc", client::COMMAND].map(String::from).into_iter();
    let line = line.chain(options.arguments()).map(std::ffi::OsString::from);
    assert_eq!(Args::parse_from_command_line(line).unwrap().command, Some(Command::KeepDescriptors(options)));
}

/// Whoever says nonsense is hung up on; the others go on.
#[test]
fn nonsense_costs_the_connection() {
    let root = tempfile::tempdir().unwrap();
    let keeper = start(root.path());
    let mut daemon = Client::find(root.path(), OPTIONS).unwrap();
    daemon.hold(name(1), vec![file("x")]).unwrap();
    for bytes in [&b"\xff"[..], b"\x02../escape", &[3; 200], b"\x83soci-mount-1"] {
        let other = socket();
        rustix::net::connect(&other, &address(root.path())).unwrap();
        rustix::io::write(&other, bytes).unwrap();
        assert!(wire::receive(&other).unwrap_or(None).is_none(), "{bytes:?}");
    }
    let other = socket();
    rustix::net::connect(&other, &address(root.path())).unwrap();
    for packet in [Packet::Hello(wire::VERSION + 1), Packet::Hold(name(2))] {
        wire::send(&other, &packet, &[]).unwrap();
        assert_eq!(wire::receive(&other).unwrap().unwrap().0, Packet::Refused);
    }
    // More connections than it takes wait; those that it has are served.
    let crowd: Vec<OwnedFd> = (0..7)
        .map(|_| {
            let other = socket();
            rustix::net::connect(&other, &address(root.path())).unwrap();
            other
        })
        .collect();
    daemon.hold(name(3), vec![file("y")]).unwrap();
    drop((crowd, other));
    assert_eq!(Client::find(root.path(), OPTIONS).unwrap().held().len(), 2);
    daemon.end().unwrap();
    keeper.join().unwrap();
}

#[test]
fn a_dead_keeper_is_not_found() {
    let root = tempfile::tempdir().unwrap();
    assert!(Client::find(root.path(), OPTIONS).is_none());
    let listener = socket();
    rustix::net::bind(&listener, &address(root.path())).unwrap();
    drop(listener);
    assert!(Client::find(root.path(), OPTIONS).is_none());
}

/// A path longer than an address may be.
#[test]
fn a_deep_root() {
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    // Bound by its short name, found by its long one.
    let short = root.path().join("s");
    std::os::unix::fs::symlink(&deep, &short).unwrap();
    let keeper = start(&short);
    drop(Client::find(&deep, OPTIONS).unwrap());
    assert_eq!(keeper.join().unwrap(), 0);
}

#[test]
fn names_of_others_are_left_alone() {
    assert!(Keeper::owns("soci-mount-0000000000000001"));
    assert!(Keeper::owns("soci-secrets-000000000000000a"));
    for other in ["soci-snapshotter.socket", "soci-mount-", "soci-mount-x", "connection", ""] {
        assert!(!Keeper::owns(other), "{other}");
    }
}

/// What is nonsense is let go; what a later version wrote is for that version.
#[test]
fn a_mount_of_a_later_version_stays_kept() {
    let root = tempfile::tempdir().unwrap();
    let holder = start(root.path());
    let mut first = Client::find(root.path(), OPTIONS).unwrap();
    first.hold(name(1), vec![file("nonsense\n")]).unwrap();
    first.hold(name(2), vec![file("{\"mount\":{\"format\":2,\"news\":true}}\n")]).unwrap();
    let (keeper, kept) = Keeper::open(root.path(), Vec::new(), OPTIONS);
    assert_eq!((kept.later, kept.mounts.len()), (1, 0));
    let other = Client::find(root.path(), OPTIONS).unwrap();
    assert_eq!(other.held().keys().collect::<Vec<_>>(), [&name(2)]);
    keeper.end();
    holder.join().unwrap();
}
