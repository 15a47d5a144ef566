//! A containerd whose root, state and sockets are in the test's folder; a containerd of the machine is left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::process::{Process, Said, run, say};

/// What the transfer service of containerd 2 needs to unpack into a snapshotter; others ignore it.
fn unpacks_into(snapshotter: &str) -> String {
    format!(
        "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux/amd64\"\n  \
         snapshotter = \"{snapshotter}\"\n  differ = \"walking\"\n"
    )
}

/// Major and minor version of the machine's containerd, or of the one that is earlier in PATH.
pub fn version() -> (u32, u32) {
    let said = run("containerd", &["--version"]);
    let version = said.split_whitespace().nth(2).unwrap();
    let mut numbers =
        version.trim_start_matches('v').split('.').take(2).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    process: Option<Process>,
    folder: PathBuf,
    namespace: String,
}

impl Containerd {
    /// Starts one in `folder` with the proxy plugin `soci` at `snapshotter`; clients use `namespace`.
    pub fn start(folder: &Path, namespace: &str, snapshotter: &Path, snapshotter_root: &Path) -> Containerd {
        fs::create_dir_all(folder.join("opt")).unwrap();
        let (place, snapshotter, root) =
            (folder.display(), snapshotter.display(), snapshotter_root.display());
        // What `containerd config default` has.
        let format = if version() >= (2, 0) { 3 } else { 2 };
        let config = format!(
            "version = {format}\nroot = \"{place}/root\"\nstate = \"{place}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.nri.v1.nri\"]\n\
             [grpc]\n  address = \"{place}/containerd.sock\"\n\
             [ttrpc]\n  address = \"{place}/containerd.sock.ttrpc\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{place}/opt\"\n\
             [proxy_plugins.soci]\n  type = \"snapshot\"\n  address = \"{snapshotter}\"\n\
             [proxy_plugins.soci.exports]\n  root = \"{root}\"\n  enable_remote_snapshot_annotations = \"true\"\n\
             {}{}",
            unpacks_into("soci"),
            unpacks_into("overlayfs"),
        );
        fs::write(folder.join("config.toml"), config).unwrap();
        let mut containerd =
            Containerd { process: None, folder: folder.to_owned(), namespace: namespace.to_owned() };
        containerd.launch();
        containerd
    }

    fn launch(&mut self) {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.folder.join("config.toml"));
        let mut process = Process::start("containerd", &mut command, &self.folder.join("log"));
        process.wait_until("it answers", Duration::from_secs(30), || self.ctr(&["version"]).success);
        self.process = Some(process);
    }

    /// The file that its content store has for a digest.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let blobs = self.folder.join("root/io.containerd.content.v1.content/blobs/sha256");
        blobs.join(digest.strip_prefix("sha256:").unwrap())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// Ends it with `signal` and starts it again; containers go on.
    pub fn restart(&mut self, signal: Signal) {
        self.stop(signal);
        self.launch();
    }

    /// Ends it.
    pub fn stop(&mut self, signal: Signal) {
        if let Some(mut process) = self.process.take() {
            process.stop(signal);
        }
    }

    /// containerd's own client.
    pub fn ctr(&self, arguments: &[&str]) -> Said {
        say(&mut self.ctr_command(arguments))
    }

    /// The same, to be started.
    pub fn ctr_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", &self.namespace]).args(arguments);
        command
    }

    /// Ends containers and their shims, whether containerd runs or not, and what they keep outside the folder.
    pub fn end_containers(&self) {
        if self.process.is_some() {
            for task in self.ctr(&["task", "ls", "-q"]).out.split_whitespace() {
                self.ctr(&["task", "rm", "--force", task]);
            }
        }
        let namespaces = [self.namespace.clone(), other(&self.namespace)];
        let state = self.folder.join("state/io.containerd.runtime.v2.task");
        let sockets: Vec<PathBuf> = namespaces
            .iter()
            .flat_map(|namespace| fs::read_dir(state.join(namespace)))
            .flatten()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("address")).ok())
            .map(|address| PathBuf::from(address.trim_start_matches("unix://")))
            .collect();
        let socket = self.socket();
        for shim in processes(|words| {
            words.first().is_some_and(|program| program.contains("containerd-shim"))
                && words.iter().any(|word| Path::new(word) == socket)
        }) {
            for child in processes_of(shim) {
                kill(child);
            }
            kill(shim);
        }
        for socket in sockets {
            fs::remove_file(socket).ok();
        }
        for namespace in namespaces {
            fs::remove_dir_all(Path::new("/run/containerd/runc").join(&namespace)).ok();
            let groups = fs::read_dir("/sys/fs/cgroup")
                .into_iter()
                .flatten()
                .filter_map(|group| Some(group.ok()?.path()));
            for group in groups.chain([PathBuf::from("/sys/fs/cgroup")]) {
                remove_empty(&group.join(&namespace));
            }
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.end_containers();
        self.stop(Signal::TERM);
    }
}

/// A second namespace, which nobody else uses either.
pub fn other(namespace: &str) -> String {
    format!("{namespace}.other")
}

pub(crate) fn kill(process: i32) {
    if let Some(pid) = Pid::from_raw(process) {
        kill_process(pid, Signal::KILL).ok();
    }
}

/// Processes whose arguments are as wanted.
pub(crate) fn processes(wanted: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let all = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    all.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        wanted(&words)
    })
    .collect()
}

pub(crate) fn processes_of(parent: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Removes a control group and those below it; one that is in use stays.
fn remove_empty(group: &Path) {
    for child in fs::read_dir(group).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
        if child.is_dir() {
            remove_empty(&child);
        }
    }
    fs::remove_dir(group).ok();
}
