//! EROFS above a FUSE mount, made or gone on with, and its backing file exchanged: what an [`Errand`](super::errand::Errand) does.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::device::Device;
use super::held::HeldFiles;
use super::{Backing, DIRECTORY, KernelError, KernelOptions, erofs, failed};
use crate::fuse::FuseMount;

/// Puts EROFS beside `fuse`. One that an earlier process left there, and that works, is gone on with; a dead one is taken out of sight first.
pub(super) fn attach(
    fuse: &Path,
    file: &Path,
    complete: bool,
    options: KernelOptions,
) -> Result<Backing, KernelError> {
    let mount_point = fuse.with_file_name(DIRECTORY);
    if erofs::file_at(&mount_point).as_deref() == Some(file) {
        return Ok(Backing::Local);
    }
    let adopted = adopt(fuse, file, &mount_point);
    if adopted.is_none() {
        erofs::clear(&mount_point).map_err(failed("clear", &mount_point))?;
        make(&mount_point)?;
    }
    let is_local = adopted.as_ref().map_or(complete, |(_, backing)| *backing == Backing::Local);
    if is_local && options.without_device {
        let without = if adopted.is_some() { erofs::replace_by_file } else { erofs::mount_file };
        if without(file, &mount_point).is_ok() {
            return Ok(Backing::Local);
        }
    }
    let (device, backing) = match adopted {
        Some(found) => found,
        None => mount(fuse, file, complete, &mount_point, options)?,
    };
    match backing {
        Backing::Local => suit_a_disk(&device, options),
        Backing::Fuse => device.read_ahead(options.read_ahead_kib),
    }
    Ok(backing)
}

/// What is mounted by way of a loop device, if its bytes come from this layer's file or by way of this very FUSE mount.
fn adopt(fuse: &Path, file: &Path, mount_point: &Path) -> Option<(Device, Backing)> {
    let device = erofs::device_at(mount_point)?;
    let found = device.backing().ok().filter(|found| found.read_only)?;
    let local = std::fs::metadata(file).ok()?;
    if (found.device, found.inode) == (split(local.dev()), local.ino()) {
        return Some((device, Backing::Local));
    }
    // A device number belongs to one mounted file system: another FUSE mount would have another.
    let over_fuse = FuseMount::layer_file_id(fuse).ok()?;
    ((found.device, found.inode) == over_fuse && found.direct_io).then_some((device, Backing::Fuse))
}

fn make(mount_point: &Path) -> Result<(), KernelError> {
    std::fs::create_dir(mount_point)
        .or_else(|error| if mount_point.is_dir() { Ok(()) } else { Err(error) })
        .map_err(failed("make", mount_point))
}

fn mount(
    fuse: &Path,
    file: &Path,
    complete: bool,
    mount_point: &Path,
    options: KernelOptions,
) -> Result<(Device, Backing), KernelError> {
    let (path, backing) = if complete {
        (file.to_owned(), Backing::Local)
    } else {
        (FuseMount::layer_file(fuse), Backing::Fuse)
    };
    let file = File::open(&path).map_err(failed("open", &path))?;
    // Otherwise one missing span would delay everybody.
    let direct_io = backing == Backing::Fuse;
    let device = Device::over(&file, options.loop_attempts, direct_io)
        .map_err(failed("find a loop device for", &path))?;
    if direct_io && !device.backing().is_ok_and(|backing| backing.direct_io) {
        device.set_direct_io(true).map_err(failed("read with direct I/O", &path))?;
    }
    erofs::mount(&device, mount_point).map_err(failed("mount EROFS at", mount_point))?;
    Ok((device, backing))
}

/// Puts the local file under the EROFS mount at this place. Waits for the reads in flight. One that has it already is fine.
pub(super) fn exchange(at: &Path, path: &Path, options: KernelOptions) -> Result<(), KernelError> {
    if erofs::file_at(at).as_deref() == Some(path) {
        return Ok(());
    }
    let gone = || failed("find the loop device of", at)(io::ErrorKind::NotFound.into());
    let device = erofs::device_at(at).ok_or_else(gone)?;
    let file = File::open(path).map_err(failed("open", path))?;
    let local = file.metadata().map_err(failed("look at", path))?;
    let backing = device.backing().map_err(failed("look at the loop device of", at))?;
    if (backing.device, backing.inode) != (split(local.dev()), local.ino()) {
        let cached = HeldFiles::below(at, usize::try_from(options.held_files).unwrap_or(usize::MAX));
        device.change(&file).map_err(failed("put the local file under", at))?;
        cached.let_go();
    }
    suit_a_disk(&device, options);
    Ok(())
}

/// Mounts the local file without a loop device in the place of the EROFS mount that has it under it, for who comes from now on. One that is like that
/// already is fine; none is an error.
pub(super) fn replace(at: &Path, path: &Path) -> Result<(), KernelError> {
    if erofs::file_at(at).as_deref() == Some(path) {
        return Ok(());
    }
    erofs::replace_by_file(path, at).map_err(failed("mount without a loop device at", at))
}

/// By way of the page cache of the layer file's own file system, which reads ahead over the borders of files: measured, reading many files in
/// tar order takes half the time, one reader or four, and files picked at random no more.
fn suit_a_disk(device: &Device, options: KernelOptions) {
    // What fails leaves it slower.
    let _ = device.set_direct_io(false);
    device.read_ahead(options.local_read_ahead_kib);
}

/// Major and minor number.
pub(super) fn split(device: u64) -> (u32, u32) {
    (rustix::fs::major(device), rustix::fs::minor(device))
}
