//! Environment of the container's process.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What a process gets whose image sets no environment.
pub(super) const DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Larger files than this are no environment.
const MAX_FILE: u64 = 1 << 20;

/// The base environment, with entries replaced or appended; an entry without `=` removes the variable of that name.
pub(super) fn merge<'a>(
    base: impl IntoIterator<Item = &'a str>,
    over: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    let mut merged: Vec<String> = base.into_iter().map(str::to_owned).collect();
    for entry in over {
        let (name, set) = match entry.split_once('=') {
            Some((name, _)) => (name, true),
            None => (entry, false),
        };
        let place =
            merged.iter().position(|old| old.split_once('=').map_or(old.as_str(), |(old, _)| old) == name);
        match (place, set) {
            (Some(place), true) => {
                if let Some(old) = merged.get_mut(place) {
                    entry.clone_into(old);
                }
            }
            (Some(place), false) => {
                merged.remove(place);
            }
            (None, true) => merged.push(entry.to_owned()),
            (None, false) => {}
        }
    }
    merged
}

/// An `--env-file` that cannot be read.
#[derive(Debug, Error)]
pub(crate) enum EnvFileError {
    #[error("cannot read environment file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("environment file {} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
}

/// The entries of an environment file: one a line, empty lines and lines that start with `#` left out.
pub(crate) fn read_file(path: &Path) -> Result<Vec<String>, EnvFileError> {
    let read = |source| EnvFileError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE {
        return Err(EnvFileError::TooLarge { path: path.to_owned() });
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    Ok(text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_entries_replace_append_and_remove() {
        let merged = merge(["PATH=/bin", "A=1", "B=2"], ["A=3", "C=4", "B", "D"]);
        assert_eq!(merged, ["PATH=/bin", "A=3", "C=4"]);
    }

    #[test]
    fn a_name_that_starts_like_another_is_another() {
        assert_eq!(merge(["AB=1"], ["A=2"]), ["AB=1", "A=2"]);
    }
}
