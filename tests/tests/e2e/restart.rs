//! containerd and the daemon may be restarted, each alone.

use std::time::Duration;

use rustix::process::Signal;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, container_name, eventually};

fn containerd_restarted(signal: Signal) {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let name = container_name();
    stack.soci(&["run", "--detach", "--snapshotter", "soci", &reference, &name, "sleep", "300"]).ok();
    stack.containerd.restart(signal);
    eventually("the task is seen again", Duration::from_secs(10), || {
        stack.ctr(&["task", "ls"]).out.contains("RUNNING")
    });
    // Not read before: through containerd, shim, overlay, FUSE, registry.
    let said = stack.ctr(&["task", "exec", "--exec-id", "after", &name, "sha256sum", BIG.0]).ok();
    let wanted = soci_tests::image::digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
    assert!(said.out.starts_with(&wanted), "{}", said.out);
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "another"]).ok().out, "another\n");
}

#[test]
fn containerd_restarted_under_a_running_container() {
    containerd_restarted(Signal::TERM);
}

#[test]
fn containerd_killed_under_a_running_container() {
    containerd_restarted(Signal::KILL);
}

fn daemon_restarted(signal: Signal) {
    let mut stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["cat", "/etc/passwd"]).ok();
    let before = stack.registry.downloaded_of(&image.layers[0].digest);
    stack.restart_daemon(signal);
    let said = stack.soci_run("soci", &[], &reference, &["cat", "/etc/passwd"]).ok();
    assert!(said.out.contains("plain:x:1000"));
    assert_eq!(stack.mounts().len(), 1);
    assert_eq!(stack.registry.downloaded_of(&image.layers[0].digest), before, "something was fetched twice");
    stack.forget();
}

#[test]
fn daemon_restarted_after_sigterm() {
    daemon_restarted(Signal::TERM);
}

#[test]
fn daemon_restarted_after_sigint() {
    daemon_restarted(Signal::INT);
}

#[test]
fn daemon_restarted_after_sigkill() {
    daemon_restarted(Signal::KILL);
}

/// The registry is away while the daemon starts again: what is there is enough.
#[test]
fn daemon_restarted_without_registry() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    stack.soci_run("soci", &[], &reference, &["cat", "/etc/passwd"]).ok();
    stack.registry.stop();
    stack.restart_daemon(Signal::TERM);
    assert!(stack.soci_run("soci", &[], &reference, &["cat", "/etc/passwd"]).ok().out.contains("plain"));
}
