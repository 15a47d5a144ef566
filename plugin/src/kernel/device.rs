//! Loop devices: finding one, its node, its read-ahead.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use erofs_image::BLOCK_SIZE;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use crate::adopt::{LoopBacking, LoopControl, LoopDevice};

/// A loop device with a backing file, as long as it is open here or mounted.
#[derive(Debug)]
pub(super) struct Device {
    device: LoopDevice,
    path: PathBuf,
}

// === impl Device ===

impl Device {
    /// Over a file, read with direct I/O where that is asked for and possible. Asked for from the beginning it costs nothing; turning it
    /// on or off later takes the kernel 10 to 25 ms (measured), in which it waits for everybody who could be in the queue.
    /// So many `attempts` are made while somebody else is faster with the device that the kernel calls free.
    pub(super) fn over(file: &File, attempts: u32, direct_io: bool) -> io::Result<Device> {
        let block_size = u32::try_from(BLOCK_SIZE).map_err(io::Error::other)?;
        let control = LoopControl::open()?;
        let mut taken = Errno::BUSY.into();
        for _ in 0..attempts {
            let number = control.next_free()?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let tried = open(&path, number).and_then(|device| {
                device.configure(file.as_fd(), block_size, direct_io)?;
                Ok(device)
            });
            match tried {
                Ok(device) => return Ok(Device { device, path }),
                // Taken, or taken away, in the meantime.
                Err(error) if was_faster(&error) => taken = error,
                Err(error) => return Err(error),
            }
        }
        Err(taken)
    }

    /// The one of this number, as a mount shows it; None if it is no loop device.
    pub(super) fn numbered(number: (u32, u32)) -> Option<Device> {
        let (major, minor) = number;
        let shown = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        let path = Path::new("/dev").join(shown.file_name()?);
        let device = LoopDevice::open(&path).ok()?;
        (device.number().ok()? == number).then_some(Device { device, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn backing(&self) -> io::Result<LoopBacking> {
        self.device.backing()
    }

    /// Puts another file in the place of its backing file.
    pub(super) fn change(&self, file: &File) -> io::Result<()> {
        self.device.change(file.as_fd())
    }

    /// Has it read past the page cache of the file's own file system, or by way of it.
    pub(super) fn set_direct_io(&self, on: bool) -> io::Result<()> {
        self.device.set_direct_io(on)
    }

    /// Sets how far the kernel reads ahead, for files opened from now on. Not by way of the queue, whose settings wait for reads in flight.
    pub(super) fn read_ahead(&self, kib: u32) {
        let set = self.device.number().and_then(|(major, minor)| {
            fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
        });
        if let Err(error) = set {
            tracing::debug!(device = %self.path.display(), error = %error, "unable to set read-ahead");
        }
    }
}

/// Opens a device, making its node where nothing else does.
fn open(path: &Path, number: u32) -> io::Result<LoopDevice> {
    match LoopDevice::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = fs::read_to_string(format!("/sys/block/loop{number}/dev"))?;
            let (major, minor) = text
                .trim()
                .split_once(':')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
                .ok_or(io::ErrorKind::InvalidData)?;
            let device = rustix::fs::makedev(major, minor);
            match rustix::fs::mknodat(CWD, path, FileType::BlockDevice, Mode::from_raw_mode(0o660), device) {
                Ok(()) | Err(Errno::EXIST) => LoopDevice::open(path),
                Err(error) => Err(error.into()),
            }
        }
        result => result,
    }
}

fn was_faster(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [Errno::BUSY, Errno::NXIO, Errno::NODEV].iter().any(|errno| number == Some(errno.raw_os_error()))
        || error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// Other tests take devices at the same time.
    const ATTEMPTS: u32 = 64;

    fn backing(folder: &Path) -> File {
        fs::write(folder.join("file"), [7; 4096]).unwrap();
        File::open(folder.join("file")).unwrap()
    }

    #[test]
    fn many_at_the_same_time_get_one_each() {
        let folder = tempfile::tempdir().unwrap();
        let (file, start) = (backing(folder.path()), Barrier::new(24));
        let devices: Vec<Device> = thread::scope(|scope| {
            let one = || {
                start.wait();
                Device::over(&file, ATTEMPTS, false).unwrap()
            };
            let threads: Vec<_> = (0..24).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let numbers: HashSet<_> = devices.iter().map(|device| device.device.number().unwrap()).collect();
        assert_eq!(numbers.len(), 24);
        for device in &devices {
            assert!(device.backing().unwrap().read_only);
            assert_eq!(fs::read(device.path()).unwrap(), [7; 4096]);
        }
        // Closing is all that it takes to let go; but another test that looks for a device may have one of these open at that moment.
        drop(devices);
        let start = Instant::now();
        for number in numbers {
            let name = format!("/sys/dev/block/{}:{}/loop/backing_file", number.0, number.1);
            let is_ours =
                || fs::read_to_string(&name).is_ok_and(|path| path.contains(folder.path().to_str().unwrap()));
            while is_ours() {
                assert!(start.elapsed() < Duration::from_secs(10), "{number:?}");
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_node_that_is_missing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::over(&backing(folder.path()), ATTEMPTS, false).unwrap();
        let number = device.path().to_str().unwrap().trim_start_matches("/dev/loop").parse().unwrap();
        let path = folder.path().join("node");
        let made = open(&path, number).unwrap();
        assert_eq!(made.number().unwrap(), device.device.number().unwrap());
        assert_eq!(fs::read(&path).unwrap(), [7; 4096]);
    }

    #[test]
    fn the_file_can_be_exchanged_for_one_of_the_same_size() {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::over(&backing(folder.path()), ATTEMPTS, false).unwrap();
        let other = |name: &str, length| {
            fs::write(folder.path().join(name), vec![9; length]).unwrap();
            File::open(folder.path().join(name)).unwrap()
        };
        device.change(&other("longer", 8192)).unwrap_err();
        device.change(&other("same", 4096)).unwrap();
        let same = std::os::unix::fs::MetadataExt::ino(&fs::metadata(folder.path().join("same")).unwrap());
        assert_eq!(device.backing().unwrap().inode, same);
        assert_eq!(fs::read(device.path()).unwrap(), [9; 4096]);
    }
}
