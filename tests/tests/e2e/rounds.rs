//! Many images come and go, and the daemon is what it was.

use std::fs;
use std::time::{Duration, Instant};

use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, eventually};

/// What the daemon holds.
#[derive(Clone, Copy, Debug)]
struct Holdings {
    descriptors: usize,
    threads: u64,
    mounts: usize,
    /// KiB of memory that is not a file's.
    anonymous: u64,
}

/// Longest time until what is idle has gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Allocators keep a little of what they had: this much is no leak, KiB.
const SLACK: u64 = 8 << 10;

impl Holdings {
    fn of(stack: &Stack) -> Holdings {
        let process = format!("/proc/{}", stack.daemon.process().id());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = stack.daemon.root().display().to_string();
        Holdings {
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
            threads: field("Threads:"),
            mounts: table.lines().filter(|line| line.contains(&below)).count(),
            anonymous: field("RssAnon:"),
        }
    }

    fn no_more_than(self, other: Holdings) -> bool {
        self.descriptors <= other.descriptors
            && self.threads <= other.threads
            && self.mounts <= other.mounts
            && self.anonymous <= other.anonymous + SLACK
    }
}

/// What the daemon has open, and the names of its threads, for a message.
fn descriptors(stack: &Stack) -> String {
    let process = format!("/proc/{}", stack.daemon.process().id());
    let open = fs::read_dir(format!("{process}/fd")).unwrap();
    let open = open.filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.display().to_string()));
    let threads = fs::read_dir(format!("{process}/task")).unwrap();
    let threads = threads.filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok());
    open.chain(threads.map(|name| name.trim().to_owned())).collect::<Vec<_>>().join("\n")
}

fn round(stack: &Stack, reference: &str) {
    stack.rpull(&[], reference).ok();
    stack.soci_run("soci", &[], reference, &["sha256sum", BIG.0]).ok();
    stack.soci(&["image", "rm", "--sync", reference]).ok();
    eventually("it is unmounted", Duration::from_secs(20), || stack.mounts().is_empty());
}

/// `SOCI_TEST_ROUNDS` says how many; 200 find slower leaks than the few that every run of the tests has time for.
#[test]
fn nothing_stays_of_images_that_went() {
    let rounds = std::env::var("SOCI_TEST_ROUNDS").map_or(6, |text| text.parse().unwrap());
    // How many connections are idle at a look is chance: they go long before the last.
    let stack = Stack::with_config("[deadlines]\nidle_connection_sec = 2\n");
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    for _ in 0..3 {
        round(&stack, &reference);
    }
    // Idle threads and connections go after a while; the first look is taken before, so that it is the larger one.
    let before = Holdings::of(&stack);
    for _ in 0..rounds {
        round(&stack, &reference);
    }
    println!("{rounds} rounds: {before:?} before, {:?} after", Holdings::of(&stack));
    let start = Instant::now();
    loop {
        let now = Holdings::of(&stack);
        if now.no_more_than(before) {
            return println!("and a moment later: {now:?}");
        }
        assert!(
            start.elapsed() < PATIENCE,
            "the daemon is not what it was: {now:?}\n{}",
            descriptors(&stack)
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
