//! What the kernel that the tests run on can.

/// Whether requests that a daemon was given and never answered are sent again to the next one (`FUSE_NOTIFY_RESEND`, Linux 6.9). On older kernels they
/// end with [`REFUSED`].
pub fn resends() -> bool {
    release() >= (6, 9)
}

/// Whether EROFS is mounted from a file without a loop device.
pub fn mounts_files() -> bool {
    release() >= (6, 12)
}

fn release() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>());
    let mut next = || numbers.next().unwrap().unwrap();
    (next(), next())
}

/// How programs name the error with which such requests end; Go writes it small.
pub const REFUSED: &str = "tale file handle";

/// Whether `error` is that one, and this a kernel on which a daemon's death may be seen.
pub fn may_refuse(error: &std::io::Error) -> bool {
    !resends() && error.raw_os_error() == Some(rustix::io::Errno::STALE.raw_os_error())
}
