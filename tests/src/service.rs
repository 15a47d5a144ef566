//! A service manager with a descriptor store, as far as the daemon can tell: what systemd does with `FileDescriptorStoreMax=`.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Where descriptors are while they are handed to a new process.
const HIGH: i32 = 200;

type Stored = BTreeMap<String, Vec<OwnedFd>>;

/// What becomes of the store when the service is stopped.
#[derive(Clone, Copy, Debug)]
pub enum Store {
    /// It stays (systemd from 254 on, with `FileDescriptorStorePreserve=`), and the service is told that there is one.
    Stays,
    /// It is emptied. The unit says that there is one.
    UntilStopped,
}

/// Listens on a notification socket as long as the test runs.
#[derive(Debug)]
pub struct ServiceManager {
    socket: PathBuf,
    kind: Store,
    store: Arc<Mutex<Stored>>,
}

impl ServiceManager {
    /// One whose socket is in `folder`.
    pub fn start(folder: &Path, kind: Store) -> ServiceManager {
        let socket = folder.join("notify.sock");
        let listener = UnixDatagram::bind(&socket).unwrap();
        let store = Arc::new(Mutex::new(Stored::new()));
        let held = Arc::clone(&store);
        thread::spawn(move || {
            while let Some((text, descriptors)) = receive(&listener) {
                let value = |key: &str| {
                    text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
                };
                let name = value("FDNAME").unwrap_or_default();
                let mut held = held.lock().unwrap();
                if value("FDSTORE").is_some() {
                    // What polls as broken is dropped, unless it says otherwise: a FUSE device without a mount does.
                    assert_eq!(value("FDPOLL").as_deref(), Some("0"));
                    held.entry(name).or_default().extend(descriptors);
                } else if value("FDSTOREREMOVE").is_some() {
                    held.remove(&name);
                }
                // With BARRIER=1 there is one that is closed now.
            }
        });
        ServiceManager { socket, kind, store }
    }

    /// Names of what is stored.
    pub fn stored(&self) -> Vec<String> {
        self.store.lock().unwrap().keys().cloned().collect()
    }

    /// Lets go of everything, as at a stop.
    pub fn empty(&self) {
        self.store.lock().unwrap().clear();
    }

    /// The same command as a service: told where to notify, and given what is stored.
    pub fn service(&self, command: &Command) -> Service {
        let store = self.store.lock().unwrap();
        let mut passed = Vec::new();
        let mut names = Vec::new();
        for (name, descriptors) in store.iter() {
            for descriptor in descriptors {
                let high = fcntl_dupfd_cloexec(descriptor, HIGH).unwrap();
                fcntl_setfd(&high, FdFlags::empty()).unwrap();
                names.push(name.clone());
                passed.push(high);
            }
        }
        let moves: String = passed
            .iter()
            .enumerate()
            .map(|(number, high)| {
                let high = std::os::fd::AsRawFd::as_raw_fd(high);
                format!("exec {}<&{high} {high}<&-; ", number + 3)
            })
            .collect();
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(format!("{moves}export LISTEN_PID=$$; exec \"$@\"")).arg("bash");
        bash.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                bash.env(key, value);
            }
        }
        let told_by = match self.kind {
            Store::Stays => "FDSTORE",
            Store::UntilStopped => "SOCI_FDSTORE_UNTIL_STOPPED",
        };
        bash.env("NOTIFY_SOCKET", &self.socket).env(told_by, "64");
        bash.env("LISTEN_FDS", passed.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        Service { command: bash, _passed: passed }
    }
}

/// A command, and what it inherits: to be kept until it runs.
#[derive(Debug)]
pub struct Service {
    /// To be started.
    pub command: Command,
    _passed: Vec<OwnedFd>,
}

fn receive(listener: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let length =
        rustix::net::recvmsg(listener, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
    let descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Some((String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptors))
}
