//! A loop device adopts a descriptor as its backing file.
//!
//! The calls and structures of `linux/loop.h`. Both types are made only of what was opened here and found to be what it says, so that no
//! other driver is asked these numbers.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::ioctl::{self, Getter, IntegerSetter, IoctlOutput, Opcode, Setter};

const GET_FREE: Opcode = 0x4C82;
const CONFIGURE: Opcode = 0x4C0A;
const CHANGE_FD: Opcode = 0x4C06;
const SET_DIRECT_IO: Opcode = 0x4C08;
const GET_STATUS: Opcode = 0x4C05;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// Major number of every loop device (`devices.txt`).
const LOOP_MAJOR: u32 = 7;
/// Device number of `/dev/loop-control`.
const CONTROL: (u32, u32) = (10, 237);

/// Names loop devices that nobody uses.
#[derive(Debug)]
pub struct LoopControl(OwnedFd);

/// A loop device, open for reading. The kernel keeps its backing file as long as it is open here or mounted.
#[derive(Debug)]
pub struct LoopDevice(OwnedFd);

/// What a loop device goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopBacking {
    /// Device of its backing file, major and minor.
    pub device: (u32, u32),
    /// Inode of its backing file.
    pub inode: u64,
    /// It reads past the page cache of the file below: several reads at the same time, none of which waits for another.
    pub direct_io: bool,
    /// Nothing can be written to it. Only then can its backing file be exchanged.
    pub read_only: bool,
}

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    /// File name, cipher name (64 bytes each) and key (32 bytes).
    names: [u64; 20],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    descriptor: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Configuration>() == 304);

// === impl LoopControl ===

impl LoopControl {
    /// Opens `/dev/loop-control`.
    ///
    /// # Errors
    /// The system's; the file may also be something else.
    pub fn open() -> io::Result<LoopControl> {
        let descriptor =
            rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&descriptor)?;
        let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || number != CONTROL {
            return Err(io::Error::other("/dev/loop-control is something else"));
        }
        Ok(LoopControl(descriptor))
    }

    /// Number of a loop device that had no backing file a moment ago; it is made if all others have one.
    ///
    /// # Errors
    /// The system's.
    pub fn next_free(&self) -> io::Result<u32> {
        // SAFETY: the descriptor is the loop driver's control file (checked in `open`), and its LOOP_CTL_GET_FREE takes no argument and
        // answers with its return value.
        let number = unsafe { ioctl::ioctl(&self.0, GetFree) }?;
        u32::try_from(number).map_err(io::Error::other)
    }
}

/// LOOP_CTL_GET_FREE: its answer is what ioctl(2) returns.
struct GetFree;

// SAFETY: LOOP_CTL_GET_FREE neither reads nor writes memory of ours, so the null pointer is never followed, and any return value that is no
// error is a valid `i32`.
unsafe impl ioctl::Ioctl for GetFree {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

// === impl LoopDevice ===

impl LoopDevice {
    /// Opens a loop device for reading: one that is open for writing could not be mounted on every kernel.
    ///
    /// # Errors
    /// The system's; the path may also lead to something else.
    pub fn open(path: &Path) -> io::Result<LoopDevice> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&descriptor)?;
        let is_block_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        if !is_block_device || rustix::fs::major(stat.st_rdev) != LOOP_MAJOR {
            return Err(io::Error::other(format!("{} is no loop device", path.display())));
        }
        Ok(LoopDevice(descriptor))
    }

    /// Device number, major and minor.
    ///
    /// # Errors
    /// The system's.
    pub fn number(&self) -> io::Result<(u32, u32)> {
        let stat = rustix::fs::fstat(&self.0)?;
        Ok((rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)))
    }

    /// Gives it a backing file to read in blocks of `block_size` bytes. It lets go of the file when nobody has the device open
    /// or mounted any more.
    ///
    /// Where the file cannot be read with direct I/O, it has none, whatever `direct_io` says: see [`LoopDevice::backing`].
    ///
    /// # Errors
    /// The system's; EBUSY where it has a backing file already.
    pub fn configure(&self, backing: BorrowedFd<'_>, block_size: u32, direct_io: bool) -> io::Result<()> {
        let direct_io = if direct_io { DIRECT_IO } else { 0 };
        let info = Info { flags: READ_ONLY | AUTOCLEAR | direct_io, ..Info::default() };
        let descriptor = raw(backing)?;
        let configuration = Configuration { descriptor, block_size, info, reserved: [0; 8] };
        // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `Configuration` is to the byte (size checked above).
        let request = unsafe { Setter::<CONFIGURE, Configuration>::new(configuration) };
        // SAFETY: the descriptor is a loop device (checked in `open`), whose driver knows the number as LOOP_CONFIGURE. The driver takes a
        // reference of its own to the backing file, which is borrowed for the length of the call.
        unsafe { ioctl::ioctl(&self.0, request) }?;
        Ok(())
    }

    /// Puts another file of the same size in the place of its backing file, under whoever reads it. Waits for the reads in flight.
    ///
    /// # Errors
    /// The system's; EINVAL where it is not read-only or the sizes differ.
    pub fn change(&self, backing: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: LOOP_CHANGE_FD takes a descriptor as a plain number.
        let request = unsafe { IntegerSetter::<CHANGE_FD>::new_usize(number(raw(backing)?)) };
        // SAFETY: a loop device (checked in `open`), whose driver knows the number as LOOP_CHANGE_FD and takes a reference of its own to the
        // file, which is borrowed for the length of the call.
        unsafe { ioctl::ioctl(&self.0, request) }?;
        Ok(())
    }

    /// Turns direct I/O on or off. Waits for the reads in flight.
    ///
    /// # Errors
    /// The system's; EINVAL where the backing file cannot be read so.
    pub fn set_direct_io(&self, on: bool) -> io::Result<()> {
        // SAFETY: LOOP_SET_DIRECT_IO takes 0 or 1 as a plain number.
        let request = unsafe { IntegerSetter::<SET_DIRECT_IO>::new_usize(usize::from(on)) };
        // SAFETY: a loop device (checked in `open`), whose driver knows the number as LOOP_SET_DIRECT_IO; no memory of ours is touched.
        unsafe { ioctl::ioctl(&self.0, request) }?;
        Ok(())
    }

    /// What it goes by.
    ///
    /// # Errors
    /// The system's; ENXIO where it has no backing file.
    pub fn backing(&self) -> io::Result<LoopBacking> {
        // SAFETY: LOOP_GET_STATUS64 writes a `struct loop_info64`, which `Info` is to the byte (size checked above) and of which any bytes are
        // a value.
        let request = unsafe { Getter::<GET_STATUS, Info>::new() };
        // SAFETY: a loop device (checked in `open`), whose driver knows the number as LOOP_GET_STATUS64.
        let info = unsafe { ioctl::ioctl(&self.0, request) }?;
        Ok(LoopBacking {
            device: decoded(info.device),
            inode: info.inode,
            direct_io: info.flags & DIRECT_IO != 0,
            read_only: info.flags & READ_ONLY != 0,
        })
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn raw(descriptor: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(descriptor.as_raw_fd()).map_err(io::Error::other)
}

fn number(descriptor: u32) -> usize {
    usize::try_from(descriptor).unwrap_or(usize::MAX)
}

/// Linux's new_decode_dev.
fn decoded(device: u64) -> (u32, u32) {
    let device = u32::try_from(device & u64::from(u32::MAX)).unwrap_or(0);
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loop_devices_are_asked() {
        for path in ["/dev/null", "/dev/loop-control", "/"] {
            LoopDevice::open(Path::new(path)).unwrap_err();
        }
    }

    #[test]
    fn device_numbers() {
        assert_eq!(decoded(0x0801), (8, 1));
        assert_eq!(decoded(0x1230_0745), (7, 0x12345));
    }
}
