//! Loop devices: finding one, its node, its read-ahead.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use erofs_image::BLOCK_SIZE;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use crate::adopt::{LoopBacking, LoopControl, LoopDevice};

/// How often somebody else may be faster with the device that the kernel called free.
const ATTEMPTS: usize = 64;

/// A loop device with a backing file, as long as it is open here or mounted.
#[derive(Debug)]
pub(super) struct Device {
    device: LoopDevice,
    path: PathBuf,
}

// === impl Device ===

impl Device {
    /// Over a file.
    pub(super) fn over(file: &File) -> io::Result<Device> {
        let block_size = u32::try_from(BLOCK_SIZE).map_err(io::Error::other)?;
        let control = LoopControl::open()?;
        let mut taken = Errno::BUSY.into();
        for _ in 0..ATTEMPTS {
            let number = control.next_free()?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let tried = open(&path, number).and_then(|device| {
                device.configure(file.as_fd(), block_size)?;
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
