//! What ends a command before its time: Ctrl-C and its relatives, and `--timeout`.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::context::Context;
use crate::error::Error;

/// When `--timeout` is over, if there is one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<(Instant, Duration)>);

/// From the first of these on, neither a signal nor `--timeout` ends the process: it ends the work that is being done
/// [`Interrupts::unless`] one comes.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    deadline: Deadline,
}

impl Deadline {
    /// So long from now; never where that is zero or longer than can be counted.
    pub(crate) fn after(limit: Duration) -> Deadline {
        let end = (!limit.is_zero()).then(|| Instant::now().checked_add(limit)).flatten();
        Deadline(end.map(|end| (end, limit)))
    }

    /// Waits for it.
    pub(crate) async fn passed(self) -> Error {
        match self.0 {
            Some((end, limit)) => {
                tokio::time::sleep_until(end).await;
                Error::Timeout { limit }
            }
            None => std::future::pending().await,
        }
    }
}

impl Interrupts {
    /// Starts to listen.
    ///
    /// # Errors
    /// The runtime has no signals to offer.
    pub(crate) fn listen(context: &Context) -> Result<Interrupts, Error> {
        let hook =
            |kind| signal(kind).map_err(|source| Error::Io { what: "wait for signals".to_owned(), source });
        Ok(Interrupts {
            interrupt: hook(SignalKind::interrupt())?,
            terminate: hook(SignalKind::terminate())?,
            hang_up: hook(SignalKind::hangup())?,
            deadline: context.take_deadline(),
        })
    }

    /// Does `work`, but no longer than until somebody interrupts us or the time is over.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Timeout`], or `work`'s own.
    pub(crate) async fn unless<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let deadline = self.deadline;
        tokio::select! {
            outcome = work => outcome,
            () = self.interrupted() => Err(Error::Interrupted),
            error = deadline.passed() => Err(error),
        }
    }

    /// Cleans up, until somebody interrupts us once more.
    pub(crate) async fn clean_up(&mut self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            () = self.interrupted() => tracing::warn!("interrupted while cleaning up, what is unfinished stays until its lease expires"),
        }
    }

    async fn interrupted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
