//! The threads that answer the kernel.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{Config, SessionACL};

use super::adapter::LayerFs;

/// Stack of the thread that only waits for fuser's own.
const STACK: usize = 128 << 10;

/// A running session. It ends when the kernel closes the connection: when the last user of the mount has gone.
#[derive(Debug)]
pub(super) struct Session {
    thread: JoinHandle<io::Result<()>>,
    ended: Receiver<()>,
}

impl Session {
    /// Shakes hands with the kernel, then answers on `threads` threads until it hangs up.
    pub(super) fn start(fs: LayerFs, device: OwnedFd, threads: usize, name: String) -> io::Result<Session> {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads.max(1));
        let session = fuser::Session::from_fd(fs, device, SessionACL::All, config)?;
        let (sender, ended) = mpsc::channel();
        let run = move || {
            // Dropped at the end, also by a panic.
            let _sender = sender;
            session.run()
        };
        let thread = thread::Builder::new().name(name).stack_size(STACK).spawn(run)?;
        Ok(Session { thread, ended })
    }

    /// Waits for the end; gives the session back if it goes on.
    pub(super) fn join(self, deadline: Duration) -> Result<io::Result<()>, Session> {
        match self.ended.recv_timeout(deadline) {
            Err(RecvTimeoutError::Timeout) => Err(self),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                Ok(self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the session panicked"))))
            }
        }
    }
}
