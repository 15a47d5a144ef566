//! Bringing files to the disk: the only place that does.

use std::fs::File;
use std::io;

/// A file's data, and what is needed to read it back.
pub(crate) fn data(file: &File) -> io::Result<()> {
    cut::here();
    file.sync_data()?;
    cut::here();
    Ok(())
}

/// The same with everything else that is known of a file; of a directory, its names.
pub(crate) fn all(file: &File) -> io::Result<()> {
    cut::here();
    file.sync_all()?;
    cut::here();
    Ok(())
}

/// A file's data, before anything depends on it: the same, but no moment at which a power cut would be of interest.
pub(crate) fn early(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// The moments just before and after, at each of which a test has the process die, to cut the power there. In builds with debug assertions only: no
/// environment can kill a released program.
mod cut {
    #[cfg(debug_assertions)]
    pub(super) fn here() {
        use std::sync::atomic::{AtomicU64, Ordering};

        static PASSED: AtomicU64 = AtomicU64::new(0);
        if let Some(wanted) = std::env::var_os("SOCI_TEST_CUT") {
            let number = PASSED.fetch_add(1, Ordering::Relaxed);
            if wanted.to_str().and_then(|text| text.parse().ok()) == Some(number) {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                loop {
                    std::thread::park();
                }
            }
        }
    }

    #[cfg(not(debug_assertions))]
    pub(super) fn here() {}
}
