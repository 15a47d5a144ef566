//! The daemon is killed at random moments of a pull and of the fetching in the background.
//!
//! `SOCI_TEST_ROUNDS` says how often (default 6), `SOCI_TEST_SEED` repeats the moments.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use soci_tests::holdings::{settled_disagreements, settled_remains};
use soci_tests::image::{Packing, digest};
use soci_tests::registry::user;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, eventually};

fn rounds() -> u32 {
    std::env::var("SOCI_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// Numbers that are the same for the same seed, which is printed.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let seed = std::env::var("SOCI_TEST_SEED").map_or_else(
            |_| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
            |text| text.parse().unwrap(),
        );
        println!("SOCI_TEST_SEED={seed}");
        Dice(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// Some layers are lazy, the others downloaded and unpacked: there is much to be interrupted.
#[test]
fn during_a_pull() {
    let mut dice = Dice::new();
    let mut stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let reference = stack.push(&image, "varied:1");
    let biggest = image.layers.iter().map(|layer| layer.size).max().unwrap();
    stack.index(&reference, &["--min-layer-size", &biggest.to_string(), "--span-size", "65536"]);
    stack.forget();
    let start = Instant::now();
    stack.rpull(&[], &reference).ok();
    let undisturbed = start.elapsed();
    stack.forget();
    let (mut went_through, mut failed) = (0, 0);
    for round in 0..rounds() {
        let mut pull = stack.soci_start(&["image", "rpull", "--user", &user(), &reference]);
        thread::sleep(Duration::from_millis(dice.below(undisturbed.as_millis() as u64)));
        stack.daemon.stop(Signal::KILL);
        thread::sleep(Duration::from_millis(dice.below(300)));
        stack.daemon.launch();
        let status = pull.wait(Duration::from_secs(60)).expect("a pull does not wait for ever");
        let output = pull.output();
        let errors = output.lines().filter(|line| line.starts_with("soci: ")).count();
        assert_eq!(errors, usize::from(!status.success()), "round {round}: {output}");
        if status.success() {
            went_through += 1;
        } else {
            failed += 1;
            println!("round {round}: {}", output.lines().last().unwrap_or_default());
            stack.rpull(&[], &reference).ok();
        }
        let said =
            stack.soci_run("soci", &[], &reference, &["cat", "/odd/linked2", "/lower/opaque/new"]).ok();
        assert_eq!(said.out, "one inode, three namesupper", "round {round}");
        assert_eq!(settled_disagreements(&stack), Vec::<String>::new(), "round {round}");
        stack.forget();
        assert_eq!(settled_remains(&stack), Vec::<String>::new(), "round {round}");
    }
    println!("{went_through} pulls went through, {failed} failed");
}

/// State and bytes that are here of the only layer; none while containerd has not found the daemon again.
fn status(stack: &Stack) -> Option<(String, u64)> {
    let said = stack.soci(&["image", "status", "--json"]);
    let layers: Value = serde_json::from_str(&said.out).ok()?;
    let layer = layers.get(0)?;
    Some((layer["state"].as_str()?.to_owned(), layer["present"].as_u64()?))
}

#[test]
fn during_the_fill() {
    /// A range of the background is no longer than what it may fetch in a second.
    const RATE: u64 = 500_000;
    let mut dice = Dice::new();
    let mut stack = Stack::with_config(&format!(
        "[background_fetch]\nsilence_period_msec = 100\nbytes_per_sec = \"{RATE}b\"\n"
    ));
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    let blob = &image.layers[0];
    stack.rpull(&[], &reference).ok();
    let (mut here, mut interrupted) = (0, 0);
    let kills = rounds().min((blob.size / RATE) as u32).max(2);
    for kill in 0..kills {
        let wanted = here + 1;
        eventually("more of it comes", Duration::from_secs(60), || {
            status(&stack).is_some_and(|(state, present)| present >= wanted || state == "complete")
        });
        thread::sleep(Duration::from_millis(dice.below(1000)));
        let Some((state, before)) = status(&stack) else { panic!("the daemon says nothing") };
        interrupted += u32::from(state == "incomplete");
        stack.restart_daemon(Signal::KILL);
        eventually("the layer is there again", Duration::from_secs(20), || status(&stack).is_some());
        here = status(&stack).unwrap().1;
        assert!(here >= before, "kill {kill}: {here} of {before} bytes are left");
    }
    eventually("it is complete", Duration::from_secs(120), || {
        status(&stack).is_some_and(|(state, _)| state == "complete")
    });
    assert!(interrupted > 1, "it came faster than it may, so nothing is proved");
    // What was on its way at a kill, with the spans at its ends; the archive's end and a byte more, to see where the layer is, by each daemon.
    let allowed = blob.size + u64::from(kills) * (RATE + 2 * 64 * 1024) + 256 * 1024;
    let downloaded = stack.registry.downloaded_of(&blob.digest);
    println!("{kills} kills: {downloaded} bytes of {} were fetched, {allowed} may be", blob.size);
    assert!(downloaded <= allowed);
    let said = stack.soci_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
    assert!(said.out.starts_with(&digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "")));
    assert_eq!(stack.registry.downloaded_of(&blob.digest), downloaded, "all was here");
}
