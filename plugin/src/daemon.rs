//! Being built.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program.
pub fn main(_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::FAILURE
}
