//! Device nodes and the device rules of the container's control group.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{FileType, Mode, Stat};
use thiserror::Error;

/// More nodes than this below one directory are not handed to a container.
const MAX_DEVICES: usize = 4096;

/// Directories and files in `/dev` that `--privileged` leaves out: the container has its own, or they are no devices.
const NOT_FOR_CONTAINERS: [&str; 8] = [
    "/dev/pts",
    "/dev/shm",
    "/dev/fd",
    "/dev/mqueue",
    "/dev/console",
    "/dev/.lxc",
    "/dev/.lxd-mounts",
    "/dev/.udev",
];

/// A `--device` that cannot be handed to a container.
#[derive(Debug, Error)]
pub(crate) enum DeviceError {
    #[error("cannot read device {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a device", path.display())]
    NotADevice { path: PathBuf },
    #[error("more than {MAX_DEVICES} devices in {}", path.display())]
    TooMany { path: PathBuf },
}

/// The node at `path`, or every node below it when it is a directory.
///
/// # Errors
/// There is nothing, or something that is neither device nor directory.
pub(super) fn at(path: &Path) -> Result<Vec<LinuxDevice>, DeviceError> {
    let stat = stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return below(path, &[]);
    }
    node(path, &stat)
        .map(|device| vec![device])
        .ok_or_else(|| DeviceError::NotADevice { path: path.to_owned() })
}

/// Every device node of the host, as `--privileged` hands them on.
pub(super) fn of_the_host() -> Result<Vec<LinuxDevice>, DeviceError> {
    below(Path::new("/dev"), &NOT_FOR_CONTAINERS)
}

fn below(root: &Path, skip: &[&str]) -> Result<Vec<LinuxDevice>, DeviceError> {
    let mut devices = Vec::new();
    let mut directories = VecDeque::from([root.to_owned()]);
    while let Some(directory) = directories.pop_front() {
        let read = |source| DeviceError::Read { path: directory.clone(), source };
        for entry in std::fs::read_dir(&directory).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if skip.iter().any(|skip| path == Path::new(skip)) {
                continue;
            }
            // A node may vanish between the listing and this.
            let Ok(stat) = rustix::fs::lstat(&path) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                directories.push_back(path);
            } else if let Some(device) = node(&path, &stat) {
                devices.push(device);
            }
            if devices.len() > MAX_DEVICES || directories.len() > MAX_DEVICES {
                return Err(DeviceError::TooMany { path: root.to_owned() });
            }
        }
    }
    Ok(devices)
}

fn stat(path: &Path) -> Result<Stat, DeviceError> {
    rustix::fs::stat(path).map_err(|errno| DeviceError::Read { path: path.to_owned(), source: errno.into() })
}

fn node(path: &Path, stat: &Stat) -> Option<LinuxDevice> {
    let typ = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => LinuxDeviceType::C,
        FileType::BlockDevice => LinuxDeviceType::B,
        _ => return None,
    };
    let mut device = LinuxDevice::default();
    device
        .set_path(path.to_owned())
        .set_typ(typ)
        .set_major(i64::from(rustix::fs::major(stat.st_rdev)))
        .set_minor(i64::from(rustix::fs::minor(stat.st_rdev)))
        .set_file_mode(Some(Mode::from_raw_mode(stat.st_mode).bits()))
        .set_uid(Some(stat.st_uid))
        .set_gid(Some(stat.st_gid));
    Some(device)
}

/// Denies every device: the first rule of every container.
pub(super) fn deny_all() -> LinuxDeviceCgroup {
    rule(false, None, None, None, "rwm")
}

/// Allows every device: `--privileged`.
pub(super) fn allow_all() -> LinuxDeviceCgroup {
    rule(true, None, None, None, "rwm")
}

/// Allows all access to this node.
pub(super) fn allow(device: &LinuxDevice) -> LinuxDeviceCgroup {
    rule(true, Some(device.typ()), Some(device.major()), Some(device.minor()), "rwm")
}

/// The rules of containerd's `oci.WithDefaultUnixDevices`: any node may be made, the harmless ones may be used.
pub(super) fn default_rules() -> Vec<LinuxDeviceCgroup> {
    // (major, minor): null, random, full, tty, zero, urandom, console, every pseudo-terminal, ptmx.
    const USABLE: [(i64, Option<i64>); 9] = [
        (1, Some(3)),
        (1, Some(8)),
        (1, Some(7)),
        (5, Some(0)),
        (1, Some(5)),
        (1, Some(9)),
        (5, Some(1)),
        (136, None),
        (5, Some(2)),
    ];
    let mut rules = vec![
        rule(true, Some(LinuxDeviceType::C), None, None, "m"),
        rule(true, Some(LinuxDeviceType::B), None, None, "m"),
    ];
    rules
        .extend(USABLE.map(|(major, minor)| rule(true, Some(LinuxDeviceType::C), Some(major), minor, "rwm")));
    rules
}

fn rule(
    allow: bool,
    typ: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_typ(typ).set_major(major).set_minor(minor).set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_from_the_host() {
        let null = at(Path::new("/dev/null")).unwrap();
        assert_eq!((null[0].typ(), null[0].major(), null[0].minor()), (LinuxDeviceType::C, 1, 3));
        assert_eq!(allow(&null[0]).minor(), Some(3));
    }

    #[test]
    fn what_is_no_device_is_an_error() {
        assert!(matches!(at(Path::new("/proc/self/status")), Err(DeviceError::NotADevice { .. })));
        assert!(matches!(at(Path::new("/nowhere")), Err(DeviceError::Read { .. })));
    }

    #[test]
    fn privileged_gets_the_hosts_devices_but_not_its_console() {
        let devices = of_the_host().unwrap();
        assert!(devices.iter().any(|device| device.path().as_os_str() == "/dev/null"));
        assert!(!devices.iter().any(|device| device.path().as_os_str() == "/dev/console"));
        assert!(!devices.iter().any(|device| device.path().starts_with("/dev/pts")));
    }
}
