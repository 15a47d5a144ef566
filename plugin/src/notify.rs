//! systemd's notification protocol (`sd_notify(3)`): a datagram to the socket in `NOTIFY_SOCKET`.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

/// Descriptors in one message.
pub(crate) const MAX_DESCRIPTORS: usize = 2;

/// For room among what the service manager has not read yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the service manager wants to be told.
pub(crate) fn socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET")
}

/// Says `state` (`READY=1`, `STOPPING=1`) to whoever started us and wants to know.
pub(crate) fn notify(state: &str) {
    let Some(socket) = socket() else { return };
    if let Err(error) = send(&socket, state, &[]) {
        tracing::warn!(error = %error, state, "failed to notify the service manager");
    }
}

/// Says `state` to `socket`, with descriptors. Blocking, for two seconds at most.
///
/// # Errors
/// The system's; whether the other side does as told is not known.
pub(crate) fn send(socket: &OsStr, state: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(socket)?,
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for a message"));
    }
    let sender =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&sender, Timeout::Send, Some(PATIENCE))?;
    let text = [IoSlice::new(state.as_bytes())];
    rustix::net::sendmsg_addr(&sender, &address, &text, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    #[test]
    fn one_that_does_not_listen_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let error = (0..1_000_000).find_map(|_| send(path.as_os_str(), "READY=1", &[]).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn both_kinds_of_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("soci-test-{}", std::process::id());
        let named = UnixDatagram::bind(&path).unwrap();
        let unnamed = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (receiver, socket) in [(named, path.into_os_string()), (unnamed, format!("@{name}").into())] {
            send(&socket, "READY=1", &[]).unwrap();
            let mut buffer = [0; 32];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
    }
}
