//! Going on with a connection whose hand-shake is long over.
//!
//! fuser knows no such thing, so it is shown one: on a pair of sockets we play the kernel and offer exactly what the real one and our
//! predecessor agreed on. Then the session's descriptor is made to stand for the real device, and the kernel is told to send again what it
//! never got an answer to (`FUSE_NOTIFY_RESEND`, Linux 6.9). Before that version requests that were under way are ended (`unanswered`).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use fuser::{Config, InitFlags, Session, SessionACL};
use rustix::io::Errno;
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

/// Whether the kernel can send requests again.
pub(super) fn can_resend(agreed: Agreed) -> bool {
    agreed.flags & InitFlags::FUSE_HAS_RESEND.bits() != 0
}

/// Asks for everything that was never answered, where the kernel can.
pub(super) fn resend(session: &Session<LayerFs>) -> io::Result<()> {
    rustix::io::write(session.as_fd(), &answer(RESEND, 0))?;
    Ok(())
}

/// What ends a request with an error.
pub(super) fn refusal(number: u64, error: Errno) -> [u8; ANSWER] {
    answer(error.raw_os_error().saturating_neg(), number)
}

/// `fuse_out_header` with nothing behind it.
fn answer(error: i32, number: u64) -> [u8; ANSWER] {
    let mut bytes = [0; ANSWER];
    let (length, rest) = bytes.split_at_mut(4);
    let (code, unique) = rest.split_at_mut(4);
    length.copy_from_slice(&(ANSWER as u32).to_ne_bytes());
    code.copy_from_slice(&error.to_ne_bytes());
    unique.copy_from_slice(&number.to_ne_bytes());
    bytes
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
