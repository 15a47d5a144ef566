//! Going on with a connection whose hand-shake is long over.
//!
//! fuser knows no such thing, so it is shown one: on a pair of sockets we play the kernel and offer exactly what the real one and our
//! predecessor agreed on. Then the session's descriptor is made to stand for the real device, and the kernel is told to send again what it
//! never got an answer to (`FUSE_NOTIFY_RESEND`, Linux 6.9). Before that version requests that were under way stay without an answer.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use fuser::{Config, InitFlags, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::adapter::LayerFs;
use crate::adopt;
use crate::keeper::Agreed;

/// `fuse_in_header` and `fuse_init_in` of `linux/fuse.h`, bytes.
const REQUEST: u32 = 104;
/// `FUSE_INIT`.
const INIT: u32 = 26;
/// `FUSE_INIT_EXT`: there are flags beyond the 32nd bit.
const EXTENDED: u64 = 1 << 30;
/// Nobody reads the answer, so that this is only a number that is always possible.
const MAX_READAHEAD: u32 = 128 << 10;
/// `FUSE_NOTIFY_RESEND`.
const RESEND: i32 = 7;
/// `fuse_out_header`, bytes.
const ANSWER: usize = 16;

/// A session on a connection of somebody who has ended. Nothing that he owed the kernel is asked for yet: see [`resend`].
pub(super) fn resume(
    fs: LayerFs,
    device: &OwnedFd,
    agreed: Agreed,
    config: Config,
) -> io::Result<Session<LayerFs>> {
    let (kernel, daemon) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&kernel, &request(agreed))?;
    let session = Session::from_fd(fs, daemon, SessionACL::All, config)?;
    let mut answer = [0; 256];
    if rustix::io::read(&kernel, &mut answer)? <= ANSWER {
        return Err(io::Error::other("no answer to FUSE_INIT"));
    }
    adopt::replace(session.as_fd(), device)?;
    Ok(session)
}

/// Asks for everything that was never answered. False where the kernel cannot.
pub(super) fn resend(session: &Session<LayerFs>, agreed: Agreed) -> io::Result<bool> {
    if agreed.flags & InitFlags::FUSE_HAS_RESEND.bits() == 0 {
        return Ok(false);
    }
    let mut notification = Vec::from((ANSWER as u32).to_ne_bytes());
    notification.extend(RESEND.to_ne_bytes());
    notification.extend(0_u64.to_ne_bytes());
    rustix::io::write(session.as_fd(), &notification)?;
    Ok(true)
}

fn request(agreed: Agreed) -> Vec<u8> {
    let flags = agreed.flags | EXTENDED;
    let mut bytes = Vec::with_capacity(REQUEST as usize);
    bytes.extend([REQUEST, INIT].map(u32::to_ne_bytes).concat());
    // unique, node
    bytes.extend([2_u64, 0].map(u64::to_ne_bytes).concat());
    // user, group, process, length of extensions
    bytes.extend([0; 16]);
    let halves = [flags as u32, (flags >> 32) as u32];
    bytes.extend([agreed.major, agreed.minor, MAX_READAHEAD].map(u32::to_ne_bytes).concat());
    bytes.extend(halves.map(u32::to_ne_bytes).concat());
    bytes.resize(REQUEST as usize, 0);
    bytes
}
