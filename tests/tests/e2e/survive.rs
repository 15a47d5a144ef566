//! The daemon dies, is restarted and upgraded, and whoever reads notices nothing.
//!
//! On kernels before 6.9 a system call that was under way when a daemon was killed may end with one certain error, one for each that may be under way at a
//! kill; there are never wrong bytes, and nothing else fails.
//!
//! `SOCI_TEST_ROUNDS` says how often it is killed (default 5). `scripts/test.sh long` has it killed 1 000 times with each front end.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;
use soci_tests::image::{Image, ImageBuilder, Packing, digest};
use soci_tests::kernel;
use soci_tests::process::{Process, say};
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Client, Stack, container_name, eventually};

const FILES: usize = 12;
/// Processes of [`SCRIPT`] that read.
const READERS: usize = 6;

/// Programs, a few files of noise, their sums, and the script of a container that reads them.
fn busy(folder: &Path) -> Image {
    let place = folder.join("busy");
    let root = rootfs::programs(&place);
    let mut sums = String::new();
    for number in 0..FILES {
        let bytes = rootfs::noise(100 + number as u64, 700_001 + number * 4096);
        let name = format!("data/{number}.bin");
        sums.push_str(&format!("{} /{name}\n", digest(&bytes).replace("sha256:", "")));
        fs::write(root.join(name), bytes).unwrap();
    }
    fs::write(root.join("data/sums"), sums).unwrap();
    fs::write(root.join("data/busy"), SCRIPT).unwrap();
    ImageBuilder::new(&place).layer(&root, Packing::Gzip).finish("docker.io/library/busy:1", rootfs::config())
}

/// Four readers, two of them past the page cache, a `find`, and one that has a program started, with its libraries; what goes wrong is printed, and how much was done.
const SCRIPT: &str = r#"
reader() {
    count=0
    while [ ! -e /run/stop ]; do
        while read want file; do
            got=$(busybox dd if=$file bs=128k $2 2>/run/dd.$1 | sha256sum)
            [ "${got%% *}" = $want ] || echo "BAD $file $got $(cat /run/dd.$1)"
            count=$((count+1))
        done </data/sums
    done
    echo "READS $count"
}
finder() {
    count=0
    wanted=$(busybox find /bin /data /etc -user 0 | wc -l)
    while [ ! -e /run/stop ]; do
        found=$(busybox find /bin /data /etc -user 0 2>/run/find | wc -l)
        [ $found = $wanted ] && [ ! -s /run/find ] || echo "BAD find $found of $wanted" $(cat /run/find)
        count=$((count+1))
    done
    echo "FINDS $count"
}
starter() {
    count=0
    wanted=$(busybox cat /etc/passwd)
    while [ ! -e /run/stop ]; do
        found=$(/bin/cat /etc/passwd 2>&1)
        [ "$found" = "$wanted" ] || echo "BAD start" $found
        count=$((count+1))
    done
    echo "STARTS $count"
}
# EROFS has no direct I/O for files whose end is not a block's.
direct=iflag=direct
busybox dd if=/data/1.bin of=/dev/null bs=128k $direct 2>/run/dd || direct=
reader 1 $direct & reader 2 $direct & reader 3 & reader 4 & finder & starter &
echo BUSY
wait
echo END
"#;

/// A container that runs [`SCRIPT`].
struct Busy {
    process: Process,
    name: String,
}

impl Busy {
    fn start(stack: &Stack, reference: &str) -> Busy {
        let name = container_name();
        let mut process =
            stack.soci_start(&["run", "--rm", "--snapshotter", "soci", reference, &name, "sh", "/data/busy"]);
        let output = process.output_file();
        process.wait_until("the readers run", Duration::from_secs(60), || {
            fs::read_to_string(&output).unwrap_or_default().contains("BUSY")
        });
        Busy { process, name }
    }

    /// Ends it and returns how many files were read, how often `find` ran, and how many programs were started, while so many daemons were killed.
    fn end(mut self, stack: &Stack, killed: u32) -> [u64; 3] {
        stack.ctr(&["task", "exec", "--exec-id", "stop", &self.name, "busybox", "touch", "/run/stop"]).ok();
        assert!(self.process.wait(Duration::from_secs(120)).is_some(), "the readers do not end");
        let output = self.process.output();
        let count = |what: &str| {
            output.lines().filter_map(|line| line.strip_prefix(what)?.trim().parse::<u64>().ok()).sum()
        };
        let bad: Vec<&str> = output.lines().filter(|line| line.contains("BAD")).collect();
        // Each has one system call under way.
        let may_fail = if kernel::resends() { 0 } else { killed as usize * READERS };
        assert!(bad.len() <= may_fail && bad.iter().all(|line| line.contains(kernel::REFUSED)), "{output}");
        assert!(output.contains("END"), "{output}");
        ["READS", "FINDS", "STARTS"].map(count)
    }
}

/// Reads files of a mounted image past the page cache until it is told to end, and times every single read.
#[derive(Debug, Default)]
struct Stalls {
    end: AtomicBool,
    reads: AtomicU64,
    /// Milliseconds.
    longest: AtomicU64,
}

impl Stalls {
    fn watch(&self, root: &Path) {
        let mut buffer = vec![0; 1 << 20];
        while !self.end.load(Ordering::Relaxed) {
            for number in 0..FILES {
                let mut file = File::open(root.join(format!("data/{number}.bin"))).unwrap();
                fadvise(&file, 0, None, Advice::DontNeed).unwrap();
                loop {
                    let began = Instant::now();
                    let length = match file.read(&mut buffer[..128 << 10]) {
                        Err(error) if kernel::may_refuse(&error) => continue,
                        length => length.unwrap(),
                    };
                    let took = began.elapsed().as_millis() as u64;
                    self.longest.fetch_max(took, Ordering::Relaxed);
                    self.reads.fetch_add(1, Ordering::Relaxed);
                    if length == 0 {
                        break;
                    }
                }
            }
        }
    }
}

/// Ends a watch when it is dropped.
struct EndOf<'a>(&'a Stalls);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.end.store(true, Ordering::Relaxed);
    }
}

/// What the kernel remembers of files, so that it has to ask again.
pub(super) fn drop_caches() {
    File::options().write(true).open("/proc/sys/vm/drop_caches").unwrap().write_all(b"3").unwrap();
}

fn rounds(default: u32) -> u32 {
    std::env::var("SOCI_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Starts containers, one after the other, until it is told to end; each has to do its work, whatever becomes of the daemon meanwhile.
fn start_containers(client: &Client, reference: &str, wanted: &str, end: &AtomicBool) -> u64 {
    let mut count = 0;
    while !end.load(Ordering::Relaxed) {
        let run = [
            "run",
            "--rm",
            "--snapshotter",
            "soci",
            reference,
            &container_name(),
            "sha256sum",
            "/data/0.bin",
        ];
        let said = say(&mut client.soci_command(&run));
        if !kernel::resends() && !said.success && said.err.contains(kernel::REFUSED) {
            continue;
        }
        let said = said.ok();
        assert!(said.out.starts_with(wanted) && said.err.is_empty(), "container {count}: {said:?}");
        count += 1;
    }
    count
}

/// Kills the daemon again and again under readers, a `find`, and containers that start all the time.
fn killed_under_readers(front_end: &str, rounds: u32, signals: &[Signal]) {
    let mut stack = Stack::with_config(&format!("[fuse]\nkernel = \"{front_end}\"\n"));
    let image = busy(stack.folder());
    let (reference, _) = stack.publish(&image, "busy:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let blob = image.layers[0].digest.clone();
    let container = Busy::start(&stack, &reference);
    // Everything that is read has come once, and one file has not: a layer that is complete needs no daemon.
    let all = ["sh", "-c", "cat /data/[0-9]*.bin /data/sums /bin/* | wc -c"];
    stack.soci_run("soci", &[], &reference, &all).ok();
    let before = stack.registry.downloaded_of(&blob);
    let mounted = stack.mounts();

    let view = stack.view("soci", &image);
    let root = view.path().to_owned();
    // Unmounted by hand: the stack is needed meanwhile.
    std::mem::forget(view);
    let stalls = Stalls::default();
    let first = digest(&rootfs::noise(100, 700_001)).replace("sha256:", "");
    let client = stack.client();
    let containers = thread::scope(|scope| {
        scope.spawn(|| stalls.watch(&root));
        let starts = scope.spawn(|| start_containers(&client, &reference, &first, &stalls.end));
        // Also when a round panics.
        let end = EndOf(&stalls);
        for round in 0..rounds {
            let signal = signals[round as usize % signals.len()];
            drop_caches();
            stack.daemon.stop(signal);
            thread::sleep(Duration::from_millis(50));
            stack.daemon.launch();
            // Not before: it waits for mounts that are being made, and a container's may be waiting for the daemon.
            drop_caches();
            let said = stack.soci_run("soci", &[], &reference, &["sha256sum", "/data/0.bin"]).ok();
            assert!(said.out.starts_with(&first), "round {round}: {}", said.out);
            if (round + 1) % 100 == 0 {
                let longest = stalls.longest.load(Ordering::Relaxed);
                println!("{} of {rounds} rounds, longest stall {longest} ms", round + 1);
            }
        }
        drop(end);
        starts.join().unwrap()
    });
    let [reads, finds, programs] = container.end(&stack, rounds);
    assert!(
        containers > 0 && reads > 0 && finds > 0 && programs > 0 && stalls.reads.load(Ordering::Relaxed) > 0
    );
    assert_eq!(stack.registry.downloaded_of(&blob), before, "something was fetched twice");
    assert_eq!(stack.mounts(), mounted);
    let resumed = stack.daemon.log().matches("\"resumed\":1").count();
    assert_eq!(resumed, rounds as usize, "every daemon goes on with the mount of the one before");
    assert_eq!(stack.daemon.keepers().len(), 1);
    println!(
        "{rounds} rounds, kernel {front_end}: {containers} containers started; in one, {reads} files, {finds} times find and {programs} programs; {} reads beside it, longest stall {} ms",
        stalls.reads.load(Ordering::Relaxed),
        stalls.longest.load(Ordering::Relaxed)
    );
    soci_tests::process::run("umount", &[root.to_str().unwrap()]);
}

#[test]
fn killed_again_and_again_under_readers() {
    killed_under_readers("off", rounds(30), &[Signal::KILL]);
}

#[test]
fn killed_again_and_again_under_the_kernel_front_end() {
    killed_under_readers("auto", rounds(30), &[Signal::KILL]);
}

#[test]
fn handed_over_again_and_again_under_readers() {
    killed_under_readers("off", rounds(5).min(5), &[Signal::TERM]);
}

#[test]
#[ignore = "hours: scripts/test.sh long"]
fn killed_for_a_long_time_under_readers() {
    for front_end in ["off", "auto"] {
        killed_under_readers(front_end, rounds(1000), &[Signal::KILL]);
    }
}

/// A read whose bytes are still in the registry, which does not answer, when the daemon ends.
fn blocked_read(signal: Signal) {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let name = container_name();
    stack.soci(&["run", "--detach", "--snapshotter", "soci", &reference, &name, "sleep", "300"]).ok();
    // The program is here, the file is not.
    stack.ctr(&["task", "exec", "--exec-id", "warm", &name, "sha256sum", "/etc/passwd"]).ok();
    stack.registry.hang();
    let mut reader = stack.ctr_start(&["task", "exec", "--exec-id", "blocked", &name, "sha256sum", BIG.0]);
    eventually("the read waits", Duration::from_secs(20), || stack.waiting() > 0);
    stack.daemon.stop(signal);
    assert!(stack.waiting() > 0, "{signal:?} answered the read");
    stack.daemon.launch();
    assert!(reader.wait(Duration::from_millis(500)).is_none(), "{}", reader.output());
    stack.registry.go_on();
    let status = reader.wait(Duration::from_secs(60));
    assert!(status.is_some_and(|status| status.success()), "{}", reader.output());
    let wanted = digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
    assert!(reader.output().contains(&wanted), "{}", reader.output());
}

#[test]
fn a_read_that_waits_for_the_registry_survives_sigkill() {
    blocked_read(Signal::KILL);
}

#[test]
fn a_read_that_waits_for_the_registry_survives_sigterm() {
    blocked_read(Signal::TERM);
}

/// What rpull handed over is with the keeper, and nowhere else: without it nothing can be fetched.
#[test]
fn credentials_survive() {
    let mut stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let blob = &image.layers[0].digest;
    for signal in [Signal::KILL, Signal::TERM] {
        stack.restart_daemon(signal);
    }
    let before = stack.registry.downloaded_of(blob);
    let said = stack.soci_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
    assert!(said.out.starts_with(&digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "")));
    assert!(stack.registry.downloaded_of(blob) > before, "nothing was fetched, so nothing is proved");
    let found = soci_tests::process::say(
        std::process::Command::new("grep")
            .args(["-rlF", soci_tests::registry::PASSWORD])
            .arg(stack.daemon.root()),
    );
    assert_eq!(found.out, "", "the password is on disk");
    assert!(!stack.daemon.log().contains(soci_tests::registry::PASSWORD));
}

/// The registry is away before the daemon dies and stays away.
#[test]
fn without_a_registry() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let name = container_name();
    stack.soci(&["run", "--detach", "--snapshotter", "soci", &reference, &name, "sleep", "300"]).ok();
    let commands: [&[&str]; 3] =
        [&["cat", "/etc/passwd"], &["ls", "-lR", "/data", "/etc"], &["stat", "/data/big.bin"]];
    let exec = |stack: &Stack, id: &str, command: &[&str]| {
        stack.ctr(&[&["task", "exec", "--exec-id", id, &name], command].concat()).ok().out
    };
    // The kernel reads ahead, not always as far: everything but the big file has to be here.
    let all = "busybox find / -xdev -type f ! -name big.bin -exec cat {} + | wc -c";
    exec(&stack, "all", &["sh", "-c", all]);
    let before: Vec<String> = commands.iter().map(|command| exec(&stack, "before", command)).collect();
    stack.registry.stop();
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        stack.restart_daemon(signal);
        drop_caches();
        for (command, before) in commands.iter().zip(&before) {
            assert_eq!(exec(&stack, "after", command), *before, "after {signal:?}");
        }
        let said = stack.soci_run("soci", &[], &reference, &["cat", "/etc/passwd"]).ok();
        assert_eq!(said.out, before[0]);
    }
}

/// Its bound is in the configuration, and the process has it from there. What it has no room for ends with the daemon and is mounted anew.
#[test]
fn a_keeper_without_room() {
    let mut stack = Stack::with_config("[keeper]\nnames = 1\n");
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["echo", "once"]).ok();
    stack.logged("the keeper fails; some of what is mounted now ends with this process");
    stack.restart_daemon(Signal::KILL);
    stack.soci_run("soci", &[], &reference, &["echo", "again"]).ok();
    assert_eq!((stack.mounts().len(), stack.daemon.keepers().len()), (1, 1));
    assert!(!stack.daemon.log().contains("\"resumed\":1"), "it was kept");
}

/// The process that holds the mounts dies: there is another one, and it can do the same.
#[test]
fn a_keeper_that_dies_is_replaced() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["echo", "warm"]).ok();
    let first = stack.daemon.keepers();
    stack.daemon.end_keepers();
    eventually("there is another keeper", Duration::from_secs(20), || {
        let now = stack.daemon.keepers();
        now.len() == 1 && now != first
    });
    stack.logged("the keeper had ended; there is another one");
    stack.restart_daemon(Signal::KILL);
    stack.logged("\"resumed\":1");
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "still"]).ok().out, "still\n");
}

/// Keeper and daemon both gone: as after a reboot everything is mounted anew.
#[test]
fn without_keeper_and_daemon() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["echo", "warm"]).ok();
    stack.daemon.stop(Signal::KILL);
    stack.daemon.end_keepers();
    stack.daemon.launch();
    stack.logged("\"mounted\":1");
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "still"]).ok().out, "still\n");
    assert_eq!(stack.mounts().len(), 1);
}

/// A mount whose image was removed while somebody had a file of it open is out of sight, and still handed on.
#[test]
fn what_is_out_of_sight_is_served_on() {
    let mut stack = Stack::with_config("[fuse]\nkernel = \"off\"\n");
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let mount = stack.mounts()[0].split(' ').nth(2).unwrap().to_owned();
    let mut file = File::open(Path::new(&mount).join(BIG.0)).unwrap();
    let mut start = vec![0; 4096];
    file.read_exact(&mut start).unwrap();
    stack.forget();
    for signal in [Signal::KILL, Signal::TERM] {
        stack.restart_daemon(signal);
        assert_eq!(stack.mounts(), Vec::<String>::new());
    }
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap();
    let whole = rootfs::noise(1, BIG.1);
    assert!(start == whole[..4096] && rest == whole[4096..]);
    drop(file);
    // The last user has gone, and so has the mount, and what it was made from.
    let layers = stack.daemon.root().join("layers");
    eventually("its layer file is removed", Duration::from_secs(20), || {
        fs::read_dir(&layers).unwrap().next().is_none()
    });
}

/// What nobody asked for is not fetched any more of an image that is gone, though somebody still uses it; with him goes its file.
#[test]
fn a_removed_image_that_is_in_use_is_not_completed() {
    let stack =
        Stack::with_config("[fuse]\nkernel = \"off\"\n[background_fetch]\nsilence_period_msec = 3000\n");
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let mount = stack.mounts()[0].split(' ').nth(2).unwrap().to_owned();
    let mut file = File::open(Path::new(&mount).join(BIG.0)).unwrap();
    file.read_exact(&mut [0; 4096]).unwrap();
    stack.forget();
    let blob = &image.layers[0].digest;
    // What was on its way comes.
    thread::sleep(Duration::from_millis(500));
    let before = stack.registry.downloaded_of(blob);
    thread::sleep(Duration::from_secs(5));
    assert_eq!(stack.registry.downloaded_of(blob), before, "nobody asked for that");
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap();
    assert!(rest == rootfs::noise(1, BIG.1)[4096..]);
    drop(file);
    let layers = stack.daemon.root().join("layers");
    eventually("its layer file is removed", Duration::from_secs(20), || {
        fs::read_dir(&layers).unwrap().next().is_none()
    });
}

/// The layer file is lost under a mount: the same is made anew, and whoever reads goes on.
#[test]
fn a_lost_layer_file_is_made_anew_under_its_mount() {
    for front_end in ["off", "auto"] {
        let mut stack = Stack::with_config(&format!("[fuse]\nkernel = \"{front_end}\"\n"));
        let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
        stack.rpull(&[], &reference).ok();
        let name = container_name();
        stack.soci(&["run", "--detach", "--snapshotter", "soci", &reference, &name, "sleep", "300"]).ok();
        let exec = |stack: &Stack, id: &str| {
            let command = ["task", "exec", "--exec-id", id, &name, "sha256sum", "/etc/passwd", BIG.0];
            stack.ctr(&command).ok().out
        };
        for entry in fs::read_dir(stack.daemon.root().join("layers")).unwrap() {
            fs::remove_file(entry.unwrap().path().join("manifest.json")).unwrap();
        }
        stack.restart_daemon(Signal::KILL);
        stack.logged("\"resumed\":1");
        let said = exec(&stack, "after");
        assert!(said.contains(&digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "")), "{said}");
        assert!(stack.daemon.log().contains("a damaged layer is removed"));
    }
}

/// Index and zTOC are in containerd's store: a layer whose file is gone is mounted again without a registry.
#[test]
fn a_layer_is_prepared_without_a_registry() {
    let mut stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let chain = image.chain_id();
    stack.ctr(&["snapshot", "--snapshotter", "soci", "rm", &chain]).ok();
    stack.collect_garbage();
    let layers = stack.daemon.root().join("layers");
    eventually("its layer file is removed", Duration::from_secs(20), || {
        fs::read_dir(&layers).unwrap().next().is_none()
    });
    // Nor does the daemon remember anything.
    stack.registry.stop();
    stack.restart_daemon(Signal::KILL);
    let labels = [
        ("containerd.io/snapshot.ref", chain.as_str()),
        ("containerd.io/snapshot/cri.image-ref", &reference),
        ("containerd.io/snapshot/cri.manifest-digest", &image.manifest),
        ("containerd.io/snapshot/cri.layer-digest", &image.layers[0].digest),
        ("containerd.io/gc.root", "test"),
    ];
    // containerd may still be finding the daemon.
    eventually("the layer is prepared", Duration::from_secs(30), || {
        match stack.prepare("extract-test", &labels) {
            Err(tonic::Code::AlreadyExists) => true,
            Err(tonic::Code::Unavailable) => false,
            other => panic!("{other:?}: {}", stack.daemon.log()),
        }
    });
    assert_eq!(stack.mounts().len(), 1);
    let said = stack.soci(&["image", "status", "--json", &reference]).ok().out;
    assert!(said.contains(&image.layers[0].digest), "{said}");
}
