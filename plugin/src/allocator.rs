//! How the C library's allocator is to behave.
//!
//! glibc's allocator raises the size from which it asks the kernel directly whenever such an allocation is freed. After the first large
//! buffer everything large comes from its heaps, which are given back only from their ends: a daemon that holds 8 MiB keeps 110 MiB after
//! twenty images came and went. With these settings it keeps 8. They are read before `main` alone, so the program starts itself once more.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What is set, unless the environment says something about the allocator already.
const SETTINGS: [(&str, &str); 3] = [
    // From here on an allocation is the kernel's, and goes back when it is freed, bytes.
    ("MALLOC_MMAP_THRESHOLD_", "262144"),
    // What may stay free at the end of a heap, bytes.
    ("MALLOC_TRIM_THRESHOLD_", "262144"),
    // Heaps. Default: 8 for each core.
    ("MALLOC_ARENA_MAX", "4"),
];

/// Starts the program once more with the settings, in the same process. Returns where they are there, where the C library is another
/// one, and where it cannot be done: then more memory is used.
///
/// To be called first: what is open and not to be inherited is closed by it.
pub fn settle() {
    let said = |name: &OsString| {
        name.to_str().is_some_and(|name| name.starts_with("MALLOC_") || name == "GLIBC_TUNABLES")
    };
    if !cfg!(target_env = "gnu") || env::vars_os().any(|(name, _)| said(&name)) {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut line = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = line.next() {
        command.arg0(name);
    }
    // Returns only if it failed; the program goes on as it is.
    let _ = command.args(line).envs(SETTINGS).exec();
}
