//! Descriptors that come from outside: the socket that systemd passes (`sd_listen_fds(3)`); and those that the kernel takes over for good
//! ([`LoopDevice`]).
//!
//! The only module of the daemon with unsafe code: a number in an environment variable becomes an owned descriptor, and a loop device is told
//! by ioctl(2) which descriptor it goes by.
#![allow(unsafe_code, reason = "handing descriptors over by number has no safe form")]

mod loop_device;

pub use loop_device::{LoopBacking, LoopControl, LoopDevice};

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that systemd passes; the others follow it.
const FIRST: RawFd = 3;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// More sockets than the daemon knows what to do with.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Not exactly one.
    #[error("systemd passed {0} sockets, expected one")]
    Several(u32),
    /// What was passed is no open descriptor.
    #[error("descriptor {FIRST}, which systemd should have passed")]
    Closed(#[source] std::io::Error),
    /// Asked for a second time.
    #[error("the inherited socket is taken already")]
    Taken,
}

/// The one socket that systemd passed to this process; none where it passed none.
///
/// # Errors
/// [`AdoptError`].
pub fn inherited_socket() -> Result<Option<OwnedFd>, AdoptError> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    // The variables are inherited further than they are meant to be.
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => {
            if TAKEN.swap(true, Ordering::SeqCst) {
                return Err(AdoptError::Taken);
            }
            std::fs::metadata(format!("/proc/self/fd/{FIRST}")).map_err(AdoptError::Closed)?;
            // SAFETY: systemd says, to this process by its id, that descriptor 3 is the socket it passes; it is open (checked above), nothing
            // in this program opened or uses it, and `TAKEN` sees to it that it is owned once.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(FIRST) }))
        }
        Some(several) => Err(AdoptError::Several(several)),
    }
}
