//! The terminal that we are run from, in raw mode while a container uses it.

use std::io;

use rustix::termios::{OptionalActions, Termios};
use thiserror::Error;

/// The terminal cannot be handed to the container.
#[derive(Debug, Error)]
pub(crate) enum TerminalError {
    #[error("--tty needs a terminal on standard input")]
    NoTerminal,
    #[error("cannot set the terminal to raw mode")]
    Raw(#[source] io::Error),
}

/// Raw mode, until this is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

/// Width and height in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

impl RawTerminal {
    /// Sets standard input's terminal to raw mode: keys go to the container unread, Ctrl-C among them.
    ///
    /// # Errors
    /// There is none, or it refuses.
    pub(crate) fn enter() -> Result<Self, TerminalError> {
        let stdin = std::io::stdin();
        if !rustix::termios::isatty(&stdin) {
            return Err(TerminalError::NoTerminal);
        }
        let before = rustix::termios::tcgetattr(&stdin).map_err(|errno| TerminalError::Raw(errno.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw)
            .map_err(|errno| TerminalError::Raw(errno.into()))?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of standard input's terminal; `None` where it has none.
pub(crate) fn size() -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(Size { width: size.ws_col, height: size.ws_row })
}
