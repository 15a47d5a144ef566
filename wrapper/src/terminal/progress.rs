//! Progress: bars on a terminal, nothing but the lines elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::Error;

/// How often a bar without news moves.
const TICK: Duration = Duration::from_millis(200);

/// Transfers under way, drawn on stderr where that is a terminal.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
}

/// One transfer; its bar goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Transfer {
    bar: ProgressBar,
}

impl Progress {
    /// Draws if stderr is a terminal.
    pub(crate) fn new() -> Progress {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Progress { bars: MultiProgress::with_draw_target(target) }
    }

    /// Prints a line on stdout, above the bars.
    ///
    /// # Errors
    /// stdout cannot be written to.
    pub(crate) fn line(&self, text: &str) -> Result<(), Error> {
        self.bars.suspend(|| super::line(text))
    }

    /// Says something on stderr, above the bars.
    pub(crate) fn notice(&self, text: &str) {
        self.bars.suspend(|| super::notice(text));
    }

    /// A transfer of `size` bytes.
    pub(crate) fn transfer(&self, name: &str, size: u64) -> Transfer {
        let template = "{prefix:20} {wide_bar:.dim} {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>12}";
        self.bar(ProgressBar::new(size), name, template)
    }

    /// Work of unknown length.
    pub(crate) fn work(&self, name: &str) -> Transfer {
        self.bar(ProgressBar::new_spinner(), name, "{prefix} {spinner} {elapsed}")
    }

    fn bar(&self, bar: ProgressBar, name: &str, template: &str) -> Transfer {
        let bar = self.bars.add(bar).with_prefix(name.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if !self.bars.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Transfer { bar }
    }
}

impl Transfer {
    /// So many bytes more.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// So many bytes more, or less where a transfer starts again.
    pub(crate) fn shift(&self, bytes: i64) {
        match u64::try_from(bytes) {
            Ok(more) => self.bar.inc(more),
            Err(_) => self.bar.set_position(self.bar.position().saturating_sub(bytes.unsigned_abs())),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
