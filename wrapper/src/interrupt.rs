//! Ctrl-C and its relatives.

use tokio::signal::unix::{SignalKind, signal};

use crate::error::Error;

/// Does `work`, but no longer than until somebody interrupts us.
///
/// # Errors
/// [`Error::Interrupted`], or `work`'s own.
pub(crate) async fn unless_interrupted<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let hook =
        |kind| signal(kind).map_err(|source| Error::Io { what: "wait for signals".to_owned(), source });
    let mut interrupt = hook(SignalKind::interrupt())?;
    let mut terminate = hook(SignalKind::terminate())?;
    let mut hang_up = hook(SignalKind::hangup())?;
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Err(Error::Interrupted),
        _ = terminate.recv() => Err(Error::Interrupted),
        _ = hang_up.recv() => Err(Error::Interrupted),
    }
}
