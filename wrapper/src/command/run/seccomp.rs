//! `--seccomp-profile`.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use thiserror::Error;

/// A seccomp profile that cannot be used.
#[derive(Debug, Error)]
pub(super) enum SeccompError {
    #[error("cannot load seccomp profile {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("seccomp profile {} is not in the runtime specification's form", path.display())]
    Form { path: PathBuf, source: serde_json::Error },
}

/// Reads a profile: the `linux.seccomp` object of the runtime specification as JSON.
pub(super) fn read(path: &Path) -> Result<LinuxSeccomp, SeccompError> {
    let file = File::open(path).map_err(|source| SeccompError::Read { path: path.to_owned(), source })?;
    serde_json::from_reader(BufReader::new(file))
        .map_err(|source| SeccompError::Form { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_profile_is_json() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}"#)
            .unwrap();
        assert_eq!(read(file.path()).unwrap().syscalls().as_ref().unwrap().len(), 1);
        file.write_all(b"}").unwrap();
        assert!(matches!(read(file.path()), Err(SeccompError::Form { .. })));
        assert!(matches!(read(Path::new("/nowhere")), Err(SeccompError::Read { .. })));
    }
}
