//! What a person sees: log lines on stderr, progress on a terminal.

use std::io::{ErrorKind, Write as _};

use tracing_subscriber::EnvFilter;

use crate::error::Error;

/// Sends our log to stderr: warnings, and with `--debug` everything of ours.
pub(crate) fn log(debug: bool) {
    let filter = if debug { "warn,soci=debug,soci_store=debug,oci_registry=debug" } else { "error" };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .finish();
    // Only the first one in a process counts; there is no other.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Prints a line on stdout; a reader that went away is no failure.
pub(crate) fn line(text: &str) -> Result<(), Error> {
    print(format!("{text}\n").as_bytes())
}

/// Prints bytes on stdout; a reader that went away is no failure.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Io { what: "write to stdout".to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Says on stderr, in one line, what went otherwise than asked without being the command's failure.
pub(crate) fn notice(text: &str) {
    eprintln!("soci: {text}");
}
