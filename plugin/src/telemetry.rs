//! What the daemon says: one flat JSON object a line on stdout, with sorted keys and the names that logrus gives them.
//!
//! Upstream's documentation tells users which lines to look for, so keys, levels and messages are part of the interface.
//! What ends the program goes to stderr as plain text instead (see `main`).

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

mod json;
mod limit;
pub mod metrics;

pub use json::JsonLines;
pub use limit::{Brake, Limiter};

/// How much is said, with logrus' names: `panic`, `fatal`, `error`, `warn` or `warning`, `info`, `debug`, `trace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(LevelFilter);

/// A level that logrus does not know either.
#[derive(Debug, thiserror::Error)]
#[error("not a valid log level: {0:?} (panic, fatal, error, warn, info, debug or trace)")]
pub struct UnknownLevel(String);

// === impl Level ===

impl Level {
    /// The default.
    pub const INFO: Level = Level(LevelFilter::INFO);

    /// Our own crates at this level; libraries only when something is wrong with them, or at trace.
    fn targets(self, fuse_operations: bool) -> Targets {
        let theirs =
            if self.0 == LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::WARN.min(self.0) };
        [
            "soci_snapshotter_grpc",
            "lazy_layer",
            "oci_registry",
            "soci_store",
            "soci_index",
            "ztoc",
            "erofs_image",
        ]
        .into_iter()
        .fold(Targets::new().with_default(theirs), |targets, own| targets.with_target(own, self.0))
        .with_target(
            "fuser::request",
            if fuse_operations { self.0.min(LevelFilter::DEBUG) } else { LevelFilter::WARN.min(self.0) },
        )
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Level, UnknownLevel> {
        Ok(Level(match text.to_ascii_lowercase().as_str() {
            // Nothing below error ends the program through the log, so these three say the same.
            "panic" | "fatal" | "error" => LevelFilter::ERROR,
            "warn" | "warning" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            _ => return Err(UnknownLevel(text.to_owned())),
        }))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sends everything at `level` and above to stdout, for the whole process; the requests of file systems only with `fuse_operations`. What outsiders
/// can cause at will is held back by `brake`.
///
/// # Errors
/// When the process has a subscriber already.
pub fn init(level: Level, fuse_operations: bool, brake: Brake) -> Result<(), TryInitError> {
    tracing_subscriber::registry()
        .with(JsonLines::stdout(brake).with_filter(level.targets(fuse_operations)))
        .try_init()
}

/// An error and its causes in one line, `outer: inner: innermost`. For errors whose own text leaves the cause out, as ours do.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_names_of_logrus() {
        for name in ["panic", "fatal", "error", "warn", "warning", "INFO", "debug", "trace"] {
            assert!(name.parse::<Level>().is_ok(), "{name}");
        }
        assert!("loud".parse::<Level>().unwrap_err().to_string().contains("\"loud\""));
    }

    #[test]
    fn a_chain_says_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open the store")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk is on fire"));
        assert_eq!(chain(&error), "cannot open the store: disk is on fire");
    }
}
