//! Images come and go while containerd collects garbage all the time and the registry hangs at random.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use soci_tests::process::{Said, say};
use soci_tests::registry::user;
use soci_tests::rootfs;
use soci_tests::stack::{Stack, container_name};

/// No command may take longer, whatever the registry does.
const COMMAND: Duration = Duration::from_secs(120);
/// No collection may wait longer: the deadlines of a Prepare (5 s for the index, 30 s for the mount), and what a loaded machine adds.
const COLLECTION: Duration = Duration::from_secs(60);

/// Runs a command that has to end in time, well or not.
#[track_caller]
fn ends(command: &Command) -> Said {
    let mut bounded = Command::new("timeout");
    bounded.args(["--kill-after", "5", &COMMAND.as_secs().to_string()]).arg(command.get_program());
    bounded.args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            bounded.env(name, value);
        }
    }
    let said = say(&mut bounded);
    assert!(!matches!(said.code, Some(124 | 137)), "it hangs: {}\n{}", said.line, said.err);
    said
}

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// `SOCI_TEST_STRESS_SECONDS` says how long; minutes find more than the seconds that every run of the tests has time for.
#[test]
fn garbage_collection_runs_freely() {
    let seconds = std::env::var("SOCI_TEST_STRESS_SECONDS").map_or(25, |text| text.parse().unwrap());
    let seed = std::env::var("SOCI_TEST_SEED").map_or_else(
        |_| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        |text| text.parse().unwrap(),
    );
    println!("SOCI_TEST_SEED={seed}");
    let stack = Stack::start();
    let small = rootfs::small(stack.folder());
    let references: Vec<String> =
        (1..=3).map(|tag| stack.publish(&small, &format!("small:{tag}"), 64 * 1024).0).collect();
    let plain = stack.push(&small, "plain:1");
    stack.forget();

    let end = Instant::now() + Duration::from_secs(seconds);
    let (pulled, failed, collections, longest) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = references
            .iter()
            .chain([&plain])
            .map(|reference| {
                let (stack, pulled, failed) = (&stack, &pulled, &failed);
                scope.spawn(move || {
                    while Instant::now() < end {
                        let pull = stack.soci_command(&["image", "rpull", "--user", &user(), reference]);
                        if ends(&pull).success {
                            pulled.fetch_add(1, Ordering::Relaxed);
                            let name = container_name();
                            let run =
                                ["run", "--rm", "--snapshotter", "soci", reference, &name, "echo", "up"];
                            let said = ends(&stack.soci_command(&run));
                            assert!(!said.success || said.out == "up\n", "{said:?}");
                        } else {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        ends(&stack.soci_command(&["image", "rm", reference]));
                    }
                })
            })
            .collect();
        let (stack, stop) = (&stack, &stop);
        let collector = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                stack.collect_garbage();
                let took = start.elapsed();
                assert!(took < COLLECTION, "a collection took {took:?}");
                collections.fetch_add(1, Ordering::Relaxed);
                longest.fetch_max(took.as_millis() as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_secs(1).saturating_sub(took));
            }
        });
        let trouble = scope.spawn(|| {
            let mut dice = Dice(seed | 1);
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(500 + dice.below(2500)));
                stack.registry.hang();
                // Sometimes longer than the daemon looks for an index.
                let pause = if dice.below(5) == 0 { 8_000 } else { dice.below(2_000) };
                std::thread::sleep(Duration::from_millis(pause));
                stack.registry.go_on();
            }
        });
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let others = [collector.join(), trouble.join()];
        stack.registry.go_on();
        for result in ended.into_iter().chain(others) {
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        }
    });
    println!(
        "{} pulls, {} failed; {} collections, the longest took {} ms",
        pulled.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed),
        collections.load(Ordering::Relaxed),
        longest.load(Ordering::Relaxed)
    );
    assert!(pulled.load(Ordering::Relaxed) > 0, "not one pull went through");

    // Nothing stuck, nothing remembered as a verdict, nothing left.
    stack.forget();
    stack.rpull(&[], &references[0]).ok();
    assert_eq!(stack.mounts().len(), 1);
    assert_eq!(stack.soci_run("soci", &[], &references[0], &["echo", "after"]).ok().out, "after\n");
    stack.forget();
}
