//! What is mounted where, as the kernel says it (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// One mount that this process sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountInfo {
    /// Where it is.
    pub(crate) point: PathBuf,
    /// Name of the kind of file system.
    pub(crate) kind: Vec<u8>,
    /// What it was mounted from: a device, a file, or any word.
    pub(crate) source: PathBuf,
}

impl MountInfo {
    /// All of them, in the order of mounting: of several at one place the last is on top, unless one was put beneath another.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn all() -> io::Result<Vec<MountInfo>> {
        Ok(parsed(&std::fs::read("/proc/self/mountinfo")?))
    }
}

fn parsed(text: &[u8]) -> Vec<MountInfo> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Number, parent, device, root, mount point, options, any number of others, a hyphen, kind, source, options.
fn line(line: &[u8]) -> Option<MountInfo> {
    let mut words = line.split(|byte| *byte == b' ');
    let point = path(words.nth(4)?);
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    Some(MountInfo { point, kind: words.next()?.to_vec(), source: path(words.next()?) })
}

fn path(text: &[u8]) -> PathBuf {
    OsString::from_vec(unescaped(text)).into()
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
        });
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unescaped() {
        let info = b"36 35 98:0 / /a\\040b rw,noatime master:1 shared:2 - ext3 /dev/r\\011t rw\n37 36 0:4 / /c\\ rw - x y z\nshort\n";
        let mount = |point: &str, kind: &str, source: &str| MountInfo {
            point: point.into(),
            kind: kind.into(),
            source: source.into(),
        };
        assert_eq!(parsed(info), [mount("/a b", "ext3", "/dev/r\tt"), mount("/c\\", "x", "y")]);
    }

    #[test]
    fn this_machine_has_mounts() {
        assert!(MountInfo::all().unwrap().iter().any(|mount| mount.kind == b"proc"));
    }
}
