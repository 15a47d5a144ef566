//! The front end above FUSE: the kernel's own EROFS driver on the layer file.
//!
//! A layer file is an EROFS image. Where the machine can ([`Kernel::probe`]), a lazy layer is, from below: the FUSE mount at
//! `snapshots/<id>/fs`, as always; the layer file as a hidden file of it; a read-only loop device with direct I/O over that; EROFS mounted from
//! the device at `snapshots/<id>/erofs`, which overlayfs takes as its lower directory. Names, attributes and cached data then never leave
//! the kernel, and a read of what is missing waits in FUSE alone: with direct I/O the loop device has all reads under way at the same time.
//!
//! When the layer is complete, [`KernelMount::leave_fuse`] puts the local layer file in the place of the hidden one, under whoever reads: they
//! need neither FUSE nor this process any more. A layer that is complete from the beginning is mounted from the local file at once.
//!
//! Whatever fails leaves the FUSE mount, and says so in one line. Loop devices are never asked for by number: each has its EROFS mount,
//! and is let go of by the kernel when the last of mount, container and daemon has gone ("autoclear").

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use lazy_layer::Layer;
use parking_lot::Mutex;

use crate::fuse::FuseMount;
use crate::snapshot::FrontEnd;

mod device;
mod erofs;
mod probe;
#[cfg(test)]
mod tests;

use device::Device;
pub use probe::ProbeError;

/// Name of the directory beside `fs`.
const DIRECTORY: &str = "erofs";
/// How long an unmount waits for an exchange of the backing file that is under way.
const EXCHANGE_PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits for reads that the kernel has begun ahead of readers who have gone.
const UNMOUNT_PATIENCE: Duration = Duration::from_millis(200);
/// Stack of the thread that waits for them.
const STACK: usize = 128 << 10;

/// How the kernel front end behaves.
#[derive(Clone, Copy, Debug)]
pub struct KernelOptions {
    /// How far the kernel reads ahead of who reads a file, in KiB, as long as data comes by way of FUSE.
    pub read_ahead_kib: u32,
    /// The same for a layer that is complete on the local disk.
    pub local_read_ahead_kib: u32,
}

/// The kernel front end, on a machine that was found to have it.
#[derive(Clone, Debug)]
pub struct Kernel {
    options: KernelOptions,
}

/// One layer's EROFS mount. Has to be unmounted; dropping it leaves the mount as it is.
#[derive(Debug)]
#[must_use = "dropping it leaves the mount behind"]
pub struct KernelMount {
    mount_point: PathBuf,
    layer: Arc<Layer>,
    options: KernelOptions,
    /// Its bytes come from the local file.
    local: AtomicBool,
    /// None once it is unmounted. Held while the backing file is exchanged, which waits for the reads in flight.
    device: Mutex<Option<Device>>,
}

/// How far an unmount has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounting {
    /// It is out of sight; users that there may be go on reading, and the last one ends it.
    Done,
    /// It is out of sight and nobody uses it, but the kernel waits for what it has begun to read ahead: until that comes, or fails because the
    /// layer has no source any more.
    Waits,
}

/// Where a loop device's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    /// The hidden file of the FUSE mount.
    Fuse,
    /// The layer file itself.
    Local,
}

/// Why a layer has no kernel front end.
#[derive(Debug, thiserror::Error)]
#[error("unable to {operation} {}", path.display())]
pub struct KernelError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

// === impl Kernel ===

impl Kernel {
    /// Tries on a small image below `scratch` whether this machine has EROFS with blocks of 512 bytes and loop devices. Blocking.
    ///
    /// # Errors
    /// What it lacks.
    pub fn probe(scratch: &Path, options: KernelOptions) -> Result<Kernel, ProbeError> {
        probe::probe(scratch)?;
        Ok(Kernel { options })
    }

    /// Puts EROFS, mounted at `…/erofs`, above a layer that FUSE shows at `…/fs`. One that an earlier process left there, and that works, is gone on
    /// with; a dead one is taken out of sight first. Blocking, not on the network: metadata is always here.
    ///
    /// # Errors
    /// [`KernelError`]; nothing but the FUSE mount is there then.
    pub fn attach(&self, layer: &Arc<Layer>, fuse_at: &Path) -> Result<KernelMount, KernelError> {
        let mount_point = fuse_at.with_file_name(DIRECTORY);
        let (device, backing) = match self.adopt(layer, fuse_at, &mount_point) {
            Some(found) => found,
            None => {
                erofs::clear(&mount_point).map_err(failed("clear", &mount_point))?;
                self.mount(layer, fuse_at, &mount_point)?
            }
        };
        if backing == Backing::Local {
            suit_a_disk(&device, self.options);
        } else {
            device.read_ahead(self.options.read_ahead_kib);
        }
        Ok(KernelMount {
            mount_point,
            layer: Arc::clone(layer),
            options: self.options,
            local: AtomicBool::new(backing == Backing::Local),
            device: Mutex::new(Some(device)),
        })
    }

    /// Goes on with what is mounted, if its bytes come from this layer's file or by way of this very FUSE mount.
    fn adopt(&self, layer: &Layer, fuse_at: &Path, mount_point: &Path) -> Option<(Device, Backing)> {
        let device = erofs::device_at(mount_point)?;
        let found = device.backing().ok().filter(|found| found.read_only)?;
        let local = std::fs::metadata(layer.path()).ok()?;
        if (found.device, found.inode) == (split(local.dev()), local.ino()) {
            return Some((device, Backing::Local));
        }
        // A device number belongs to one mounted file system: another FUSE mount would have another.
        let over_fuse = FuseMount::layer_file_id(fuse_at).ok()?;
        ((found.device, found.inode) == over_fuse && found.direct_io).then_some((device, Backing::Fuse))
    }

    fn mount(
        &self,
        layer: &Layer,
        fuse_at: &Path,
        mount_point: &Path,
    ) -> Result<(Device, Backing), KernelError> {
        let (path, backing) = if layer.is_complete() {
            (layer.path(), Backing::Local)
        } else {
            (FuseMount::layer_file(fuse_at), Backing::Fuse)
        };
        let file = File::open(&path).map_err(failed("open", &path))?;
        let device = Device::over(&file).map_err(failed("find a loop device for", &path))?;
        if backing == Backing::Fuse {
            // Otherwise one missing span would delay everybody.
            device.set_direct_io(true).map_err(failed("read with direct I/O", &path))?;
        }
        std::fs::create_dir(mount_point)
            .or_else(|error| if mount_point.is_dir() { Ok(()) } else { Err(error) })
            .map_err(failed("make", mount_point))?;
        erofs::mount(&device, mount_point).map_err(failed("mount EROFS at", mount_point))?;
        Ok((device, backing))
    }
}

// === impl KernelMount ===

impl KernelMount {
    /// What containers are to see of the layer.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Where its bytes come from. Waits for nothing.
    #[must_use]
    pub fn front_end(&self) -> FrontEnd {
        if self.local.load(Ordering::Relaxed) { FrontEnd::Local } else { FrontEnd::KernelOverFuse }
    }

    /// Has a layer that is complete read from its local file from now on, by containers that run too. Blocking: the reads in flight
    /// are waited for, all of whose data is here.
    ///
    /// Returns whether it does so now and did not before.
    ///
    /// # Errors
    /// [`KernelError`]; everything is as before then.
    pub fn leave_fuse(&self) -> Result<bool, KernelError> {
        let device = self.device.lock();
        let Some(device) = device.as_ref().filter(|_| self.may_leave()) else {
            return Ok(false);
        };
        self.exchange(device)?;
        Ok(true)
    }

    fn exchange(&self, device: &Device) -> Result<(), KernelError> {
        let path = self.layer.path();
        let file = File::open(&path).map_err(failed("open", &path))?;
        device.change(&file).map_err(failed("put the local file under", &self.mount_point))?;
        self.local.store(true, Ordering::Relaxed);
        suit_a_disk(device, self.options);
        Ok(())
    }

    /// A container may be given no byte of the file itself before all of it was checked.
    fn may_leave(&self) -> bool {
        !self.local.load(Ordering::Relaxed) && self.layer.is_complete()
    }

    /// Unmounts it; one that is in use is taken out of sight, and goes when its last user does. Blocking, for a few seconds at most.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel refuses; it is still mounted then.
    pub fn unmount(&self) -> Result<Unmounting, KernelError> {
        let (done, ended) = mpsc::channel();
        let at = self.mount_point.clone();
        let unmount = move || {
            // Nobody listens any more if it took long.
            let _ = done.send(erofs::unmount(&at));
        };
        thread::Builder::new()
            .name("unmount-erofs".into())
            .stack_size(STACK)
            .spawn(unmount)
            .map_err(failed("unmount", &self.mount_point))?;
        let unmounting = match ended.recv_timeout(UNMOUNT_PATIENCE) {
            Ok(Ok(())) => Unmounting::Done,
            Ok(Err(source)) => return Err(failed("unmount", &self.mount_point)(source)),
            Err(_) => Unmounting::Waits,
        };
        // With the descriptor the last hold on the device goes, unless a container has one. Who is exchanging the file drops it later.
        if let Some(mut device) = self.device.try_lock_for(EXCHANGE_PATIENCE) {
            *device = None;
        }
        Ok(unmounting)
    }
}

/// By way of the page cache of the layer file's own file system, which reads ahead over the borders of files: measured, reading many files in
/// tar order takes half the time, one reader or four, and files picked at random no more.
fn suit_a_disk(device: &Device, options: KernelOptions) {
    if let Err(error) = device.set_direct_io(false) {
        tracing::debug!(device = %device.path().display(), error = %error, "unable to turn direct I/O off");
    }
    device.read_ahead(options.local_read_ahead_kib);
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError { operation, path, source }
}

/// Major and minor number.
fn split(device: u64) -> (u32, u32) {
    (rustix::fs::major(device), rustix::fs::minor(device))
}
