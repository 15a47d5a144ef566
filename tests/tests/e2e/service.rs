//! The daemon as a service of systemd: its descriptor store keeps the mounts, or does so beside a process of ours.

use std::time::Duration;

use rustix::process::Signal;
use soci_tests::image::digest;
use soci_tests::rootfs;
use soci_tests::rootfs::BIG;
use soci_tests::service::Store;
use soci_tests::stack::{Stack, eventually};

/// A daemon that is a service, and a container, whose programs are here; the big file is not.
struct Service {
    stack: Stack,
    container: String,
}

impl Service {
    fn start(store: Store) -> Service {
        let mut stack = Stack::start();
        stack.daemon.stop(Signal::INT);
        stack.daemon.become_service(store);
        stack.daemon.launch();
        let (_, container) = stack.idle_container();
        let service = Service { stack, container };
        service.container_reads("at-first");
        service
    }

    /// Kinds of what is stored.
    fn stored(&self) -> Vec<String> {
        let stored = self.stack.daemon.manager().stored();
        stored.iter().map(|name| name.trim_end_matches(|c: char| c.is_ascii_hexdigit()).to_owned()).collect()
    }

    fn exec(&self, id: &str, command: &[&str]) -> String {
        self.stack.ctr(&[&["task", "exec", "--exec-id", id, &self.container], command].concat()).ok().out
    }

    fn container_reads(&self, id: &str) {
        super::survive::drop_caches();
        assert!(self.exec(id, &["sha256sum", "/etc/passwd"]).contains("/etc/passwd"));
    }

    /// With the credentials that came back with the mount.
    fn fetches(&self) {
        let wanted = digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
        assert!(self.exec("big", &["sha256sum", BIG.0]).starts_with(&wanted));
    }

    /// The container, its image and the daemon go, and nothing is kept any more.
    fn end(mut self) {
        self.stack.ctr(&["task", "rm", "--force", &self.container]).ok();
        self.stack.ctr(&["container", "rm", &self.container]).ok();
        self.stack.forget();
        eventually("a mount that is gone is not stored", Duration::from_secs(20), || {
            self.stored() == ["soci-secrets-"]
        });
        self.stack.daemon.stop(Signal::INT);
        assert_eq!(self.stored(), Vec::<String>::new());
        assert_eq!(self.stack.daemon.keepers(), Vec::<i32>::new());
    }
}

/// With a service manager whose store stays there is no process of ours: it has them, and passes them to the next daemon.
#[test]
fn a_service_managers_store_is_the_keeper() {
    let mut service = Service::start(Store::Stays);
    assert_eq!(service.stack.daemon.keepers(), Vec::<i32>::new());
    assert_eq!(service.stored(), ["soci-mount-", "soci-secrets-"]);
    for (round, signal) in [Signal::KILL, Signal::TERM, Signal::KILL].into_iter().enumerate() {
        service.stack.restart_daemon(signal);
        service.container_reads(&format!("round-{round}"));
    }
    assert_eq!(service.stack.daemon.log().matches("\"resumed\":1").count(), 3);
    service.fetches();
    service.end();
}

/// Before systemd 254 `systemctl stop` empties the store, and leaves a process of ours alone; `systemctl kill` ends that, and leaves the store alone.
/// What is in both survives both, in any order.
#[test]
fn an_older_service_managers_store_and_a_process_are_the_keeper() {
    let mut service = Service::start(Store::UntilStopped);
    for round in 0..2 {
        service.stack.daemon.stop(Signal::TERM);
        service.stack.daemon.manager().empty();
        service.stack.daemon.launch();
        service.container_reads(&format!("stopped-{round}"));
        assert_eq!(service.stored(), ["soci-mount-", "soci-secrets-"]);

        service.stack.daemon.stop(Signal::KILL);
        service.stack.daemon.end_keepers();
        service.stack.daemon.launch();
        service.container_reads(&format!("killed-{round}"));
        assert_eq!(service.stack.daemon.keepers().len(), 1);
    }
    assert_eq!(service.stack.daemon.log().matches("\"resumed\":1").count(), 4);
    service.fetches();
    service.end();
}
