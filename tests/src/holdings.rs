//! What containerd and the daemon have of snapshots, and what there is of them on the machine: whether these agree.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::containerd::other;
use crate::process::say;
use crate::stack::Stack;

/// Longest time until containerd has found a daemon that was started again, and has been made to compare.
const AGREEMENT: Duration = Duration::from_secs(60);

/// Between two collections that are asked for.
const COLLECTION: Duration = Duration::from_secs(5);

/// What does not fit together for good, however often containerd collects its garbage. It is asked to: a snapshot that is dropped while it collects
/// waits for the next collection, and how long that takes depends on how long the last ones did (fifty times, which is minutes where they waited for
/// a daemon that was killed).
pub fn settled_disagreements(stack: &Stack) -> Vec<String> {
    let mut asked: Option<Instant> = None;
    settled(|| {
        if asked.is_none_or(|asked| asked.elapsed() > COLLECTION) {
            stack.collect_garbage();
            asked = Some(Instant::now());
        }
        disagreements(stack)
    })
}

/// The same with nobody asking for anything: where containerd does not know what the daemon has, the daemon has it look.
pub fn settled_disagreements_unasked(stack: &Stack) -> Vec<String> {
    settled(|| disagreements(stack))
}

/// What is left for good, with nobody asking for anything.
pub fn settled_remains(stack: &Stack) -> Vec<String> {
    settled(|| remains(stack))
}

fn settled(mut look: impl FnMut() -> Vec<String>) -> Vec<String> {
    let start = Instant::now();
    loop {
        let found = look();
        if found.is_empty() || start.elapsed() > AGREEMENT {
            return found;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Everything about a stack's snapshots that does not fit together; nothing if all is well.
fn disagreements(stack: &Stack) -> Vec<String> {
    let mut wrong = Vec::new();
    let known = match named_by_containerd(stack) {
        Ok(known) => known,
        Err(error) => return vec![error],
    };
    let rows = match kept_by_the_daemon(stack) {
        Ok(rows) => rows,
        Err(error) => return vec![error],
    };
    let mut kept: Vec<String> = rows.iter().map(|key| name_of(key)).collect();
    kept.sort();
    if known != kept {
        wrong.push(format!("containerd knows {known:#?}, the daemon {rows:#?}"));
    }
    let directories = directories(stack);
    if directories.len() != rows.len() || directories.iter().any(|name| name.parse::<u64>().is_err()) {
        wrong.push(format!("directories {directories:?} for {rows:#?}"));
    }
    let mut lazy = Vec::new();
    for point in mount_points(stack) {
        let owner = point.split('/').next().unwrap_or_default();
        if !directories.iter().any(|name| name == owner) {
            wrong.push(format!("{point} is mounted and has no directory"));
        }
        if point.ends_with("/fs") {
            lazy.push(owner.to_owned());
        }
    }
    // A layer that came by way of the daemon has its number in its name.
    for number in &lazy {
        if !rows.iter().any(|key| key.contains(&format!("/soci-{number}/"))) {
            wrong.push(format!("{number}/fs is mounted and is no layer of {rows:#?}"));
        }
    }
    let all = lazy.len();
    lazy.dedup();
    if lazy.len() != all {
        wrong.push("a layer is mounted twice".to_owned());
    }
    wrong.extend(files_of_layers(stack).into_iter().filter(|name| name.starts_with('.')));
    wrong
}

/// Everything that is left of a stack's snapshots.
fn remains(stack: &Stack) -> Vec<String> {
    let rows = kept_by_the_daemon(stack).unwrap_or_else(|error| vec![error]);
    rows.into_iter()
        .chain(directories(stack))
        .chain(mount_points(stack))
        .chain(files_of_layers(stack))
        .chain(loop_devices(stack))
        .collect()
}

/// `<namespace> <name>` of each snapshot that containerd has of ours, sorted.
fn named_by_containerd(stack: &Stack) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for namespace in [stack.namespace().to_owned(), other(stack.namespace())] {
        let mut command = stack.containerd.ctr_command(&[]);
        command.args(["--namespace", &namespace, "snapshot", "--snapshotter", "soci", "ls"]);
        let said = say(&mut command);
        if !said.success {
            return Err(said.err);
        }
        all.extend(first_column(&said.out).map(|key| format!("{namespace} {key}")));
    }
    all.sort();
    Ok(all)
}

/// Keys of the daemon's own rows: the service is containerd's, so its client can be asked to list them.
fn kept_by_the_daemon(stack: &Stack) -> Result<Vec<String>, String> {
    let mut command = stack.containerd.ctr_command(&[]);
    command.arg("--address").arg(stack.daemon.socket()).args(["snapshot", "--snapshotter", "soci", "ls"]);
    let said = say(&mut command);
    if said.success { Ok(first_column(&said.out).collect()) } else { Err(said.err) }
}

/// The first column of a table. A key has no blank, but for those of layers that are being unpacked, which have one.
fn first_column(table: &str) -> impl Iterator<Item = String> {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let first = words.next()?;
        let name = first.rsplit('/').next().unwrap_or_default();
        Some(if name.starts_with("extract-") {
            format!("{first} {}", words.next()?)
        } else {
            first.to_owned()
        })
    })
}

/// `<namespace> <name>` of `<namespace>/<number>/<name>`.
fn name_of(key: &str) -> String {
    let mut parts = key.splitn(3, '/');
    let namespace = parts.next().unwrap_or_default();
    format!("{namespace} {}", parts.nth(1).unwrap_or(key))
}

fn snapshots(stack: &Stack) -> std::path::PathBuf {
    stack.daemon.root().join("snapshotter/snapshots")
}

fn directories(stack: &Stack) -> Vec<String> {
    names_in(&snapshots(stack))
}

fn files_of_layers(stack: &Stack) -> Vec<String> {
    names_in(&stack.daemon.root().join("layers"))
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// What is mounted below the snapshots, by the path from there; sorted.
fn mount_points(stack: &Stack) -> Vec<String> {
    let (below, table) = (snapshots(stack), fs::read_to_string("/proc/self/mountinfo").unwrap());
    let mut points: Vec<String> = table
        .lines()
        .filter_map(|line| Path::new(line.split(' ').nth(4)?).strip_prefix(&below).ok())
        .map(|point| point.display().to_string())
        .collect();
    points.sort();
    points
}

/// Files below the daemon's root that loop devices have open.
fn loop_devices(stack: &Stack) -> Vec<String> {
    fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("loop/backing_file")).ok())
        .filter(|file| Path::new(file.trim()).starts_with(stack.daemon.root()))
        .collect()
}
