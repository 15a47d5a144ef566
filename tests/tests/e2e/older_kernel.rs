//! A kernel that cannot send requests again (before Linux 6.9): the daemon takes this one for such a kernel.
//!
//! What was under way when a daemon died ends, also while the registry says nothing, and everything after it works.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use soci_tests::image::digest;
use soci_tests::process::Process;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, eventually};

/// A stack with a container, whose programs are here; the big file is not.
struct Older {
    stack: Stack,
    reference: String,
    container: String,
}

impl Older {
    fn start(front_end: &str) -> Older {
        let mut stack = Stack::with_config(&format!("[fuse]\nkernel = \"{front_end}\"\n"));
        stack.daemon.stop(Signal::INT);
        stack.daemon.never_resends();
        stack.daemon.launch();
        let (reference, container) = stack.idle_container();
        let older = Older { stack, reference, container };
        let all = "busybox find / -xdev -type f ! -name big.bin -exec cat {} + | wc -c";
        let mut warm = older.exec("warm", &["sh", "-c", all]);
        assert!(warm.wait(Duration::from_secs(60)).is_some_and(|status| status.success()));
        older
    }

    fn exec(&self, id: &str, command: &[&str]) -> Process {
        self.stack.ctr_start(&[&["task", "exec", "--exec-id", id, &self.container], command].concat())
    }

    /// Reads that wait for their bytes: the daemon has them, and has not answered.
    fn waiting(&self) -> u64 {
        let said = self.stack.soci(&["image", "status", "--json", &self.reference]).ok().out;
        let layers: Value = serde_json::from_str(&said).unwrap();
        let number = |path: &str| layers[0].pointer(path).and_then(Value::as_u64).unwrap();
        number("/reads_that_waited") - number("/waits/count")
    }
}

/// The daemon is killed and another one started, neither of them hearing anything from the registry.
fn what_was_under_way_ends(front_end: &str) {
    let mut older = Older::start(front_end);
    older.stack.registry.hang();
    // Past the page cache: the kernel asks for nothing again by itself.
    let file = format!("if={}", BIG.0);
    let command = ["dd", &file, "of=/dev/null", "bs=4096", "skip=700", "count=1", "iflag=direct"];
    let mut direct = older.exec("direct", &command);
    eventually("the read waits", Duration::from_secs(20), || older.waiting() > 0);
    let mut buffered = older.exec("buffered", &["sha256sum", BIG.0]);
    eventually("both wait", Duration::from_secs(20), || older.waiting() > 1);

    older.stack.daemon.stop(Signal::KILL);
    older.stack.daemon.launch();
    let status = direct.wait(Duration::from_secs(30)).expect("the read ends, though there are no bytes");
    assert!(!status.success(), "{}", direct.output());
    older.stack.logged("those under way ended with an error");
    // What the kernel had read ahead for somebody it asks for again.
    assert!(buffered.wait(Duration::ZERO).is_none(), "{}", buffered.output());
    older.stack.registry.go_on();
    let status = buffered.wait(Duration::from_secs(60)).expect("the other read ends");
    let wanted = digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
    assert!(status.success() && buffered.output().contains(&wanted), "{}", buffered.output());

    // The next one, too, knows what was asked; and nothing is left without an answer.
    older.stack.restart_daemon(Signal::KILL);
    let said = older.stack.soci_run("soci", &[], &older.reference, &["sha256sum", BIG.0]).ok();
    assert!(said.out.starts_with(&wanted), "{}", said.out);
    eventually("nothing waits", Duration::from_secs(20), || older.stack.waiting() == 0);
    assert_eq!(older.stack.daemon.log().matches("those under way ended with an error").count(), 2);
}

#[test]
fn what_was_under_way_ends_through_fuse() {
    what_was_under_way_ends("off");
}

#[test]
fn what_was_under_way_ends_on_the_kernel_front_end() {
    what_was_under_way_ends("auto");
}
