//! What daemon and keeper say to each other: packets of a Unix socket, each with at most two descriptors.
//!
//! | packet | bytes | descriptors | answer |
//! |---|---|---|---|
//! | `Hello` | 1, [`VERSION`] | | `Done` |
//! | `Hold` | 2, name | 1 or 2 | `Done`, or `Refused` |
//! | `Release` | 3, name | | `Done`, also where nothing has that name |
//! | `Next` | 4, name or nothing | | `Held`: the first name behind that one; `Done` at the end |
//! | `End` | 5 | | `Done`, and the keeper is gone |
//! | `Done` | 129 | | |
//! | `Refused` | 130 | | |
//! | `Held` | 131, name | 1 or 2 | |
//!
//! A daemon of another version talks to a keeper of this one, so these stay as they are.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::Name;

/// Of this protocol.
pub(super) const VERSION: u8 = 1;
/// Descriptors in one packet.
pub(super) const MAX_DESCRIPTORS: usize = 2;
/// Bytes of the longest packet.
const MAX_PACKET: usize = 1 + Name::MAX;

/// One packet, without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Hello(u8),
    Hold(Name),
    Release(Name),
    Next(Option<Name>),
    End,
    Done,
    Refused,
    Held(Name),
}

// === impl Packet ===

impl Packet {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, rest): (u8, &[u8]) = match self {
            Packet::Hello(version) => (1, std::slice::from_ref(version)),
            Packet::Hold(name) => (2, name.as_bytes()),
            Packet::Release(name) => (3, name.as_bytes()),
            Packet::Next(after) => (4, after.as_ref().map_or(&[], Name::as_bytes)),
            Packet::End => (5, &[]),
            Packet::Done => (129, &[]),
            Packet::Refused => (130, &[]),
            Packet::Held(name) => (131, name.as_bytes()),
        };
        [&[kind], rest].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Packet> {
        let (kind, rest) = bytes.split_first()?;
        let name = || Name::from_bytes(rest);
        Some(match (kind, rest) {
            (1, [version]) => Packet::Hello(*version),
            (2, _) => Packet::Hold(name()?),
            (3, _) => Packet::Release(name()?),
            (4, []) => Packet::Next(None),
            (4, _) => Packet::Next(Some(name()?)),
            (5, []) => Packet::End,
            (129, []) => Packet::Done,
            (130, []) => Packet::Refused,
            (131, _) => Packet::Held(name()?),
            _ => return None,
        })
    }
}

/// Sends a packet with its descriptors. The other side's end is an error, not a signal.
pub(super) fn send(socket: impl AsFd, packet: &Packet, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The space may have room for one more, which the other side's would not have.
    let fits = descriptors.len() <= MAX_DESCRIPTORS;
    if !fits || (!descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))) {
        return Err(io::Error::other("too many descriptors for a packet"));
    }
    let bytes = packet.encode();
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives a packet; none at the other side's end.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<(Packet, Vec<OwnedFd>)>> {
    let mut bytes = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(&socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    let cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if cut || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet that is too long"));
    }
    let packet = bytes.get(..received.bytes).and_then(Packet::decode);
    let packet = packet.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an unknown packet"))?;
    Ok(Some((packet, descriptors)))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn packets_come_back() {
        let name = Name::from_bytes(b"soci-mount-1").unwrap();
        for packet in [
            Packet::Hello(7),
            Packet::Hold(name.clone()),
            Packet::Release(name.clone()),
            Packet::Next(None),
            Packet::Next(Some(name.clone())),
            Packet::End,
            Packet::Done,
            Packet::Refused,
            Packet::Held(name),
        ] {
            assert_eq!(Packet::decode(&packet.encode()), Some(packet));
        }
        for bad in [&b""[..], b"\x01", b"\x02", b"\x02a:b", b"\x05x", b"\x63", &[2; 70]] {
            assert_eq!(Packet::decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_too_long_or_too_much_is_refused() {
        let (a, b) = pair();
        rustix::io::write(&a, &[2; MAX_PACKET + 1]).unwrap();
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(send(&a, &Packet::Done, &[a.as_fd(); MAX_DESCRIPTORS + 1]).is_err());
        drop(a);
        assert!(receive(&b).unwrap().is_none());
        assert!(send(&b, &Packet::Done, &[]).is_err());
    }

    #[test]
    fn descriptors_travel_and_are_not_inherited() {
        let (a, b) = pair();
        send(&a, &Packet::Done, &[a.as_fd(), b.as_fd()]).unwrap();
        let (packet, descriptors) = receive(&b).unwrap().unwrap();
        assert_eq!((packet, descriptors.len()), (Packet::Done, 2));
        let flags = rustix::io::fcntl_getfd(&descriptors[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}
