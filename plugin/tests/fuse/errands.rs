//! Processes for errands that do not do as they should.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use soci_snapshotter_grpc::kernel::errand::ErrandOptions;

use crate::kernel::left_below;
use crate::layers::{Fixture, attach, attach_within, kernel_by};

/// Nothing here takes so long.
const HANGS: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(300);
const PROGRAM: &str = env!("CARGO_BIN_EXE_soci-snapshotter-grpc");

/// A program that does this in the place of ours, after it has noted its number.
fn program(scratch: &Path, does: &str) -> PathBuf {
    let (path, numbers) = (scratch.join("program"), scratch.join("numbers"));
    fs::write(&path, format!("#!/bin/sh\necho $$ >> '{}'\n{does}\n", numbers.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn numbers(scratch: &Path) -> Vec<i32> {
    let text = fs::read_to_string(scratch.join("numbers")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// A zombie is one.
fn exists(number: i32) -> bool {
    Path::new(&format!("/proc/{number}")).exists()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANGS;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_that_does_not_end_is_not_waited_for_and_has_its_place() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let (mounted, scratch) = (fixture.mount(), fixture.scratch("errands"));
    let options = ErrandOptions { at_once: 2, unmount: SOON, ..ErrandOptions::default() };
    let kernel = kernel_by(&fixture.scratch("probe"), options, &program(&scratch, "exec sleep 600"));
    for _ in 0..4 {
        let error = attach_within(&kernel, &fixture.layer, &mounted.at, SOON).unwrap_err();
        assert_eq!(error.source.kind(), std::io::ErrorKind::TimedOut);
    }
    // Two of the four never came to it.
    let stuck = numbers(&scratch);
    assert_eq!(stuck.len(), 2);
    assert!(stuck.iter().all(|number| exists(*number)));
    for number in &stuck {
        rustix::process::kill_process(Pid::from_raw(*number).unwrap(), Signal::KILL).unwrap();
    }
    eventually("they are reaped", || !stuck.iter().any(|number| exists(*number)));
    // And have left their places.
    let error = attach_within(&kernel, &fixture.layer, &mounted.at, SOON).unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::TimedOut);
    let last = *numbers(&scratch).last().unwrap();
    assert_eq!(numbers(&scratch).len(), 3);
    rustix::process::kill_process(Pid::from_raw(last).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn one_that_talks_nonsense_is_reaped() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let (mounted, scratch) = (fixture.mount(), fixture.scratch("errands"));
    let program = program(&scratch, "echo nonsense; exec sleep 0.2");
    let kernel = kernel_by(&fixture.scratch("probe"), ErrandOptions::default(), &program);
    assert!(attach(&kernel, &fixture.layer, &mounted.at).is_err());
    let numbers = numbers(&scratch);
    eventually("it is reaped", || !exists(numbers[0]));
}

#[test]
fn what_is_attached_too_late_is_unmounted_again() {
    let fixture = Fixture::golden("gnu-gzip6.tgz");
    let (mounted, scratch) = (fixture.mount(), fixture.scratch("errands"));
    let (go, directory) = (scratch.join("go"), fixture.scratch("snapshots"));
    let does = format!("while ! [ -e '{}' ]; do sleep 0.01; done\nexec '{PROGRAM}' \"$@\"", go.display());
    let kernel = kernel_by(&fixture.scratch("probe"), ErrandOptions::default(), &program(&scratch, &does));
    let error = attach_within(&kernel, &fixture.layer, &mounted.at, SOON).unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::TimedOut);
    fs::write(go, "").unwrap();
    eventually("it unmounts", || numbers(&scratch).len() == 2);
    eventually("FUSE alone is left", || left_below(&directory).len() == 1);
}
