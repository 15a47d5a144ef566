//! `--supervise`: who starts the daemon again, and who does not.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use soci_tests::stack::{Stack, eventually};

/// A supervised daemon that soon counts as stable, with one layer mounted, and a container that runs on it.
struct Supervised {
    stack: Stack,
    reference: String,
    container: String,
}

impl Supervised {
    fn start(config: &str) -> Supervised {
        let mut stack = Stack::with_config(&format!("[supervise]\nstable_sec = 1\n{config}\n"));
        stack.daemon.stop(Signal::INT);
        stack.daemon.set_arguments(&["--supervise"]);
        stack.daemon.launch();
        let (reference, container) = stack.idle_container();
        let supervised = Supervised { stack, reference, container };
        supervised.container_reads("at-first");
        supervised
    }

    /// The supervised daemon, while there is one.
    fn daemon(&self) -> Option<Pid> {
        let supervisor = self.stack.daemon.id().unwrap();
        let path = format!("/proc/{supervisor}/task/{supervisor}/children");
        let children = fs::read_to_string(path).unwrap_or_default();
        let mut children =
            children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap());
        let daemon = children.next();
        assert_eq!(children.next(), None);
        daemon
    }

    /// Sends a signal to the supervised daemon, past its supervisor.
    fn signal(&self, signal: Signal) {
        kill_process(self.daemon().unwrap(), signal).unwrap();
    }

    fn container_reads(&self, id: &str) {
        let exec = ["task", "exec", "--exec-id", id, &self.container, "cat", "/etc/group"];
        assert_eq!(self.stack.ctr(&exec).ok().out, "root:x:0:\nplain:x:1000:\n");
    }

    fn runs_containers(&self) {
        assert_eq!(self.stack.soci_run("soci", &[], &self.reference, &["echo", "still"]).ok().out, "still\n");
    }

    /// One daemon has gone on with the mount of the one before, or does in a moment: it listens before that.
    fn one_has_resumed(&self) {
        let resumed = || self.stack.daemon.log().matches("\"resumed\":1").count();
        eventually("a daemon goes on with the mount", Duration::from_secs(20), || resumed() == 1);
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.stack.mounts(), Vec::<String>::new());
        assert_eq!(self.stack.daemon.keepers(), Vec::<i32>::new());
    }

    /// Kills the daemon, for whose successor the supervisor then waits.
    fn kill_into_the_pause(&self) {
        let pauses = |log: String| log.matches("the daemon died; starting it again in").count();
        let before = pauses(self.stack.daemon.log());
        self.signal(Signal::KILL);
        eventually("the supervisor waits", Duration::from_secs(20), || {
            pauses(self.stack.daemon.log()) > before
        });
    }
}

/// The daemon is killed, nobody does anything, and containers go on.
#[test]
fn a_daemon_that_was_killed_comes_back() {
    let mut supervised = Supervised::start("");
    let first = supervised.daemon();
    supervised.signal(Signal::KILL);
    supervised.container_reads("after");
    supervised.runs_containers();
    assert!(supervised.stack.daemon.runs() && supervised.daemon() != first);
    supervised.one_has_resumed();
}

/// SIGTERM at the daemon alone replaces it, as for an upgrade: containers need one.
#[test]
fn a_daemon_that_was_terminated_is_replaced() {
    let mut supervised = Supervised::start("");
    let first = supervised.daemon();
    supervised.signal(Signal::TERM);
    supervised.one_has_resumed();
    supervised.container_reads("after");
    supervised.runs_containers();
    assert!(supervised.stack.daemon.runs() && supervised.daemon() != first);
    assert!(!supervised.stack.daemon.log().contains("the daemon died"), "it was told to go");
}

/// SIGINT ends both, whichever of them gets it, and leaves nothing.
#[test]
fn sigint_ends_both() {
    let mut supervised = Supervised::start("");
    supervised.stack.daemon.stop(Signal::INT);
    supervised.nothing_is_left();
    supervised.stack.daemon.launch();
    // The credentials have gone, too.
    supervised.stack.rpull(&[], &supervised.reference).ok();
    supervised.runs_containers();
    supervised.signal(Signal::INT);
    assert!(supervised.stack.daemon.ended().success());
    supervised.nothing_is_left();
}

/// SIGTERM at the supervisor ends both and leaves everything mounted.
#[test]
fn sigterm_at_the_supervisor_hands_over() {
    let mut supervised = Supervised::start("");
    let daemon = supervised.daemon().unwrap();
    let mounts = supervised.stack.mounts();
    supervised.stack.daemon.process().signal(Signal::TERM);
    assert!(supervised.stack.daemon.ended().success());
    assert!(rustix::process::test_kill_process(daemon).is_err(), "the daemon is still there");
    assert_eq!(supervised.stack.mounts(), mounts);
    assert_eq!(supervised.stack.daemon.keepers().len(), 1);
    supervised.stack.daemon.launch();
    supervised.container_reads("after");
    supervised.one_has_resumed();
}

/// Both signals while there is no daemon, because it died and its successor has to wait.
#[test]
fn signals_between_two_daemons() {
    let mut supervised = Supervised::start("first_pause_msec = 600000\nlongest_pause_sec = 600");
    let mounts = supervised.stack.mounts();
    supervised.kill_into_the_pause();
    supervised.stack.daemon.process().signal(Signal::TERM);
    supervised.stack.daemon.ended();
    assert_eq!(supervised.stack.mounts(), mounts);
    assert_eq!(supervised.stack.daemon.keepers().len(), 1);
    supervised.stack.daemon.launch();
    supervised.container_reads("after");
    supervised.one_has_resumed();

    supervised.kill_into_the_pause();
    supervised.stack.daemon.process().signal(Signal::INT);
    assert!(supervised.stack.daemon.ended().success());
    supervised.nothing_is_left();
}
