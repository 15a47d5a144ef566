//! Mounting and unmounting.

use std::any::Any;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lazy_layer::Layer;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::adapter::LayerFs;
use super::attributes::LAYER_FILE;
use super::session::Session;
use super::state_file;
use crate::failpoint;
use crate::keeper::{Hold, KeptMount};
use crate::telemetry::Brake;

/// What upstream's mounts look like in `/proc/mounts`; users grep for it.
const SOURCE: &str = "soci";
const TYPE: &str = "fuse.rawBridge";

/// How a layer is mounted.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// Threads that receive requests. Default 1: they only look up and copy, data that is missing is waited for elsewhere.
    pub threads: usize,
    /// How far the kernel reads ahead, in KiB; 0 leaves its default of 128. Default 1024.
    pub read_ahead_kib: u32,
    /// Reads that the kernel may have in flight ahead of their readers, and for the loop device above, which has 128 at most: those that wait for
    /// what is missing must leave room for those that do not. Holds for mounts made from now on. Default 256.
    pub max_background: u16,
    /// Whether the layer file can be opened by name, for the kernel front end. Default false.
    pub layer_file: bool,
    /// How long an unmount waits for the last users before it takes the mount out of sight, and for the end of the threads after that. Default 500 ms.
    pub in_use: Duration,
    /// How long it waits for the threads when nobody uses the mount. Default 10 s.
    pub unmount: Duration,
    /// Holds back lines of the log about one mount. Default 5 at once, and one every 2 s.
    pub brake: Brake,
}

/// A mounted layer. Has to be unmounted; dropping it leaves the mount and its threads as they are.
#[derive(Debug)]
#[must_use = "dropping it leaves the mount behind"]
pub struct FuseMount {
    mount_point: PathBuf,
    session: Session,
    in_use: Duration,
    unmount: Duration,
}

/// How an unmount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nothing is left of it.
    Gone,
    /// It is out of sight, but somebody still uses it, who goes on being served; the last one ends it.
    InUse,
}

/// Why a layer could not be mounted, or a mount not be resumed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error("unable to open /dev/fuse")]
    Device {
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error("unable to mount a layer at {}", mount_point.display())]
    Mount {
        /// Where.
        mount_point: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The mount was made, and is taken back or dead, because nobody could serve it.
    #[error("unable to serve the layer mounted at {}", mount_point.display())]
    Session {
        /// Where.
        mount_point: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why a layer could not be unmounted.
#[derive(Debug, thiserror::Error)]
#[error("unable to unmount {}", mount_point.display())]
pub struct UnmountError {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl Default for FuseOptions {
    fn default() -> FuseOptions {
        FuseOptions {
            threads: 1,
            read_ahead_kib: 1024,
            max_background: 256,
            layer_file: false,
            in_use: Duration::from_millis(500),
            unmount: Duration::from_secs(10),
            brake: Brake { burst: 5, pause: Duration::from_secs(2) },
        }
    }
}

impl FuseMount {
    /// Mounts a layer at a directory and starts to serve it. Before that `hold` is asked to keep the device.
    ///
    /// # Errors
    ///
    /// [`MountError`]; nothing is mounted or kept then.
    pub fn mount(
        layer: Arc<Layer>,
        at: &Path,
        options: FuseOptions,
        hold: impl FnOnce(&OwnedFd) -> Hold,
    ) -> Result<FuseMount, MountError> {
        let mount_point = at.to_owned();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
            .map_err(|errno| MountError::Device { source: errno.into() })?;
        let hold = Arc::new(hold(&device));
        failpoint::pass("mount.held");
        if let Err(source) = mount(&device, at) {
            hold.release();
            return Err(MountError::Mount { mount_point, source });
        }
        failpoint::pass("mount.fuse-mounted");
        let name = thread_name(at);
        let fs = LayerFs::new(layer, at, &options, Arc::clone(&hold));
        match Session::start(fs, device, options.threads, name, Arc::clone(&hold)) {
            Ok(session) => {
                failpoint::pass("mount.fuse-served");
                if options.read_ahead_kib > 0 {
                    read_ahead(at, options.read_ahead_kib);
                }
                Ok(FuseMount::of(mount_point, session, &options))
            }
            Err(source) => {
                let _ = rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
                hold.release();
                Err(MountError::Session { mount_point, source })
            }
        }
    }

    /// Goes on with the mount of a process that has ended. `layer` has to be what it was made with; `at` is where it was mounted, and
    /// need not be there any more. What it shows stays as it is, whatever the options say.
    ///
    /// # Errors
    ///
    /// [`MountError::Session`]; the mount is dead then, and no longer kept.
    pub fn resume(
        layer: Arc<Layer>,
        at: &Path,
        options: FuseOptions,
        kept: KeptMount,
    ) -> Result<FuseMount, MountError> {
        let mount_point = at.to_owned();
        let (agreed, asked) = (kept.record.agreed, kept.record.asked);
        let options = FuseOptions { layer_file: kept.record.layer_file, ..options };
        let (device, hold) = kept.into_parts();
        let hold = Arc::new(hold);
        let resumed = agreed.ok_or_else(|| io::Error::other("it was never ready")).and_then(|agreed| {
            let fs = LayerFs::new(layer, at, &options, Arc::clone(&hold));
            Session::resume(fs, &device, agreed, asked, options.threads, thread_name(at), Arc::clone(&hold))
        });
        match resumed {
            Ok(session) => Ok(FuseMount::of(mount_point, session, &options)),
            Err(source) => {
                hold.release();
                Err(MountError::Session { mount_point, source })
            }
        }
    }

    fn of(mount_point: PathBuf, session: Session, options: &FuseOptions) -> FuseMount {
        FuseMount { mount_point, session, in_use: options.in_use, unmount: options.unmount }
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The layer file as a mount at this place shows it: nowhere listed, and there only with [`FuseOptions::layer_file`].
    #[must_use]
    pub fn layer_file(at: &Path) -> PathBuf {
        at.join(state_file::DIRECTORY).join(state_file::LAYER)
    }

    /// Device (major, minor) and inode by which the layer file of the mount at this place can be told from all others.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn layer_file_id(at: &Path) -> io::Result<((u32, u32), u64)> {
        Ok((device_number(at)?, LAYER_FILE.0))
    }

    /// Hands over what the mount's users need as long as there is one of them: it is dropped when the last has gone, which may be long after this
    /// mount was unmounted or dropped. What was handed over before is dropped.
    pub fn keep(&self, rest: impl Any + Send) {
        self.session.keep(rest);
    }

    /// Unmounts it and waits, for seconds at most, until its threads have ended.
    ///
    /// A mount that is in use is taken out of sight ("lazy unmount"). One that somebody else has unmounted is fine.
    ///
    /// # Errors
    ///
    /// [`UnmountError`] if the kernel refuses; it is still mounted then.
    pub fn unmount(self) -> Result<Unmounted, UnmountError> {
        let FuseMount { mount_point, session, in_use, unmount: gone } = self;
        let patience = match unmount(&mount_point, in_use) {
            Ok(Unmounted::Gone) => gone,
            Ok(Unmounted::InUse) => in_use,
            Err(errno) => return Err(UnmountError { mount_point, source: errno.into() }),
        };
        match session.join(patience) {
            Ok(Ok(())) => Ok(Unmounted::Gone),
            Ok(Err(error)) => {
                tracing::warn!("mount-point" = %mount_point.display(), error = %error, "a FUSE session ended badly");
                Ok(Unmounted::Gone)
            }
            Err(_session) => Ok(Unmounted::InUse),
        }
    }

    /// Unmounts what a dead daemon may have left at a directory; nothing there is fine.
    ///
    /// # Errors
    ///
    /// [`UnmountError`] if the kernel refuses.
    pub fn clear(at: &Path) -> Result<(), UnmountError> {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        loop {
            match rustix::mount::unmount(at, flags) {
                // There may be several on top of one another.
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(UnmountError { mount_point: at.to_owned(), source: errno.into() }),
            }
        }
    }
}

fn mount(device: &OwnedFd, at: &Path) -> io::Result<()> {
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let data = std::ffi::CString::new(data)?;
    // Not nosuid: a container's su and sudo come from here. Devices are made by overlayfs' own inodes, so nodev is no loss.
    rustix::mount::mount(SOURCE, at, TYPE, MountFlags::NODEV, data.as_c_str())?;
    Ok(())
}

fn unmount(at: &Path, patience: Duration) -> Result<Unmounted, Errno> {
    let deadline = Instant::now() + patience;
    loop {
        let (flags, outcome) = if Instant::now() < deadline {
            (UnmountFlags::NOFOLLOW, Unmounted::Gone)
        } else {
            (UnmountFlags::NOFOLLOW | UnmountFlags::DETACH, Unmounted::InUse)
        };
        match rustix::mount::unmount(at, flags) {
            Err(Errno::BUSY) if outcome == Unmounted::Gone => thread::sleep(patience / 10),
            Ok(()) => return Ok(outcome),
            // Not mounted, or not even there: somebody was faster.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(Unmounted::Gone),
            Err(errno) => return Err(errno),
        }
    }
}

/// Raises the kernel's read-ahead, which the protocol itself cannot raise above 128 KiB. Without it reads are only slower.
fn read_ahead(at: &Path, kib: u32) {
    let written = device_number(at).and_then(|(major, minor)| {
        fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    });
    if let Err(error) = written {
        tracing::debug!("mount-point" = %at.display(), error = %error, "unable to raise read-ahead");
    }
}

/// Major and minor number of what is mounted here, from what the kernel knows: no question to the file system itself.
fn device_number(at: &Path) -> io::Result<(u32, u32)> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statx(rustix::fs::CWD, at, flags, StatxFlags::empty())?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

/// `fuse-<snapshot>` from `…/snapshots/<snapshot>/fs`, for the thread that waits for those that serve the mount, which fuser names. Linux shows 15 bytes of it.
fn thread_name(at: &Path) -> String {
    let snapshot = at.parent().and_then(Path::file_name).unwrap_or_default();
    format!("fuse-{}", snapshot.to_string_lossy().replace('\0', ""))
}
