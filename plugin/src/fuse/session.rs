//! The threads that answer the kernel.

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{Config, SessionACL};
use parking_lot::Mutex;

use super::adapter::LayerFs;
use super::{handshake, unanswered};
use crate::keeper::{Agreed, Hold};

/// Stack of the thread that only waits for fuser's own.
const STACK: usize = 128 << 10;

/// A running session. It ends when the kernel closes the connection: when the last user of the mount has gone. Then the keeper lets go.
#[derive(Debug)]
pub(super) struct Session {
    thread: JoinHandle<io::Result<()>>,
    ended: Receiver<()>,
    rest: Rest,
}

/// What is dropped when the session has ended and nobody here has it any more.
type Rest = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

impl Session {
    /// Shakes hands with the kernel, then answers on `threads` threads until it hangs up.
    pub(super) fn start(
        fs: LayerFs,
        device: OwnedFd,
        threads: usize,
        name: String,
        hold: Arc<Hold>,
    ) -> io::Result<Session> {
        let (agreed, asked) = (fs.agreed(), fs.asked());
        let session = fuser::Session::from_fd(fs, device, SessionACL::All, config(threads))?;
        if let Some(agreed) = agreed.get() {
            hold.ready(*agreed);
            if !handshake::can_resend(*agreed) {
                asked.begin(None);
            }
        }
        Session::run(session, name, hold)
    }

    /// Goes on where a process that has ended stopped; `earlier` is what its record says of [`MountRecord::asked`](crate::keeper::MountRecord::asked).
    pub(super) fn resume(
        fs: LayerFs,
        device: &OwnedFd,
        agreed: Agreed,
        earlier: Option<u64>,
        threads: usize,
        name: String,
        hold: Arc<Hold>,
    ) -> io::Result<Session> {
        let asked = fs.asked();
        let session = handshake::resume(fs, device, agreed, config(threads))?;
        if handshake::can_resend(agreed) {
            handshake::resend(&session).or_else(gone)?;
        } else if let Some(earlier) = earlier {
            let ended = unanswered::end(device, earlier, &asked)?;
            asked.begin(Some(earlier));
            tracing::info!(
                ended,
                "the kernel cannot send requests again; those under way ended with an error"
            );
        }
        Session::run(session, name, hold)
    }

    fn run(session: fuser::Session<LayerFs>, name: String, hold: Arc<Hold>) -> io::Result<Session> {
        let (sender, ended) = mpsc::channel();
        let rest = Rest::default();
        let to_the_end = Arc::clone(&rest);
        let run = move || {
            // Dropped at the end, also by a panic.
            let (_sender, _rest) = (sender, to_the_end);
            let result = session.run();
            hold.release();
            result
        };
        let thread = thread::Builder::new().name(name).stack_size(STACK).spawn(run)?;
        Ok(Session { thread, ended, rest })
    }

    /// Has something live until the session has ended.
    pub(super) fn keep(&self, rest: impl Any + Send) {
        *self.rest.lock() = Some(Box::new(rest));
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

/// A connection that has ended meanwhile has nothing to send again; its session ends at once.
fn gone(error: io::Error) -> io::Result<()> {
    if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NODEV) {
        Ok(())
    } else {
        Err(error)
    }
}

fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads.max(1));
    // Requests on a descriptor of its own would be lost with this process.
    config.clone_fd = false;
    config
}
