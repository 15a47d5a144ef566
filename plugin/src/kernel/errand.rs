//! What may wait in the kernel for a FUSE mount of this daemon, done by a process of its own.
//!
//! A thread that waits for a request which its own process has taken and never answered cannot be killed: not the open of a hidden layer file, not
//! mount(2) of an EROFS above it, not LOOP_CHANGE_FD and not an unmount that has read-ahead to wait for. A daemon killed in that moment could not end, its socket and
//! its store would stay taken, and nobody could answer. So the daemon itself opens nothing of its own mounts and no loop device; it
//! starts this program once more with a hidden command ([`Errand`]) and waits at the end of a pipe, which anybody can be killed at.
//!
//! Such a process that waits when its daemon dies goes on when the next daemon serves the mount, or when the connection is aborted. Meanwhile it
//! has the snapshot's directory locked: the next daemon's process waits for it, and goes on with what it did.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{Backing, KernelError, KernelOptions, attach, erofs};

mod runner;

pub use runner::{ErrandOptions, Errands};

/// Name of the hidden command of this program.
pub(crate) const COMMAND: &str = "kernel-errand";

/// One piece of work. Its arguments are paths and numbers; it reads no configuration and asks nobody.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Errand {
    /// Goes on with the EROFS mount of a layer, or makes it.
    Attach {
        /// The layer's FUSE mount.
        #[arg(long)]
        fuse: PathBuf,
        /// The layer file.
        #[arg(long)]
        file: PathBuf,
        /// Whether that is complete, and so can be mounted itself.
        #[arg(long)]
        complete: bool,
        /// Settings.
        #[command(flatten)]
        options: KernelOptions,
    },
    /// Puts the local file under an EROFS mount.
    Exchange {
        /// The EROFS mount.
        #[arg(long)]
        at: PathBuf,
        /// The layer file, complete.
        #[arg(long)]
        file: PathBuf,
        /// Settings.
        #[command(flatten)]
        options: KernelOptions,
    },
    /// Mounts the local file without a loop device in the place of the EROFS mount that has it.
    Replace {
        /// The EROFS mount.
        #[arg(long)]
        at: PathBuf,
        /// The layer file, complete.
        #[arg(long)]
        file: PathBuf,
    },
    /// Unmounts EROFS.
    Unmount {
        /// The EROFS mount.
        #[arg(long)]
        at: PathBuf,
    },
}

/// What the process says, a line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Said {
    /// Somebody uses the mount: it is taken out of sight now.
    InUse,
    /// Done. Where the bytes of the mount come from, if there is one.
    Done(Option<Backing>),
    /// Nothing has changed.
    Failed { operation: String, path: PathBuf, errno: Option<i32>, text: String },
}

/// Runs one in this process, which says on standard output what came of it.
///
/// # Errors
/// Nobody listens.
pub fn main(errand: &Errand) -> io::Result<()> {
    // Its daemon's signals are not for it.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"soci-errand");
    run(errand, &mut |said| {
        let mut line = serde_json::to_vec(&said)?;
        line.push(b'\n');
        io::stdout().write_all(&line)
    })
}

fn run(errand: &Errand, say: &mut dyn FnMut(Said) -> io::Result<()>) -> io::Result<()> {
    let said = match errand {
        Errand::Attach { fuse, file, complete, options } => {
            let _lock = lock(fuse);
            attach::attach(fuse, file, *complete, *options).map(Some)
        }
        Errand::Exchange { at, file, options } => {
            let _lock = lock(at);
            attach::exchange(at, file, *options).map(|()| Some(Backing::Local))
        }
        Errand::Replace { at, file } => {
            let _lock = lock(at);
            attach::replace(at, file).map(|()| Some(Backing::Local))
        }
        Errand::Unmount { at } => {
            // Whoever has the lock may wait for what is unmounted here.
            let done = erofs::unmount(at, || say(Said::InUse));
            done.map(|()| None).map_err(super::failed("unmount", at))
        }
    };
    say(said.map_or_else(Said::from, Said::Done))
}

/// Waits until nobody of an earlier life is at work on this snapshot. Without its directory there is nothing to be waited for.
fn lock(mount_point: &Path) -> Option<File> {
    let directory = File::open(mount_point.parent()?).ok()?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&directory, FlockOperation::LockExclusive)).ok()?;
    Some(directory)
}

// === impl Errand ===

impl Errand {
    fn outcome(&self, last: Option<Said>) -> Result<Option<Backing>, KernelError> {
        match last {
            Some(Said::Done(backing)) => Ok(backing),
            Some(Said::Failed { operation, path, errno, text }) => {
                let source = errno.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error);
                Err(KernelError { operation: operation.into(), path, source })
            }
            Some(Said::InUse) | None => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn lost(&self, source: io::Error) -> KernelError {
        let (Errand::Attach { fuse: path, .. }
        | Errand::Exchange { at: path, .. }
        | Errand::Replace { at: path, .. }
        | Errand::Unmount { at: path }) = self;
        super::failed("run a process for", path)(source)
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = Vec::new();
        let mut put = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            let mut argument = OsString::from(format!("--{name}="));
            argument.push(value);
            line.push(argument);
        };
        let options = match self {
            Errand::Attach { fuse, file, options, .. } => {
                put("fuse", fuse);
                put("file", file);
                Some(options)
            }
            Errand::Exchange { at, file, options } => {
                put("at", at);
                put("file", file);
                Some(options)
            }
            Errand::Replace { at, file } => {
                put("at", at);
                put("file", file);
                None
            }
            Errand::Unmount { at } => {
                put("at", at);
                None
            }
        };
        if let Some(options) = options {
            put("read-ahead-kib", &options.read_ahead_kib.to_string());
            put("local-read-ahead-kib", &options.local_read_ahead_kib.to_string());
            put("loop-attempts", &options.loop_attempts.to_string());
            put("held-files", &options.held_files.to_string());
        }
        if options.is_some_and(|options| options.without_device) {
            line.push("--without-device".into());
        }
        if matches!(self, Errand::Attach { complete: true, .. }) {
            line.push("--complete".into());
        }
        let name = match self {
            Errand::Attach { .. } => "attach",
            Errand::Exchange { .. } => "exchange",
            Errand::Replace { .. } => "replace",
            Errand::Unmount { .. } => "unmount",
        };
        line.insert(0, name.into());
        line
    }
}

// === impl Said ===

impl From<KernelError> for Said {
    fn from(error: KernelError) -> Said {
        let KernelError { operation, path, source } = error;
        let (errno, text) = (source.raw_os_error(), source.to_string());
        Said::Failed { operation: operation.into_owned(), path, errno, text }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;
    use crate::args::{Args, Command};

    const OPTIONS: KernelOptions = KernelOptions {
        read_ahead_kib: 7,
        local_read_ahead_kib: 8,
        loop_attempts: 9,
        held_files: 10,
        without_device: true,
    };

    #[test]
    fn arguments_come_back() {
        let odd = PathBuf::from(OsString::from_vec(b"/a b/\xff=--x".to_vec()));
        for errand in [
            Errand::Attach { fuse: odd.clone(), file: "-f".into(), complete: true, options: OPTIONS },
            Errand::Attach { fuse: "x".into(), file: odd.clone(), complete: false, options: OPTIONS },
            Errand::Exchange { at: odd.clone(), file: odd.clone(), options: OPTIONS },
            Errand::Replace { at: odd.clone(), file: "-f".into() },
            Errand::Unmount { at: odd },
        ] {
            let line = ["soci-snapshotter-grpc", COMMAND].map(OsString::from).into_iter();
            let args = Args::parse_from_command_line(line.chain(errand.arguments())).unwrap();
            assert_eq!(args.command, Some(Command::KernelErrand(errand)));
        }
    }

    #[test]
    fn errors_come_back() {
        let error = super::super::failed("open", Path::new("/x"))(io::Error::from_raw_os_error(2));
        let line = serde_json::to_string(&Said::from(error)).unwrap();
        let said = serde_json::from_str(&line).unwrap();
        let error = Errand::Unmount { at: "/y".into() }.outcome(Some(said)).unwrap_err();
        assert_eq!(
            crate::telemetry::chain(&error),
            "unable to open /x: No such file or directory (os error 2)"
        );
    }
}
