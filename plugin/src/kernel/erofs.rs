//! EROFS mounts: of loop devices, and of files without one.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::device::Device;
use crate::mountinfo::MountInfo;

const TYPE: &str = "erofs";
/// `EROFS_SUPER_MAGIC_V1` of `linux/magic.h`.
const MAGIC: u64 = 0xE0F5_E1E2;

/// Mounts a device. Like the FUSE mount: setuid programs work, and devices are made by overlayfs' own inodes.
pub(super) fn mount(device: &Device, at: &Path) -> io::Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    rustix::mount::mount(device.path(), at, TYPE, flags, None::<&CStr>)?;
    Ok(())
}

/// Mounts a file of the local disk without a device between (Linux 6.12).
pub(super) fn mount_file(file: &Path, at: &Path) -> io::Result<()> {
    move_mount(&of_file(file)?, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// The same in the place of what is mounted here already, which is out of sight in the same moment; whoever uses it goes on with it. Fails where
/// nothing is: somebody has unmounted it meanwhile, and would not hear of a new one.
pub(super) fn replace_by_file(file: &Path, at: &Path) -> io::Result<()> {
    let place = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    // There is no moment without a mount: who starts a container now gets one or the other.
    move_mount(&of_file(file)?, "", CWD, at, place)?;
    match rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// EROFS of a file, mounted nowhere yet.
fn of_file(file: &Path) -> io::Result<OwnedFd> {
    let context = fsopen(TYPE, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_set_string(&context, "source", file)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The file that is mounted as EROFS exactly here, without a device.
pub(super) fn file_at(at: &Path) -> Option<PathBuf> {
    // The table of all mounts is long where there are many containers: it is read only where it has the answer.
    if !is_mounted(at) || device_at(at).is_some() {
        return None;
    }
    let mounts = MountInfo::all().ok()?;
    let mount = mounts.into_iter().rfind(|mount| mount.point == at)?;
    (mount.kind == TYPE.as_bytes()).then_some(mount.source)
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
    loop {
        match rustix::mount::unmount(at, UnmountFlags::NOFOLLOW) {
            // There is another below if somebody was killed while he exchanged them.
            Ok(()) => {}
            Err(Errno::BUSY) => {
                in_use()?;
                return clear(at);
            }
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use erofs_image::{NewImage, TreeBuilder};

    use super::*;

    fn points(at: &Path) -> usize {
        MountInfo::all().unwrap().iter().filter(|mount| mount.point == at).count()
    }

    fn image(folder: &Path) -> PathBuf {
        let mut bytes = NewImage::of(TreeBuilder::new().finish(), 0).unwrap().metadata();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        fs::write(folder.join("image"), bytes).unwrap();
        folder.join("image")
    }

    /// Somebody was faster with his unmount.
    #[test]
    fn nothing_is_replaced_where_nothing_is() {
        let folder = tempfile::tempdir().unwrap();
        let (image, at) = (image(folder.path()), folder.path().join("at"));
        fs::create_dir(&at).unwrap();
        assert!(replace_by_file(&image, &at).is_err());
        assert_eq!(points(&at), 0);
        // Where this machine mounts files at all.
        if mount_file(&image, &at).is_ok() {
            let first = mount_root(&at).unwrap().stx_dev_minor;
            replace_by_file(&image, &at).unwrap();
            assert_eq!(points(&at), 1);
            assert_ne!(mount_root(&at).unwrap().stx_dev_minor, first);
            clear(&at).unwrap();
        }
    }

    #[test]
    fn nothing_stays_of_several_on_top_of_one_another() {
        let folder = tempfile::tempdir().unwrap();
        let (image, at) = (image(folder.path()), folder.path().join("a b"));
        fs::create_dir(&at).unwrap();
        for _ in 0..2 {
            mount(&Device::over(&File::open(&image).unwrap(), 64, false).unwrap(), &at).unwrap();
        }
        assert_eq!((points(&at), file_at(&at)), (2, None));
        assert!(device_at(&at).is_some());
        unmount(&at, || panic!("nobody uses them")).unwrap();
        assert_eq!(points(&at), 0);
        assert!(!is_mounted(&at));
        unmount(&at, || panic!("nothing is there")).unwrap();
    }
}
