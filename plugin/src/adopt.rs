//! Descriptors by their numbers: those that come from outside (`sd_listen_fds(3)`), one that changes what it stands for, and those that the kernel
//! takes over for good ([`LoopDevice`]).
//!
//! The only modules of the daemon with unsafe code, this one and the one below: a number in an environment variable becomes an owned descriptor, and a loop
//! device is told by ioctl(2) which descriptor it goes by.
#![allow(unsafe_code, reason = "handing descriptors over by number has no safe form")]

mod loop_device;

pub use loop_device::{LoopBacking, LoopControl, LoopDevice};

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{DupFlags, FdFlags};

/// The first descriptor that systemd passes; the others follow it.
const FIRST: RawFd = 3;
/// More than any service is ever given.
const MAX: usize = 1 << 20;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// What was passed is not what was announced.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// What was passed is no open descriptor.
    #[error("descriptor {number}, which systemd should have passed")]
    Closed {
        /// Which.
        number: RawFd,
        /// What the system says to it.
        source: io::Error,
    },
    /// Asked for a second time.
    #[error("the inherited descriptors are taken already")]
    Taken,
    /// More than there can be.
    #[error("systemd passed {0} descriptors")]
    TooMany(usize),
}

/// The descriptors that systemd passed to this process, each with its name (`LISTEN_FDNAMES`; empty without one).
///
/// # Errors
/// [`AdoptError`].
pub fn inherited() -> Result<Vec<(String, OwnedFd)>, AdoptError> {
    let variable = |name: &str| std::env::var(name).ok();
    // The variables are inherited further than they are meant to be.
    let ours = variable("LISTEN_PID").and_then(|text| text.parse().ok()) == Some(std::process::id());
    let count: usize =
        variable("LISTEN_FDS").filter(|_| ours).and_then(|text| text.parse().ok()).unwrap_or(0);
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > MAX {
        return Err(AdoptError::TooMany(count));
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(AdoptError::Taken);
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    let mut adopted = Vec::new();
    for (number, name) in (FIRST..).zip(names).take(count) {
        fs::symlink_metadata(format!("/proc/self/fd/{number}"))
            .map_err(|source| AdoptError::Closed { number, source })?;
        // SAFETY: systemd says, to this process by its id, that it passes this descriptor; it is open (checked above), nothing in this program
        // opened or uses it, and `TAKEN` sees to it that it is owned once.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        adopted.push((name, descriptor));
    }
    Ok(adopted)
}

/// Keeps what this process inherited (a lock that a shell holds, a pipe) from the programs that it starts. What cannot be changed stays.
pub fn keep_to_ourselves() {
    let numbers = fs::read_dir("/proc/self/fd").into_iter().flatten().filter_map(|entry| {
        entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok().filter(|number| *number >= FIRST)
    });
    for number in numbers.collect::<Vec<_>>() {
        // SAFETY: the descriptor is borrowed for this one call, which neither closes it nor uses what it stands for; a number that is no longer
        // open gives EBADF.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
}

/// Makes the descriptor `number`, which its owner keeps and closes, stand for what `source` stands for.
///
/// # Errors
/// The system's; nothing has changed then.
pub fn replace(number: BorrowedFd<'_>, source: &OwnedFd) -> io::Result<()> {
    // SAFETY: the number is open and stays so: dup3 closes what it stood for and opens it again in one step. `ManuallyDrop` leaves closing
    // it to its owner.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number.as_raw_fd()) });
    rustix::io::dup3(source.as_fd(), &mut target, DupFlags::CLOEXEC)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            fs::File::open(path).unwrap()
        });
        let number = first.as_raw_fd();
        replace(first.as_fd(), &OwnedFd::from(second)).unwrap();
        assert_eq!(first.as_raw_fd(), number);
        assert_eq!(io::read_to_string(&first).unwrap(), "second");
        let flags = rustix::io::fcntl_getfd(&first).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
    }
}
