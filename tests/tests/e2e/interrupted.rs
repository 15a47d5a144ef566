//! SIGINT: the daemon unmounts everything and ends, whoever uses what it had mounted; `soci run` takes back what it has made.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use soci_tests::process::Process;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, container_name, eventually};

/// SIGINT leaves nothing: no mount, no keeper, no socket.
#[test]
fn sigint_leaves_nothing() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["echo", "once"]).ok();
    assert_eq!((stack.mounts().len(), stack.daemon.keepers().len()), (1, 1));
    stack.daemon.stop(Signal::INT);
    assert_eq!(stack.mounts(), Vec::<String>::new());
    assert_eq!(stack.daemon.keepers(), Vec::<i32>::new());
    assert!(!stack.daemon.root().join("keeper.sock").exists());
    stack.daemon.launch();
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "again"]).ok().out, "again\n");
}

/// What is mounted below the daemon's root.
fn below(stack: &Stack) -> Vec<String> {
    let root = stack.daemon.root();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned);
    mounts.filter(|path| std::path::Path::new(path).starts_with(&root)).collect()
}

/// A container that runs, a file that is held open, and a read that waits for a registry that says nothing: none of them holds up the end, and none
/// waits for ever afterwards.
fn in_use(front_end: &str) {
    let mut stack = Stack::with_config(&format!("[fuse]\nkernel = \"{front_end}\"\n"));
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let name = container_name();
    let script = "exec 3</data/big.bin; cd /data; echo HOLDS; while :; do busybox sleep 1; done";
    let run = ["run", "--rm", "--snapshotter", "soci", &reference, &name, "sh", "-c", script];
    let mut container = stack.soci_start(&run);
    let output = container.output_file();
    container.wait_until("a file is held open", Duration::from_secs(60), || {
        fs::read_to_string(&output).unwrap().contains("HOLDS")
    });
    let exec =
        |id: &str, file: &str| stack.ctr_start(&["task", "exec", "--exec-id", id, &name, "sha256sum", file]);
    assert!(exec("warm", "/etc/passwd").wait(Duration::from_secs(30)).is_some_and(|status| status.success()));
    stack.registry.hang();
    let mut reader = exec("blocked", BIG.0);
    reader.wait_until("the read waits", Duration::from_secs(30), || stack.waiting() > 0);
    assert!(container.wait(Duration::ZERO).is_none(), "{}", container.output());

    stack.daemon.stop(Signal::INT);
    assert_eq!(below(&stack), Vec::<String>::new());
    assert_eq!(stack.daemon.keepers(), Vec::<i32>::new());
    let status = reader.wait(Duration::from_secs(30));
    assert!(status.is_some_and(|status| !status.success()), "{}", reader.output());

    stack.registry.go_on();
    stack.daemon.launch();
    // The credentials have gone, too.
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "again"]).ok().out, "again\n");
    // It may have ended before, for want of its program's pages. `soci run` takes everything else away itself.
    stack.ctr(&["task", "kill", "--signal", "SIGKILL", &name]);
    assert!(container.wait(Duration::from_secs(30)).is_some(), "{}", container.output());
}

#[test]
fn sigint_under_a_running_container() {
    in_use("off");
}

#[test]
fn sigint_under_a_running_container_on_the_kernel_front_end() {
    in_use("auto");
}

/// A run that is interrupted while it waits for the image's list of users: what it has mounted to read that is mounted no more, although the read goes on.
#[test]
fn an_interrupted_run_leaves_nothing_mounted() {
    let quiet = "[fuse]\nkernel = \"off\"\n[background_fetch]\ndisable = true\n[limits]\nread_ahead_bytes = \"0b\"\n[start]\nfiles = \"\"\nlikely_files = \"\"\n";
    let stack = Stack::with_config(quiet);
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.registry.hang();
    let name = container_name();
    let mut command =
        stack.soci_command(&["run", "--rm", "--snapshotter", "soci", &reference, &name, "echo", "up"]);
    command.env("TMPDIR", stack.folder());
    let mut run = Process::start("soci", &mut command, &stack.folder().join("interrupted.log"));
    run.wait_until("it reads", Duration::from_secs(30), || stack.waiting() > 0);
    run.signal(Signal::INT);
    let mounted = format!("{}/soci-run-", stack.folder().display());
    eventually("nothing is mounted", Duration::from_secs(20), || {
        !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&mounted)
    });
    stack.registry.go_on();
    let status = run.wait(Duration::from_secs(60)).expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", run.output());
    assert_eq!(stack.ctr(&["container", "ls", "-q"]).ok().out.trim(), "");
    assert_eq!(stack.ctr(&["leases", "ls", "-q"]).ok().out.trim(), "");
    let snapshots = stack.ctr(&["snapshot", "--snapshotter", "soci", "ls"]).ok().out;
    assert!(!snapshots.contains("Active"), "{snapshots}");
}
