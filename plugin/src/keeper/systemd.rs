//! systemd's descriptor store (`sd_pid_notify_with_fds(3)`, `FileDescriptorStoreMax=`): systemd is the keeper.
//!
//! What it holds comes back in the environment of the next daemon ([`adopt::inherited`](crate::adopt::inherited)).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{HoldError, Name};
use crate::notify;

/// The store of the service that this process is.
#[derive(Debug)]
pub(super) struct FdStore {
    socket: OsString,
    /// Descriptors that fit.
    max: usize,
    names: BTreeSet<Name>,
    /// How long systemd may take to have read what it was sent.
    answer: Duration,
}

// === impl FdStore ===

impl FdStore {
    /// One that the next daemon finds whatever becomes of this one. systemd says so with `FDSTORE` (from version 254 on); none where this process is
    /// not a service with such a store.
    pub(super) fn that_stays(answer: Duration) -> Option<FdStore> {
        FdStore::told_by("FDSTORE", answer)
    }

    /// One that is emptied when the service is stopped: before 254, where systemd says nothing of its store, and the unit does.
    pub(super) fn until_stopped(answer: Duration) -> Option<FdStore> {
        FdStore::told_by("SOCI_FDSTORE_UNTIL_STOPPED", answer)
    }

    fn told_by(variable: &str, answer: Duration) -> Option<FdStore> {
        let max = std::env::var(variable).ok()?.parse().ok().filter(|max| *max > 0)?;
        Some(FdStore { socket: notify::socket()?, max, names: BTreeSet::new(), answer })
    }

    pub(super) fn holds(&self, name: &Name) -> bool {
        self.names.contains(name)
    }

    /// What it has from before.
    pub(super) fn has(&mut self, name: Name) {
        self.names.insert(name);
    }

    /// Returns when systemd has read it, so that a death of this process changes nothing any more.
    pub(super) fn hold(&mut self, name: Name, descriptors: &[OwnedFd]) -> Result<(), HoldError> {
        // The socket that it listens on is not in the store; every name has two descriptors at most.
        if (self.names.len() + 1) * notify::MAX_DESCRIPTORS > self.max {
            return Err(HoldError::Full);
        }
        // It must not look at them: a FUSE device that is not mounted yet polls as broken.
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        let descriptors: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        notify::send(&self.socket, &message, &descriptors).map_err(HoldError::System)?;
        self.barrier().map_err(HoldError::System)?;
        self.names.insert(name);
        Ok(())
    }

    pub(super) fn release(&mut self, name: &Name) -> io::Result<()> {
        if !self.names.remove(name) {
            return Ok(());
        }
        notify::send(&self.socket, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    pub(super) fn end(&mut self) -> io::Result<()> {
        while let Some(name) = self.names.first().cloned() {
            self.release(&name)?;
        }
        self.barrier()
    }

    /// Waits until everything that was sent is read (`BARRIER=1`): systemd closes the pipe when it comes to it.
    fn barrier(&self) -> io::Result<()> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        notify::send(&self.socket, "BARRIER=1", &[writer.as_fd()])?;
        drop(writer);
        let mut polled = [PollFd::new(&reader, PollFlags::empty())];
        let timeout = Timespec::try_from(self.answer).map_err(io::Error::other)?;
        match rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&timeout)))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}
