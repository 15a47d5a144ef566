//! Where errors end: one line on stderr, exit status 1.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use soci_store::{ConnectError, StoreError};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// containerd's address makes no sense.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// containerd refused, or is not there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file, the terminal, or another thing of this machine.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// `--timeout` is over.
    #[error("the command did not end within {limit:?}")]
    Timeout {
        /// The time that was allowed.
        limit: Duration,
    },
    /// Ctrl-C, or a request to end.
    #[error("interrupted")]
    Interrupted,
    /// A command's own kind of failure.
    #[error(transparent)]
    Command(Box<dyn StdError + Send + Sync>),
    /// Nothing failed here: the container's process ended with this status, and so do we.
    #[error("the process ended with status {0}")]
    Exit(u8),
}

impl Error {
    /// A command's own kind of failure.
    pub(crate) fn command(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Command(error.into())
    }

    /// What the parser complains about; `None` where it only wants to print help or the version.
    pub(crate) fn from_parser(error: &clap::Error) -> Option<Error> {
        match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => None,
            _ => {
                // The parser adds tips and a usage text behind an empty line.
                let text = error.render().to_string();
                let first = text.split("\n\n").next().unwrap_or_default();
                Some(Error::Usage(first.strip_prefix("error: ").unwrap_or(first).to_owned()))
            }
        }
    }

    /// Says it, on one line, and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        if let Error::Exit(status) = self {
            return ExitCode::from(*status);
        }
        eprintln!("soci: {}", one_line(self));
        ExitCode::FAILURE
    }
}

/// An error and its sources on one line, without what a source repeats.
pub(crate) fn one_line(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            let _ = write!(text, ": {more}");
        }
        source = cause.source();
    }
    // Registries and containerd may answer with several lines.
    text.split(|c: char| c.is_control())
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_and_no_repetition() {
        let error =
            Error::Io { what: "read x".to_owned(), source: std::io::Error::other("bad\n\tdisk\u{1b}[0m") };
        assert_eq!(one_line(&error), "read x: bad disk [0m");
        let error = Error::command("flat");
        assert_eq!(one_line(&error), "flat");
    }
}
