//! Files of a mount, of all kinds, held so that the kernel keeps what it has cached of them.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that a process needs for itself.
const OWN: u64 = 64;
const FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Open by their names alone: nothing of them is read, only of their directories. An exchange of the file below a loop device counts as
/// another disk, at which a file system forgets every file that nobody has open, with all that is cached of it; these it keeps.
#[derive(Debug)]
#[must_use = "dropping it lets go of them"]
pub(super) struct HeldFiles(Vec<OwnedFd>);

impl HeldFiles {
    /// All that is below a directory, what is near it first, up to `most` and as many as this process may open. What fails is left out: it is
    /// read from the disk again.
    pub(super) fn below(root: &Path, most: usize) -> HeldFiles {
        make_room(most);
        let mut held = Vec::new();
        let mut directories = VecDeque::from([root.to_owned()]);
        while let Some(directory) = directories.pop_front() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if held.len() >= most {
                    return HeldFiles(held);
                }
                match rustix::fs::open(entry.path(), FLAGS, Mode::empty()) {
                    Ok(file) => held.push(file),
                    Err(Errno::MFILE | Errno::NFILE) => return HeldFiles(held),
                    Err(_) => {}
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    directories.push_back(entry.path());
                }
            }
        }
        HeldFiles(held)
    }

    /// From now on the kernel keeps of them what it likes.
    pub(super) fn let_go(self) {
        drop(self.0);
    }
}

/// Lets this process have so many files open, as far as it may: root can raise its own limit up to the kernel's (`fs.nr_open`).
fn make_room(most: usize) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(OWN);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum.map(|maximum| maximum.max(wanted)) };
    if setrlimit(Resource::Nofile, raised).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::os::fd::AsRawFd as _;
    use std::path::PathBuf;

    use erofs_image::{Attributes, BLOCK_SIZE, Content, NewImage, TreeBuilder};

    use super::super::device::Device;
    use super::super::erofs;
    use super::*;

    const SIZE: usize = 4 << 20;
    /// The caches of this machine are everybody's, and may be dropped at any moment.
    const ATTEMPTS: u32 = 50;

    fn names(held: &HeldFiles) -> BTreeSet<PathBuf> {
        held.0
            .iter()
            .map(|file| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap())
            .collect()
    }

    #[test]
    fn files_of_all_kinds_are_held() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir(root.join("empty")).unwrap();
        let mut kept: BTreeSet<PathBuf> =
            ["x", "a/y", "a/b/c/z", "a/b/c/\u{fc}"].map(|name| root.join(name)).into();
        for file in &kept {
            fs::write(file, "").unwrap();
        }
        kept.extend(["a", "a/b", "a/b/c", "a/link", "a/root", "empty", "fifo"].map(|name| root.join(name)));
        std::os::unix::fs::symlink("x", root.join("a/link")).unwrap();
        std::os::unix::fs::symlink("/", root.join("a/root")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(names(&HeldFiles::below(&root, 99)), kept);
        assert_eq!(names(&HeldFiles::below(&root, 10)).len(), 10);
        assert_eq!(
            names(&HeldFiles::below(&root, 4)),
            ["a", "empty", "fifo", "x"].map(|name| root.join(name)).into()
        );
        assert!(names(&HeldFiles::below(&root, 0)).is_empty());
        assert!(names(&HeldFiles::below(&root.join("nothing"), 9)).is_empty());
    }

    /// An image of one file of [`SIZE`] bytes.
    fn image() -> Vec<u8> {
        let mut tree = TreeBuilder::new();
        let file = Content::Regular { tar_offset: 0, size: SIZE as u64 };
        tree.add(b"file", Attributes::default(), file).unwrap();
        let mut image = NewImage::of(tree.finish(), SIZE as u64).unwrap().metadata();
        image.resize(image.len() + SIZE, 7);
        image.resize(image.len().next_multiple_of(4096), 0);
        image
    }

    /// Bytes that were read from a mounted loop device since it was made.
    fn bytes_read(at: &Path) -> u64 {
        let number = std::os::unix::fs::MetadataExt::dev(&fs::metadata(at).unwrap());
        let (major, minor) = super::super::attach::split(number);
        let line = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap();
        line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap() * BLOCK_SIZE
    }

    /// How many bytes are read from a device to read a file again, after what is below the device was exchanged.
    fn read_again(held: usize) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("mounted");
        fs::create_dir(&at).unwrap();
        let [one, other] = ["one", "other"].map(|name| {
            fs::write(folder.path().join(name), image()).unwrap();
            File::open(folder.path().join(name)).unwrap()
        });
        let device = Device::over(&one, 64, false).unwrap();
        erofs::mount(&device, &at).unwrap();
        fs::read(at.join("file")).unwrap();
        let files = HeldFiles::below(&at, held);
        device.change(&other).unwrap();
        files.let_go();
        let before = bytes_read(&at);
        assert_eq!(fs::read(at.join("file")).unwrap(), vec![7; SIZE]);
        let read = bytes_read(&at) - before;
        erofs::clear(&at).unwrap();
        read
    }

    #[test]
    fn what_is_held_is_not_read_again() {
        assert!(read_again(0) >= SIZE as u64, "nothing needs to be held");
        let kept = (0..ATTEMPTS).any(|_| read_again(1) < SIZE as u64);
        assert!(kept, "{ATTEMPTS} times all of it was read again");
    }
}
