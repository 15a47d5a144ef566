//! Mounts that containerd hands out, made in this machine's mount table by the code that containerd's shims use.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use containerd_client::types::Mount;
use rustix::process::{WaitOptions, WaitStatus, wait};

/// How often the reaper looks.
const PAUSE: Duration = Duration::from_millis(2);

/// A mount could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// No directory, or not one with a name in UTF-8.
    #[error("cannot mount at {}", .0.display())]
    Target(PathBuf, #[source] std::io::Error),
    /// The system refused.
    #[error("cannot mount {kind} at {}", target.display())]
    Mount {
        /// Type of the file system.
        kind: String,
        /// Where it should go.
        target: PathBuf,
        /// What the mounting process said.
        source: containerd_shim::Error,
    },
    /// The system refused.
    #[error("cannot unmount {}", target.display())]
    Unmount {
        /// What is mounted.
        target: PathBuf,
        /// What the system said.
        source: containerd_shim::Error,
    },
}

/// Makes these mounts at `target`, one over the other; all or none. Blocks.
///
/// # Errors
/// The target is no directory, or the system refuses a mount.
pub(crate) fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), MountError> {
    let target =
        std::fs::canonicalize(target).map_err(|source| MountError::Target(target.to_owned(), source))?;
    let _reaper = Reaper::start().map_err(|source| MountError::Target(target.clone(), source))?;
    for mount in mounts {
        let kind = Some(mount.r#type.as_str());
        let made = containerd_shim::mount::mount_rootfs(kind, Some(&mount.source), &mount.options, &target);
        if let Err(source) = made {
            // What was mounted before it goes again; the first error is the one to tell.
            let _ = unmount_all(&target);
            return Err(MountError::Mount { kind: mount.r#type.clone(), target, source });
        }
    }
    Ok(())
}

/// Undoes every mount at `target` and below. Blocks.
///
/// # Errors
/// The target is not there, or is in use.
pub(crate) fn unmount_all(target: &Path) -> Result<(), MountError> {
    let target =
        std::fs::canonicalize(target).map_err(|source| MountError::Target(target.to_owned(), source))?;
    let text = target
        .to_str()
        .ok_or_else(|| MountError::Target(target.clone(), std::io::Error::other("the name is not UTF-8")))?;
    containerd_shim::mount::umount_recursive(Some(text), 0)
        .map_err(|source| MountError::Unmount { target: target.clone(), source })
}

/// Tells the shim's code how its mounting processes end: in a shim, the handler of SIGCHLD does that, and without one it waits for ever.
struct Reaper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    fn start() -> std::io::Result<Reaper> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                // With no child there is an error, with none that has ended nothing.
                match wait(WaitOptions::NOHANG) {
                    Ok(Some((pid, status))) => {
                        let pid = pid.as_raw_nonzero().get();
                        let _ = containerd_shim::monitor::monitor_notify_by_pid(pid, code(status));
                    }
                    _ => std::thread::sleep(PAUSE),
                }
            }
        })?;
        Ok(Reaper { stop, thread: Some(thread) })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// As a shell counts: the exit status, or 128 and the signal.
fn code(status: WaitStatus) -> i32 {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// The shim's code forks to mount, and a fork holds open what another test has open: its unmount would find the target in use.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            r#type: kind.to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    /// As root.
    #[test]
    fn mounts_come_and_go_together() {
        let _alone = ONE_AT_A_TIME.lock();
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let tmpfs = mount("tmpfs", "tmpfs", &["size=65536", "nosuid"]);
        mount_all(std::slice::from_ref(&tmpfs), &target).unwrap();
        std::fs::write(target.join("file"), "x").unwrap();
        let bind = mount("bind", target.to_str().unwrap(), &["rbind", "ro"]);
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        mount_all(&[bind], &other).unwrap();
        assert!(other.join("file").exists());
        assert!(std::fs::write(other.join("file"), "y").is_err(), "read-only");
        unmount_all(&other).unwrap();
        // The second one fails, so the first goes as well.
        assert!(mount_all(&[tmpfs, mount("nosuchfs", "x", &[])], &other).is_err());
        assert_eq!(std::fs::read_dir(&other).unwrap().count(), 0);
        unmount_all(&target).unwrap();
        assert!(!target.join("file").exists());
        unmount_all(&target).unwrap();
        assert!(unmount_all(&folder.path().join("nowhere")).is_err());
    }

    /// As root: more lower directories than fit into a page of options.
    #[test]
    fn long_overlays_are_shortened() {
        let _alone = ONE_AT_A_TIME.lock();
        let folder = tempfile::tempdir().unwrap();
        let mut lower = Vec::new();
        for n in 0..100 {
            let name = folder.path().join("x".repeat(60)).join(n.to_string());
            std::fs::create_dir_all(&name).unwrap();
            std::fs::write(name.join(format!("file{n}")), "").unwrap();
            lower.push(name.display().to_string());
        }
        let target = folder.path().join("target");
        std::fs::create_dir(&target).unwrap();
        mount_all(&[mount("overlay", "overlay", &[&format!("lowerdir={}", lower.join(":"))])], &target)
            .unwrap();
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 100);
        unmount_all(&target).unwrap();
    }
}
