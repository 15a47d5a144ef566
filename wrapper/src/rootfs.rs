//! Reading the account files of a container's root file system before the container runs.
//!
//! The snapshot is mounted for a moment in a temporary directory, as `ctr` does. Everything in it is the image's and may be hostile: paths are
//! resolved within it, only regular files of a sane size are read.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;
use thiserror::Error;

use crate::spec::user::Accounts;

/// Larger account files than this are not read, bytes.
const MAX_FILE: u64 = 16 << 20;

/// The kernel takes one page of mount options, less what it needs itself.
const MAX_OPTIONS: usize = 4000;

/// The root file system cannot be looked into.
#[derive(Debug, Error)]
pub(crate) enum RootfsError {
    #[error("cannot make a directory to mount the image in")]
    Directory(#[source] io::Error),
    #[error("cannot mount the image's {typ} snapshot for a look at its users")]
    Mount { typ: String, source: io::Error },
    #[error("cannot read {file} of the image")]
    Read { file: &'static str, source: io::Error },
    #[error("{file} of the image is larger than {MAX_FILE} bytes")]
    TooLarge { file: &'static str },
}

impl RootfsError {
    /// Whether a lazily loaded layer could not bring the bytes.
    pub(crate) fn is_input_output(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.raw_os_error() == Some(Errno::IO.raw_os_error()))
    }
}

/// Reads `/etc/passwd` and `/etc/group` of what these mounts make; blocks.
///
/// # Errors
/// They cannot be mounted, or a file is there but cannot be read. A file that is missing is empty.
pub(crate) fn accounts_of_snapshot(mounts: &[Mount]) -> Result<Accounts, RootfsError> {
    accounts_below(&root_of(mounts)?)
}

/// The root of what these mounts make. They are in nobody's mount table any more: should we end while a lazy layer lets us wait, nothing stays,
/// and what is mounted lives as long as the descriptor.
fn root_of(mounts: &[Mount]) -> Result<OwnedFd, RootfsError> {
    let mounted = Mounted::new(mounts)?;
    open_root(&mounted.target)
}

/// Reads `/etc/passwd` and `/etc/group` below `root`; blocks.
///
/// # Errors
/// A file is there but cannot be read.
pub(crate) fn accounts_of_directory(root: &Path) -> Result<Accounts, RootfsError> {
    accounts_below(&open_root(root)?)
}

fn open_root(root: &Path) -> Result<OwnedFd, RootfsError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty()).map_err(|errno| RootfsError::Directory(errno.into()))
}

fn accounts_below(root: &OwnedFd) -> Result<Accounts, RootfsError> {
    Ok(Accounts::parse(&read(root, "etc/passwd")?, &read(root, "etc/group")?))
}

fn read(root: impl AsFd, file: &'static str) -> Result<Vec<u8>, RootfsError> {
    let failed = |source: io::Error| RootfsError::Read { file, source };
    let Some(opened) = open_file(root, file).map_err(|errno| failed(errno.into()))? else {
        return Ok(Vec::new());
    };
    let mut bytes = Vec::new();
    File::from(opened).take(MAX_FILE.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE { Err(RootfsError::TooLarge { file }) } else { Ok(bytes) }
}

/// Opens a regular file with `root` as its root. Anything else in its place is as good as nothing: opening a fifo could block, opening a device do something.
fn open_file(root: impl AsFd, path: &str) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let itself = format!("/proc/self/fd/{}", place.as_raw_fd());
    rustix::fs::open(itself, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(Some)
}

/// A snapshot mounted read-only below a temporary directory, until this is dropped; a moment, since whoever is killed does not drop.
#[derive(Debug)]
struct Mounted {
    target: PathBuf,
    mounted: usize,
    _directory: TempDir,
}

impl Mounted {
    fn new(mounts: &[Mount]) -> Result<Self, RootfsError> {
        let directory =
            tempfile::Builder::new().prefix("soci-run-").tempdir().map_err(RootfsError::Directory)?;
        let target = directory.path().join("rootfs");
        std::fs::create_dir(&target).map_err(RootfsError::Directory)?;
        let mut mounted = Self { target, mounted: 0, _directory: directory };
        for mount in mounts {
            mounted.add(mount).map_err(|source| RootfsError::Mount { typ: mount.r#type.clone(), source })?;
        }
        Ok(mounted)
    }

    fn add(&mut self, mount: &Mount) -> io::Result<()> {
        let bind = mount.r#type == "bind"
            || mount.options.iter().any(|option| option == "bind" || option == "rbind");
        if bind {
            rustix::mount::mount_bind(&mount.source, &self.target)?;
        } else {
            let mut data = Vec::new();
            for option in mount.options.iter().filter(|option| !is_flag(option)) {
                data.push(option.clone());
            }
            if data.iter().map(|option| option.len().saturating_add(1)).sum::<usize>() > MAX_OPTIONS {
                data = self.shortened(data)?;
            }
            let data = std::ffi::CString::new(data.join(",")).map_err(io::Error::other)?;
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount(
                &mount.source,
                &self.target,
                mount.r#type.as_str(),
                flags,
                Some(data.as_c_str()),
            )?;
        }
        self.mounted = self.mounted.saturating_add(1);
        Ok(())
    }

    /// The same options with short symbolic links in place of an overlay's many long lower directories.
    fn shortened(&self, options: Vec<String>) -> io::Result<Vec<String>> {
        let links = self.target.parent().unwrap_or(&self.target);
        let mut short = Vec::new();
        for option in options {
            let Some(lower) = option.strip_prefix("lowerdir=") else {
                short.push(option);
                continue;
            };
            let mut names = Vec::new();
            for (number, directory) in lower.split(':').enumerate() {
                let link = links.join(number.to_string());
                std::os::unix::fs::symlink(directory, &link)?;
                names.push(link.to_str().map(str::to_owned).ok_or(io::ErrorKind::InvalidFilename)?);
            }
            short.push(format!("lowerdir={}", names.join(":")));
        }
        Ok(short)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..self.mounted {
            // Whoever has it open keeps it; it goes when they are done.
            let _ = rustix::mount::unmount(&self.target, UnmountFlags::DETACH);
        }
    }
}

/// Options that are flags of mount(2), not the file system's own.
fn is_flag(option: &str) -> bool {
    matches!(
        option,
        "ro" | "rw"
            | "suid"
            | "nosuid"
            | "dev"
            | "nodev"
            | "exec"
            | "noexec"
            | "sync"
            | "async"
            | "dirsync"
            | "atime"
            | "noatime"
            | "diratime"
            | "nodiratime"
            | "relatime"
            | "norelatime"
            | "strictatime"
            | "nostrictatime"
            | "defaults"
    )
}

/// The current directory as an anchor for relative paths on the command line.
pub(crate) fn absolute(path: &Path) -> io::Result<PathBuf> {
    let opened =
        rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    drop(opened);
    std::path::absolute(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::user::UserValue;
    use std::os::unix::fs::symlink;

    #[test]
    fn accounts_stay_within_the_root() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "spy:x:7:7::/:/bin/sh\n").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        symlink(outside.path().join("secret"), root.path().join("etc/passwd")).unwrap();
        let accounts = accounts_of_directory(root.path()).unwrap();
        assert!(UserValue("spy").resolve(&accounts).is_err());

        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        symlink("/usr/passwd", root.path().join("etc/passwd")).unwrap();
        std::fs::create_dir(root.path().join("usr")).unwrap();
        std::fs::write(root.path().join("usr/passwd"), "inside:x:8:9::/:/bin/sh\n").unwrap();
        let accounts = accounts_of_directory(root.path()).unwrap();
        assert_eq!(UserValue("inside").resolve(&accounts).unwrap().gid, 9);
    }

    /// As root.
    #[test]
    fn a_root_that_is_open_is_mounted_nowhere() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "inside:x:8:9::/:/bin/sh\n").unwrap();
        let mount = Mount {
            r#type: "bind".to_owned(),
            source: root.path().display().to_string(),
            ..Mount::default()
        };
        let opened = root_of(&[mount.clone(), mount]).unwrap();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let source = root.path().display().to_string();
        assert!(!table.lines().any(|line| line.contains("/soci-run-") && line.contains(&source)), "{table}");
        let accounts = accounts_below(&opened).unwrap();
        assert_eq!(UserValue("inside").resolve(&accounts).unwrap().gid, 9);
    }

    #[test]
    fn a_fifo_in_place_of_the_file_does_not_block() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let path = root.path().join("etc/passwd");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(UserValue("root").resolve(&accounts_of_directory(root.path()).unwrap()).is_err());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "text").unwrap();
        symlink("/file", folder.path().join("link")).unwrap();
        let (fifo, device) = (folder.path().join("fifo"), folder.path().join("device"));
        rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, device, FileType::CharacterDevice, Mode::RUSR, null).unwrap();
        let root = File::open(folder.path()).unwrap();
        for (name, opens) in
            [("file", true), ("link", true), ("fifo", false), ("device", false), ("", false), ("none", false)]
        {
            assert_eq!(open_file(&root, &format!("/{name}")).unwrap().is_some(), opens, "{name}");
        }
    }

    #[test]
    fn nothing_there_is_no_users() {
        let root = tempfile::tempdir().unwrap();
        assert!(UserValue("root").resolve(&accounts_of_directory(root.path()).unwrap()).is_err());
    }
}
