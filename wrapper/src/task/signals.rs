//! Signals to us that are meant for the container.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::error::Error;
use crate::interrupt::Deadline;

/// A signal's number, as in kill(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) i32);

impl Signal {
    pub(crate) const KILL: Self = Self(9);
    pub(crate) const WINDOW: Self = Self(28);

    /// Whether somebody wants the whole thing to end.
    pub(crate) fn ends(self) -> bool {
        matches!(self.0, 1 | 2 | 3 | 15)
    }
}

/// HUP, INT, QUIT, USR1, USR2, ALRM, TERM, CONT, WINCH; what else can be caught is for this process itself.
const CAUGHT: [i32; 9] = [1, 2, 3, 10, 12, 14, 15, 18, 28];

/// As many signals wait to be forwarded; more of the same are dropped, as the kernel does.
const WAITING: usize = 32;

/// Signals from the moment of its making on.
#[derive(Debug)]
pub(crate) struct Signals {
    received: mpsc::Receiver<Signal>,
    deadline: Deadline,
}

impl Signals {
    /// Catches them instead of letting them end this process.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn catch(context: &Context) -> io::Result<Self> {
        let (sender, received) = mpsc::channel(WAITING);
        for number in CAUGHT {
            let mut signals = signal(SignalKind::from_raw(number))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if matches!(sender.try_send(Signal(number)), Err(mpsc::error::TrySendError::Closed(_))) {
                        return;
                    }
                }
            });
        }
        Ok(Self { received, deadline: context.take_deadline() })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Signal {
        match self.received.recv().await {
            Some(signal) => signal,
            // The senders live as long as the runtime.
            None => std::future::pending().await,
        }
    }

    /// Drops those that have come: they were for a process that has ended.
    pub(crate) fn forget(&mut self) {
        while self.received.try_recv().is_ok() {}
    }

    /// The next one that wants us to end; others are dropped.
    ///
    /// # Errors
    /// [`Error::Timeout`]: `--timeout` is over.
    pub(crate) async fn end(&mut self) -> Result<Signal, Error> {
        let deadline = self.deadline;
        tokio::select! {
            signal = self.end_by_signal() => Ok(signal),
            error = deadline.passed() => Err(error),
        }
    }

    /// The same without `--timeout`.
    pub(crate) async fn end_by_signal(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if signal.ends() {
                return signal;
            }
        }
    }

    /// Waits, unless somebody wants us to end.
    ///
    /// # Errors
    /// [`Error::Interrupted`] or [`Error::Timeout`].
    pub(crate) async fn unless<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            value = future => Ok(value),
            end = self.end() => Err(end.map_or_else(|error| error, |_| Error::Interrupted)),
        }
    }
}
