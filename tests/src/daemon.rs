//! soci-snapshotter-grpc under test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::containerd::{kill, processes, processes_of};
use crate::forgery::replace;
use crate::process::{Process, Said, say};
use crate::service::{ServiceManager, Store};
use crate::stack::eventually;

/// Where the programs under test are: beside the test's own folder in cargo's target, or where `SOCI_BINARIES` says.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("SOCI_BINARIES").map_or_else(
        || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned(),
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built: cargo build --bins", path.display());
    path
}

/// A daemon, running or stopped.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Process>,
    folder: PathBuf,
    /// Who starts it, if not the test itself.
    manager: Option<ServiceManager>,
    /// More arguments.
    arguments: Vec<&'static str>,
    /// Where the next one is to die.
    failpoint: Option<String>,
    program: PathBuf,
}

impl Daemon {
    /// Starts one in `folder`; `config` is its whole config.toml.
    pub fn start(folder: &Path, config: &str) -> Daemon {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.toml"), config).unwrap();
        let mut daemon = Daemon {
            process: None,
            folder: folder.to_owned(),
            program: program("soci-snapshotter-grpc"),
            manager: None,
            arguments: Vec::new(),
            failpoint: None,
        };
        daemon.launch();
        daemon
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--log-level", "debug"]).env("DOCKER_CONFIG", self.folder.join("docker"));
        command.arg("--address").arg(self.socket()).arg("--root").arg(self.root());
        command.arg("--config").arg(self.folder.join("config.toml")).args(&self.arguments);
        if let Some(place) = &self.failpoint {
            command.env("SOCI_TEST_FAILPOINT", place);
        }
        command
    }

    /// Starts it again after [`Daemon::stop`].
    pub fn launch(&mut self) {
        let (mut process, socket) = (self.begin(), self.socket());
        process.wait_until("it listens", Duration::from_secs(20), || UnixStream::connect(&socket).is_ok());
        self.process = Some(process);
    }

    fn begin(&self) -> Process {
        let (mut command, log) = (self.command(), self.folder.join("log"));
        match &self.manager {
            Some(manager) => {
                let mut service = manager.service(&command);
                Process::start("soci-snapshotter-grpc", &mut service.command, &log)
            }
            None => Process::start("soci-snapshotter-grpc", &mut command, &log),
        }
    }

    /// Kills it, and starts one that dies as by `kill -9` when it comes to a place that its program names.
    pub fn relaunch_to_die_at(&mut self, place: &str) {
        self.stop(Signal::KILL);
        self.failpoint = Some(place.to_owned());
        let (mut process, socket) = (self.begin(), self.socket());
        // The place may be one that it comes to at its start.
        eventually("it listens, or has died", Duration::from_secs(20), || {
            UnixStream::connect(&socket).is_ok() || process.wait(Duration::ZERO).is_some()
        });
        self.process = Some(process);
        self.failpoint = None;
    }

    /// From the next launch on it takes the kernel for one that cannot send requests again.
    pub fn never_resends(&mut self) {
        self.failpoint = Some("kernel.never-resends".to_owned());
    }

    /// From the next launch on nothing is mounted above FUSE, though it was found to be possible.
    pub fn never_attaches(&mut self) {
        self.failpoint = Some("kernel.never-attaches".to_owned());
    }

    /// Waits until it has died there, and starts one that does not.
    pub fn relaunch_after_death(&mut self) {
        let ended = self.process.as_mut().expect("the daemon runs").wait(Duration::from_secs(30));
        let signal = ended.expect("the daemon comes to the place at which it is to die").signal();
        assert_eq!(signal, Some(Signal::KILL.as_raw()));
        self.process = None;
        self.launch();
    }

    /// From the next launch on it is a service with a descriptor store.
    pub fn become_service(&mut self, store: Store) {
        self.manager = Some(ServiceManager::start(&self.folder, store));
    }

    /// The service manager, after [`Daemon::become_service`].
    pub fn manager(&self) -> &ServiceManager {
        self.manager.as_ref().unwrap()
    }

    /// From the next launch on it has these arguments, too.
    pub fn set_arguments(&mut self, arguments: &[&'static str]) {
        self.arguments = arguments.to_vec();
    }

    /// The number of its process.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Has it run from a copy of its program from the next start on, which [`Daemon::remove_copy`] takes away.
    pub fn run_a_copy(&mut self) {
        let copy = self.folder.join("copy-of-the-daemon");
        fs::copy(&self.program, &copy).unwrap();
        self.program = copy;
    }

    /// Has it run from the next start on as another version, whose number is as long: `(from, to)`.
    pub fn become_version(&mut self, (from, to): (&str, &str)) {
        let mut bytes = fs::read(&self.program).unwrap();
        replace(&mut bytes, from.as_bytes(), to.as_bytes());
        self.program = self.folder.join(format!("daemon-{to}"));
        fs::write(&self.program, bytes).unwrap();
        fs::set_permissions(&self.program, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Removes the program of a daemon that ran from a copy.
    pub fn remove_copy(&self) {
        fs::remove_file(self.folder.join("copy-of-the-daemon")).unwrap();
    }

    /// Writes the `config.json` of Docker that it looks into: it may read from `host`.
    pub fn log_in(&self, host: &str, user: &str, password: &str) {
        let folder = self.folder.join("docker");
        fs::create_dir_all(&folder).unwrap();
        let login = json!({ "auths": { host: { "username": user, "password": password } } });
        fs::write(folder.join("config.json"), login.to_string()).unwrap();
    }

    /// Runs a second one with the same arguments, which has to end by itself.
    pub fn second(&self) -> Said {
        say(&mut self.command())
    }

    /// Ends it.
    pub fn stop(&mut self, signal: Signal) {
        if let Some(mut process) = self.process.take() {
            // A supervisor that is killed passes nothing on.
            let supervised = signal == Signal::KILL && self.arguments.contains(&"--supervise");
            let left = if supervised { processes_of(process.id() as i32) } else { Vec::new() };
            let status = process.stop(signal);
            left.into_iter().for_each(kill);
            assert!(status.is_some() || signal == Signal::KILL, "the daemon did not end after {signal:?}");
        }
    }

    /// Processes that hold descriptors for this daemon.
    pub fn keepers(&self) -> Vec<i32> {
        let root = self.root();
        processes(|words| {
            words.iter().any(|word| word == "keep-descriptors")
                && words.iter().any(|word| Path::new(word) == root)
        })
    }

    /// Ends them, and with them every mount that no daemon serves.
    pub fn end_keepers(&self) {
        for keeper in self.keepers() {
            kill(keeper);
        }
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon runs");
        process.wait(Duration::from_secs(30)).expect("the daemon ends by itself")
    }

    /// Is it still there?
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.wait(Duration::ZERO).is_none())
    }

    /// Its process, while it runs.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the daemon runs")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("soci-snapshotter-grpc.sock")
    }

    /// Its root.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Everything it has logged, of all its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("log")).unwrap_or_default()).into_owned()
    }
}
