//! Registry, containerd and daemon for one test, and what a user does with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::containerd::{Containerd, other};
use crate::daemon::{Daemon, program};
use crate::image::Image;
use crate::process::{Process, Said, run, say, tail};
use crate::registry::{Registry, user};
use crate::rootfs;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A stack; dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Stack {
    /// The registry.
    pub registry: Registry,
    /// containerd.
    pub containerd: Containerd,
    /// The daemon.
    pub daemon: Daemon,
    namespace: String,
    folder: Option<TempDir>,
}

/// Where a user of the stack finds containerd.
#[derive(Clone, Debug)]
pub struct Client {
    address: PathBuf,
    namespace: String,
}

impl Client {
    /// The CLI under test, as a command to be changed or started.
    pub fn soci_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("soci"));
        command
            .env("CONTAINERD_ADDRESS", &self.address)
            .env("CONTAINERD_NAMESPACE", &self.namespace)
            .args(arguments);
        command
    }
}

impl Default for Stack {
    fn default() -> Stack {
        Stack::start()
    }
}

impl Stack {
    /// All three, in the order in which a machine may start them: containerd before the daemon.
    pub fn start() -> Stack {
        Stack::with_config("")
    }

    /// The same, with more lines in the daemon's config.toml.
    pub fn with_config(config: &str) -> Stack {
        let folder = tempfile::Builder::new().prefix("stack-").tempdir().unwrap();
        let prefix = std::env::var("SOCI_TEST_NAMESPACE").unwrap_or_else(|_| "soci-test".to_owned());
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{prefix}-{}-{number}", std::process::id());
        let registry = Registry::start(&folder.path().join("registry"));
        let place = folder.path().join("soci");
        let containerd = Containerd::start(
            &folder.path().join("containerd"),
            &namespace,
            &place.join("soci-snapshotter-grpc.sock"),
            &place.join("root"),
        );
        let socket = containerd.socket();
        // What is here and what is not is what most tests are about; those of fetching ahead turn it on.
        let quiet = [
            ("[background_fetch]", "disable = true"),
            ("[limits]", "read_ahead_bytes = \"0b\"\nstart_files = 0"),
        ];
        let quiet: String = quiet
            .iter()
            .filter(|(table, _)| !config.contains(table))
            .map(|(table, key)| format!("{table}\n{key}\n"))
            .collect();
        let config =
            format!("{config}\n{quiet}[content_store]\ncontainerd_address = \"{}\"\n", socket.display());
        let daemon = Daemon::start(&place, &config);
        Stack { registry, containerd, daemon, namespace, folder: Some(folder) }
    }

    /// A folder for what a test makes.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    /// The CLI under test, as a command to be changed or started.
    pub fn soci_command(&self, arguments: &[&str]) -> Command {
        self.client().soci_command(arguments)
    }

    /// Who can run the CLI under test while the stack is changed.
    pub fn client(&self) -> Client {
        Client { address: self.containerd.socket(), namespace: self.namespace.clone() }
    }

    /// Runs the CLI under test.
    pub fn soci(&self, arguments: &[&str]) -> Said {
        say(&mut self.soci_command(arguments))
    }

    /// The namespace of the clients.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Runs the CLI under test in the stack's second namespace.
    pub fn soci_elsewhere(&self, arguments: &[&str]) -> Said {
        let namespace = other(&self.namespace);
        say(self.soci_command(arguments).env("CONTAINERD_NAMESPACE", namespace))
    }

    /// Runs containerd's own client.
    pub fn ctr(&self, arguments: &[&str]) -> Said {
        self.containerd.ctr(arguments)
    }

    /// The reference of a repository and tag in the registry.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// Imports an image and pushes it, by containerd's own client; it stays under the reference that is returned.
    pub fn push(&self, image: &Image, name: &str) -> String {
        let reference = self.reference(name);
        self.ctr(&["image", "import", "--no-unpack", image.archive.to_str().unwrap()]).ok();
        self.ctr(&["image", "tag", &image.name, &reference]).ok();
        self.ctr(&["image", "rm", &image.name]).ok();
        let push =
            ["image", "push", "--plain-http", "--user", &user(), "--platform", "linux/amd64", &reference];
        // Now and then `ctr` loses a connection to the registry in the middle of an upload; it is not what is tested.
        if !(0..2).any(|_| self.ctr(&push).success) {
            self.ctr(&push).ok();
        }
        reference
    }

    /// Makes an index of an image that is in containerd, and pushes it. Returns its digest.
    pub fn index(&self, reference: &str, create: &[&str]) -> String {
        self.soci(&[&["create"], create, &[reference]].concat()).ok();
        self.soci(&["push", "--user", &user(), reference]).ok();
        self.indices(reference).into_iter().next().expect("soci index list shows the index")
    }

    /// Digests that `soci index list` shows for an image.
    pub fn indices(&self, reference: &str) -> Vec<String> {
        let listed = self.soci(&["index", "list", "--quiet", "--ref", reference]).ok().out;
        listed.split_whitespace().map(str::to_owned).collect()
    }

    /// Image pushed, every layer indexed with spans of `span_size`, everything local forgotten: (reference, index digest).
    pub fn publish(&self, image: &Image, name: &str, span_size: u64) -> (String, String) {
        let reference = self.push(image, name);
        let index = self.index(&reference, &["--min-layer-size", "0", "--span-size", &span_size.to_string()]);
        self.forget();
        (reference, index)
    }

    /// Removes every image and waits until containerd and the daemon have let go of everything.
    pub fn forget(&self) {
        let listed = self.ctr(&["image", "ls", "-q"]).ok().out;
        let names: Vec<&str> = listed.split_whitespace().collect();
        if !names.is_empty() {
            self.ctr(&[&["image", "rm"], names.as_slice()].concat()).ok();
        }
        // One of its own accord may be minutes away, if the last one had to wait: containerd spends a fiftieth of its time on them.
        self.collect_garbage();
        let start = Instant::now();
        while !(self.content().is_empty() && self.mounts().is_empty()) {
            assert!(start.elapsed() < Duration::from_secs(20), "something stays: {}", self.holdings());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What there still is in containerd and of mounts, for a message.
    fn holdings(&self) -> String {
        let said = |arguments: &[&str]| format!("{}\n{}", arguments.join(" "), self.ctr(arguments).out);
        [
            said(&["image", "ls"]),
            said(&["content", "ls"]),
            said(&["container", "ls"]),
            said(&["leases", "ls"]),
            said(&["snapshot", "--snapshotter", "soci", "ls"]),
            self.mounts().join("\n"),
        ]
        .join("\n")
    }

    /// Digests in containerd's content store.
    pub fn content(&self) -> Vec<String> {
        self.ctr(&["content", "ls", "-q"]).ok().out.split_whitespace().map(str::to_owned).collect()
    }

    /// `soci image rpull` with the right credentials.
    pub fn rpull(&self, options: &[&str], reference: &str) -> Said {
        self.soci(&[&["image", "rpull", "--user", &user()], options, &[reference]].concat())
    }

    /// Lines of `mount` that are FUSE and ours.
    pub fn mounts(&self) -> Vec<String> {
        let below = format!(" on {}/", self.folder().display());
        let listed = run("mount", &[]);
        listed
            .lines()
            .filter(|line| line.contains("fuse") && line.contains(&below))
            .map(str::to_owned)
            .collect()
    }

    /// Requests that the kernel has for the one FUSE mount of the stack.
    pub fn waiting(&self) -> u64 {
        let below = self.folder().to_str().unwrap().to_owned();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line =
            table.lines().find(|line| line.contains(&below) && line.contains("fuse.rawBridge")).unwrap();
        let device = line.split(' ').nth(2).unwrap().split(':').nth(1).unwrap();
        let control = self.folder().join("fusectl");
        if fs::create_dir(&control).is_ok() {
            run("mount", &["-t", "fusectl", "fusectl", control.to_str().unwrap()]);
        }
        fs::read_to_string(control.join(device).join("waiting")).unwrap().trim().parse().unwrap()
    }

    /// Runs a command in a new container to its end, by the CLI under test.
    pub fn soci_run(&self, snapshotter: &str, options: &[&str], reference: &str, command: &[&str]) -> Said {
        let name = container_name();
        self.soci(
            &[&["run", "--rm", "--snapshotter", snapshotter], options, &[reference, &name], command].concat(),
        )
    }

    /// The same by containerd's own client.
    pub fn ctr_run(&self, snapshotter: &str, options: &[&str], reference: &str, command: &[&str]) -> Said {
        let name = container_name();
        // What a process wrote just before its end, ctr loses at times.
        let lingering = ["sh", "-c", "\"$@\"; code=$?; sleep 0.5; exit $code", "-"];
        let run = ["run", "--rm", "--snapshotter", snapshotter];
        self.ctr(&[&run, options, &[reference, &name], &lingering, command].concat())
    }

    /// The small image, with its layer mounted lazily, and a container of it that does nothing: (reference, container).
    pub fn idle_container(&self) -> (String, String) {
        let (reference, _) = self.publish(&rootfs::small(self.folder()), "small:1", 64 * 1024);
        self.rpull(&[], &reference).ok();
        let container = container_name();
        self.soci(&["run", "--detach", "--snapshotter", "soci", &reference, &container, "sleep", "300"]).ok();
        (reference, container)
    }

    /// Starts the CLI under test in the background; its output is in the process.
    pub fn soci_start(&self, arguments: &[&str]) -> Process {
        let log = self.folder().join(format!("soci-{}.log", COUNTER.fetch_add(1, Ordering::Relaxed)));
        Process::start("soci", &mut self.soci_command(arguments), &log)
    }

    /// Starts containerd's own client in the background.
    pub fn ctr_start(&self, arguments: &[&str]) -> Process {
        let log = self.folder().join(format!("ctr-{}.log", COUNTER.fetch_add(1, Ordering::Relaxed)));
        Process::start("ctr", &mut self.containerd.ctr_command(arguments), &log)
    }

    /// Has containerd collect its garbage, and waits for the end of it.
    pub fn collect_garbage(&self) {
        let lease = format!("collect-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        self.ctr(&["leases", "create", "--id", &lease]).ok();
        self.ctr(&["leases", "rm", "--sync", &lease]).ok();
    }

    /// The image's root file system, read-only, through a view of its top snapshot that containerd's own client makes.
    pub fn view(&self, snapshotter: &str, image: &Image) -> View<'_> {
        let key = format!("view-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let at = self.folder().join(&key);
        fs::create_dir(&at).unwrap();
        let target = at.to_str().unwrap();
        let chain = image.chain_id();
        // `ctr` says nothing of the view's use: a collection that a pull has left to be done would take it away.
        self.collect_garbage();
        let mount = self
            .ctr(&["snapshot", "--snapshotter", snapshotter, "view", "--target", target, &key, &chain])
            .ok()
            .out;
        self.ctr(&["snapshot", "--snapshotter", snapshotter, "label", &key, "containerd.io/gc.root=view"])
            .ok();
        let view = View { stack: self, snapshotter: snapshotter.to_owned(), key, at };
        run("sh", &["-ec", &mount]);
        view
    }

    /// Has containerd prepare a snapshot with these labels, which none of its command lines can: nothing, or the status that it ends with.
    pub fn prepare(&self, key: &str, labels: &[(&str, &str)]) -> Result<(), tonic::Code> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (snapshotter, key) = ("soci".to_owned(), key.to_owned());
        let mut request = tonic::Request::new(PrepareSnapshotRequest {
            snapshotter,
            key,
            labels,
            ..PrepareSnapshotRequest::default()
        });
        request.metadata_mut().insert("containerd-namespace", self.namespace.parse().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            let channel = containerd_client::connect(self.containerd.socket()).await.unwrap();
            SnapshotsClient::new(channel).prepare(request).await
        });
        answer.map(|_| ()).map_err(|status| status.code())
    }

    /// Ends the daemon and starts it again. containerd finds it a few seconds later; `soci` has the patience for that, `ctr` has not.
    pub fn restart_daemon(&mut self, signal: Signal) {
        self.daemon.stop(signal);
        self.daemon.launch();
    }

    /// Waits until the daemon has logged `text`.
    pub fn logged(&self, text: &str) {
        eventually(&format!("the daemon logs {text}"), Duration::from_secs(10), || {
            self.daemon.log().contains(text)
        });
    }
}

/// A mounted image.
#[derive(Debug)]
pub struct View<'a> {
    stack: &'a Stack,
    snapshotter: String,
    key: String,
    at: PathBuf,
}

impl View<'_> {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        say(Command::new("umount").arg(&self.at));
        self.stack.ctr(&["snapshot", "--snapshotter", &self.snapshotter, "rm", &self.key]);
    }
}

/// A name that no other container on the machine has.
pub fn container_name() -> String {
    format!("c{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Waits until `done`.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}", tail(&self.daemon.log()));
        }
        self.containerd.end_containers();
        self.containerd.stop(Signal::TERM);
        if !std::thread::panicking() {
            self.daemon.stop(Signal::INT);
        }
        self.registry.stop();
        let Some(folder) = self.folder.take() else { return };
        unmount_below(folder.path());
        if std::thread::panicking() {
            self.daemon.stop(Signal::KILL);
        }
        self.daemon.end_keepers();
        if std::env::var_os("SOCI_TEST_KEEP").is_some() {
            eprintln!("kept: {}", folder.keep().display());
        }
    }
}

/// Unmounts what is below a folder, the last mount first.
fn unmount_below(folder: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines().rev() {
        if let Some(at) = line.split(' ').nth(4).filter(|at| Path::new(at).starts_with(folder)) {
            say(Command::new("umount").args(["-l", at]));
        }
    }
}
