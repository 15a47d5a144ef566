//! Ctrl-C and its relatives.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// From the first of these on, a signal does not end the process: it ends the work that is being done [`Interrupts::unless`] one comes.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interrupts {
    /// Starts to listen.
    ///
    /// # Errors
    /// The runtime has no signals to offer.
    pub(crate) fn listen() -> Result<Interrupts, Error> {
        let hook =
            |kind| signal(kind).map_err(|source| Error::Io { what: "wait for signals".to_owned(), source });
        Ok(Interrupts {
            interrupt: hook(SignalKind::interrupt())?,
            terminate: hook(SignalKind::terminate())?,
            hang_up: hook(SignalKind::hangup())?,
        })
    }

    /// Does `work`, but no longer than until somebody interrupts us.
    ///
    /// # Errors
    /// [`Error::Interrupted`], or `work`'s own.
    pub(crate) async fn unless<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            outcome = work => outcome,
            _ = self.interrupt.recv() => Err(Error::Interrupted),
            _ = self.terminate.recv() => Err(Error::Interrupted),
            _ = self.hang_up.recv() => Err(Error::Interrupted),
        }
    }
}
