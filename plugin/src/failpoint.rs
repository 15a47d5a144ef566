//! Places at which a test has the daemon killed, to see that nothing is lost or left behind whatever it was doing; and one at which it takes the kernel
//! for an older one, and one at which it is refused EROFS.
//!
//! They are in builds with debug assertions alone: the tests' daemon is such a build anyway, so they cost no build of their own, and no
//! environment can kill a released one. A name is `<verb>.<what has just been done>`; `e2e/failpoints.rs` has one test for each.

/// Names the place at which to die.
#[cfg(debug_assertions)]
const VARIABLE: &str = "SOCI_TEST_FAILPOINT";

/// Dies here, as by `kill -9`, if a test wants that.
#[cfg(debug_assertions)]
pub(crate) fn pass(name: &str) {
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
        tracing::warn!(name, "a test has the daemon die here");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

/// Whether a test wants a kernel that cannot send requests again, as before Linux 6.9.
#[cfg(debug_assertions)]
pub(crate) fn never_resends() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == "kernel.never-resends")
}

/// Whether a test wants no EROFS above any layer.
#[cfg(debug_assertions)]
pub(crate) fn never_attaches() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == "kernel.never-attaches")
}

/// No.
#[cfg(not(debug_assertions))]
pub(crate) fn never_attaches() -> bool {
    false
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn pass(_: &str) {}

/// No.
#[cfg(not(debug_assertions))]
pub(crate) fn never_resends() -> bool {
    false
}
