//! The socket that requests come in by.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::adopt::AdoptError;
use crate::args::{Address, DEFAULT_SOCKET};

/// A socket that is being listened on.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    /// Where it is and which inode it is, if we made it.
    own: Option<(PathBuf, u64)>,
}

/// Why there is no socket to serve on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A living process serves there.
    #[error("another process already serves on {}", .0.display())]
    Served(PathBuf),
    /// What is there is no socket, and not ours to remove.
    #[error("{} exists and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("failed to listen on {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What systemd passed cannot be used.
    #[error("failed to use the inherited socket")]
    Adopt(#[from] AdoptError),
    /// More sockets than the daemon knows what to do with.
    #[error("systemd passed {0} sockets, expected one")]
    Several(usize),
    /// What systemd passed is no listening socket.
    #[error("the inherited descriptor is no listening Unix socket")]
    Inherited(#[source] io::Error),
}

// === impl Socket ===

impl Socket {
    /// Listens where `address` says. A socket that nobody serves is replaced; one that somebody serves is left alone. `fd://` without a socket
    /// from systemd falls back to the default path.
    pub(super) fn open(address: &Address, mut inherited: Vec<OwnedFd>) -> Result<Socket, SocketError> {
        match address {
            Address::Path(path) => Socket::bind(path),
            Address::Inherited if inherited.len() > 1 => Err(SocketError::Several(inherited.len())),
            Address::Inherited => match inherited.pop() {
                Some(descriptor) => {
                    let listener = UnixListener::from(descriptor);
                    listener.local_addr().map_err(SocketError::Inherited)?;
                    Ok(Socket { listener, own: None })
                }
                None => Socket::bind(Path::new(DEFAULT_SOCKET)),
            },
        }
    }

    fn bind(path: &Path) -> Result<Socket, SocketError> {
        let failed = |source| SocketError::Listen { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match greet(path) {
                Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed)?,
                Err(Errno::NOENT) => {}
                // Full backlog or not: somebody listens.
                Ok(()) | Err(_) => return Err(SocketError::Served(path.to_owned())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o711).create(directory).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Socket { listener, own: Some((path.to_owned(), inode)) })
    }

    /// Where it is; none for one without a name.
    pub(super) fn address(&self) -> Option<PathBuf> {
        self.listener.local_addr().ok()?.as_pathname().map(Path::to_owned)
    }

    /// What has to be removed in the end.
    pub(super) fn remove_later(&self) -> Remove {
        Remove(self.own.clone())
    }
}

/// Connects to whoever listens there, unless he would have to be waited for.
fn greet(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

/// Removes a socket file that is still the one we made.
#[derive(Debug)]
pub(super) struct Remove(Option<(PathBuf, u64)>);

impl Drop for Remove {
    fn drop(&mut self) {
        if let Some((path, inode)) = self.0.take()
            && fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.ino() == inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/s.sock");
        let address = Address::Path(path.clone());
        let first = Socket::open(&address, Vec::new()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(Socket::open(&address, Vec::new()), Err(SocketError::Served(_))));
        drop(first);
        assert!(path.exists());
        let second = Socket::open(&address, Vec::new()).unwrap();
        drop(second.remove_later());
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::open(&address, Vec::new()), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn one_whose_backlog_is_full_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let busy =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&busy, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&busy, 0).unwrap();
        // Nobody accepts them, and a connection that its client has dropped still counts.
        let full = (0..100).find_map(|_| greet(&path).err()).unwrap();
        assert_eq!(full, Errno::AGAIN);
        assert!(matches!(Socket::open(&Address::Path(path), Vec::new()), Err(SocketError::Served(_))));
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Path(dir.path().join("s.sock"));
        let first = Socket::open(&address, Vec::new()).unwrap();
        let remove = first.remove_later();
        drop(first);
        let second = Socket::open(&address, Vec::new()).unwrap();
        if second.own.as_ref().map(|own| own.1) != remove.0.as_ref().map(|own| own.1) {
            drop(remove);
            assert!(dir.path().join("s.sock").exists());
        }
    }
}
