//! What a person sees: lines, log lines on stderr, progress on a terminal.

mod progress;

use std::io::{BufRead as _, ErrorKind, IsTerminal as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

pub(crate) use self::progress::{Progress, Transfer};
use crate::error::Error;

/// Sends our log to stderr: warnings as notices; with `--debug` everything of ours, each request and each call with the time that it took.
pub(crate) fn log(debug: bool) {
    // Only the first one in a process counts; there is no other.
    let _ = if debug {
        let filter = EnvFilter::new("warn,soci=debug,soci_store=trace,oci_registry=trace");
        let format = tracing_subscriber::fmt().with_env_filter(filter);
        let subscriber = format.with_writer(std::io::stderr).with_ansi(false).finish();
        tracing::subscriber::set_global_default(subscriber)
    } else {
        let filter = EnvFilter::new("off,soci=warn,soci_store=warn,oci_registry=warn");
        tracing::subscriber::set_global_default(
            tracing_subscriber::registry().with(Notices.with_filter(filter)),
        )
    };
}

/// Warnings in the form of [`notice`].
struct Notices;

impl<S: tracing::Subscriber> Layer<S> for Notices {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        notice(&text.line());
    }
}

/// An event in words: its message, what it is about, and why.
#[derive(Default)]
struct Text {
    message: String,
    fields: Vec<String>,
    error: String,
}

impl Text {
    fn line(&self) -> String {
        let mut line = self.message.clone();
        if !self.fields.is_empty() {
            line.push_str(&format!(" ({})", self.fields.join(", ")));
        }
        if !self.error.is_empty() {
            line.push_str(&format!(": {}", self.error));
        }
        // Registries and containerd may answer with several lines.
        line.split(char::is_control)
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "error" => self.error = format!("{value:?}"),
            name => self.fields.push(format!("{name} {value:?}")),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_one_line() {
        let text = Text {
            message: "half a download stays".to_owned(),
            fields: vec!["digest sha256:1".to_owned()],
            error: "no\nanswer".to_owned(),
        };
        assert_eq!(text.line(), "half a download stays (digest sha256:1): no answer");
    }
}
