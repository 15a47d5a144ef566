//! What a person sees: lines, log lines on stderr, progress on a terminal.

mod progress;

use std::io::{BufRead as _, ErrorKind, IsTerminal as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use tracing_subscriber::EnvFilter;

pub(crate) use self::progress::{Progress, Transfer};
use crate::error::Error;

/// Sends our log to stderr: nothing, and with `--debug` everything of ours, each request and each call with the time that it took.
pub(crate) fn log(debug: bool) {
    let filter = if debug { "warn,soci=debug,soci_store=trace,oci_registry=trace" } else { "off" };
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
    let _ = writeln!(std::io::stderr(), "soci: {text}");
}

/// Reads a secret from stdin, without showing it where that is a terminal.
///
/// # Errors
/// Nothing there to be read.
pub(crate) fn secret(prompt: &str) -> Result<String, Error> {
    let failed = |source: std::io::Error| Error::Io { what: "read the password".to_owned(), source };
    let stdin = std::io::stdin();
    let shown =
        if stdin.is_terminal() { Some(tcgetattr(&stdin).map_err(|e| failed(e.into()))?) } else { None };
    if let Some(shown) = &shown {
        let _ = write!(std::io::stderr(), "{prompt}");
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(|e| failed(e.into()))?;
    }
    let mut text = String::new();
    let outcome = stdin.lock().read_line(&mut text);
    if let Some(shown) = &shown {
        let _ = tcsetattr(&stdin, OptionalActions::Now, shown);
        let _ = writeln!(std::io::stderr());
    }
    match outcome {
        Ok(0) => Err(failed(ErrorKind::UnexpectedEof.into())),
        Ok(_) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(source) => Err(failed(source)),
    }
}
