//! Another version of the daemon, and what it finds written by others: under a running container, which notices nothing.

use std::path::PathBuf;
use std::time::Duration;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use soci_tests::image::digest;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, container_name, eventually};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");

/// A container of a lazy image, of whose file nothing has been read.
struct Running {
    stack: Stack,
    name: String,
    reference: String,
}

impl Running {
    fn start() -> Running {
        let stack = Stack::start();
        let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
        stack.rpull(&[], &reference).ok();
        let name = container_name();
        stack.soci(&["run", "--detach", "--snapshotter", "soci", &reference, &name, "sleep", "300"]).ok();
        Running { stack, name, reference }
    }

    fn exec(&self, id: &str, command: &[&str]) -> String {
        self.stack.ctr(&[&["task", "exec", "--exec-id", id, &self.name], command].concat()).ok().out
    }

    /// Everything that a container sees of names, attributes and inode numbers.
    fn seen(&self, id: &str) -> String {
        self.exec(id, &["ls", "-liR", "/bin", "/etc", "/data"])
    }

    /// What was not here yet comes, new containers start, and in the end everything goes.
    fn goes_on(self) {
        let wanted = digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
        assert!(self.exec("big", &["sha256sum", BIG.0]).starts_with(&wanted));
        let said = self.stack.soci_run("soci", &[], &self.reference, &["sha256sum", BIG.0]).ok();
        assert!(said.out.starts_with(&wanted));
        self.stack.ctr(&["task", "rm", "--force", &self.name]).ok();
        self.stack.ctr(&["container", "rm", &self.name]).ok();
        self.stack.forget();
    }

    /// Waits until daemons have gone on with the mount of the one before so many times.
    fn resumed(&self, times: usize) {
        eventually("the mount is gone on with", Duration::from_secs(20), || {
            self.stack.daemon.log().matches("\"resumed\":1").count() == times
        });
    }

    fn store(&self) -> PathBuf {
        self.stack.daemon.root().join("snapshotter/metadata.redb")
    }

    /// Rewrites the rows of the daemon, which does not run.
    fn rewrite(&self, change: impl Fn(&mut Map<String, Value>)) {
        let database = Database::open(self.store()).unwrap();
        let reading = database.begin_read().unwrap();
        let rows: Vec<(String, Value)> = reading
            .open_table(SNAPSHOTS)
            .unwrap()
            .iter()
            .unwrap()
            .map(|row| {
                let (key, value) = row.unwrap();
                (key.value().to_owned(), serde_json::from_slice(value.value()).unwrap())
            })
            .collect();
        assert!(rows.len() > 1);
        let writing = database.begin_write().unwrap();
        for (key, mut row) in rows {
            change(row.as_object_mut().unwrap());
            let row = serde_json::to_vec(&row).unwrap();
            writing.open_table(SNAPSHOTS).unwrap().insert(key.as_str(), row.as_slice()).unwrap();
        }
        writing.commit().unwrap();
    }

    /// What the store says its format is, from now on.
    fn set_format(&self, format: u64) {
        let writing = Database::open(self.store()).unwrap().begin_write().unwrap();
        writing.open_table(META).unwrap().insert("format", format).unwrap();
        writing.commit().unwrap();
    }
}

/// By hand-over and by kill -9, with rows of a version that keeps less, and of one that keeps more.
#[test]
fn another_version_goes_on() {
    let mut running = Running::start();
    let before = running.seen("before");
    let this = env!("CARGO_PKG_VERSION");
    let another = format!("{}{}", if this.starts_with('9') { 8 } else { 9 }, &this[1..]);
    running.stack.daemon.become_version((this, &another));
    running.stack.daemon.stop(Signal::TERM);
    running.rewrite(|row| {
        row.insert("of_a_later_version".to_owned(), json!({ "deep": [1, 2, 3] }));
        row.remove("committed_from");
        row.remove("usage");
    });
    running.stack.daemon.launch();
    running.stack.logged(&format!("\"version\":\"{another}\""));
    running.resumed(1);
    assert_eq!(running.seen("later"), before);
    // And back.
    running.stack.daemon.become_version((&another, this));
    running.stack.restart_daemon(Signal::KILL);
    running.resumed(2);
    assert_eq!(running.seen("back"), before);
    running.goes_on();
}

/// A format that this version does not know: it says so and ends, and takes nothing from who knows it.
#[test]
fn a_later_store_is_left_alone() {
    let mut running = Running::start();
    let before = running.seen("before");
    running.stack.daemon.stop(Signal::TERM);
    running.set_format(2);
    let said = running.stack.daemon.second();
    assert!(!said.success && said.err.contains("has format 2, this version knows 1"), "{said:?}");
    assert_eq!(said.err.lines().filter(|line| line.starts_with("soci-snapshotter-grpc: ")).count(), 1);
    assert_eq!(running.stack.mounts().len(), 1);
    // The one that knows it.
    running.set_format(1);
    running.stack.daemon.launch();
    running.resumed(1);
    assert_eq!(running.seen("after"), before);
    running.goes_on();
}
