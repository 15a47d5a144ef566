//! EROFS mounts of loop devices.

use std::ffi::CStr;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::device::Device;

const TYPE: &str = "erofs";
/// `EROFS_SUPER_MAGIC_V1` of `linux/magic.h`.
const MAGIC: u64 = 0xE0F5_E1E2;

/// Mounts a device. Like the FUSE mount: setuid programs work, and devices are made by overlayfs' own inodes.
pub(super) fn mount(device: &Device, at: &Path) -> io::Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    rustix::mount::mount(device.path(), at, TYPE, flags, None::<&CStr>)?;
    Ok(())
}

/// The loop device that is mounted as EROFS exactly here.
pub(super) fn device_at(at: &Path) -> Option<Device> {
    let stat = mount_root(at)?;
    let kind = rustix::fs::statfs(at).ok()?.f_type;
    if u64::try_from(kind).ok() != Some(MAGIC) {
        return None;
    }
    Device::numbered((stat.stx_dev_major, stat.stx_dev_minor))
}

/// Whether anything is mounted here.
pub(super) fn is_mounted(at: &Path) -> bool {
    mount_root(at).is_some()
}

/// From what the kernel knows: nothing is read.
fn mount_root(at: &Path) -> Option<Statx> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(CWD, at, flags, StatxFlags::empty()).ok()?;
    stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT).then_some(stat)
}

/// Unmounts; what is in use is taken out of sight, after `in_use` was told. Nothing there is fine.
pub(super) fn unmount(at: &Path, in_use: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match rustix::mount::unmount(at, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => {
            in_use()?;
            clear(at)
        }
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes everything that is mounted here out of sight. Nothing there is fine.
pub(super) fn clear(at: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // There may be several on top of one another.
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
