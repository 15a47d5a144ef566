//! The front end above FUSE: the kernel's own EROFS driver on the layer file.
//!
//! A layer file is an EROFS image. Where the machine can ([`Kernel::probe`]), a lazy layer is, from below: the FUSE mount at
//! `snapshots/<id>/fs`, as always; the layer file as a hidden file of it; a read-only loop device with direct I/O over that; EROFS mounted from
//! the device at `snapshots/<id>/erofs`, which overlayfs takes as its lower directory. Names, attributes and cached data then never leave
//! the kernel, and a read of what is missing waits in FUSE alone: with direct I/O the loop device has all reads under way at the same time.
//!
//! When the layer is complete, [`KernelMount::leave_fuse`] puts the local layer file in the place of the hidden one, under whoever reads: they
//! need neither FUSE nor this process any more. Where the kernel can, a layer that is complete from the beginning is mounted without a loop device, and
//! after a while ([`KernelMount::leave_device`]) so is this one, for who comes later.
//!
//! Whatever fails leaves the FUSE mount, and says so in one line. Loop devices are never asked for by number: each has its EROFS mount,
//! and is let go of by the kernel when the last of mount and container has gone ("autoclear"). What may wait for FUSE is never done by this
//! process itself: see [`errand`].

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lazy_layer::Layer;
use serde::{Deserialize, Serialize};

use crate::failpoint;
use crate::snapshot::FrontEnd;

mod attach;
mod device;
mod erofs;
pub mod errand;
mod held;
mod probe;
#[cfg(test)]
mod tests;
mod udev;

use errand::{Errand, Errands};
pub use probe::ProbeError;

/// Name of the directory beside `fs`.
const DIRECTORY: &str = "erofs";

/// How the kernel front end behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct KernelOptions {
    /// How far the kernel reads ahead of who reads a file, in KiB, as long as data comes by way of FUSE.
    #[arg(long)]
    pub read_ahead_kib: u32,
    /// The same for a layer that is complete on the local disk.
    #[arg(long)]
    pub local_read_ahead_kib: u32,
    /// Loop devices that are tried while others are faster with them.
    #[arg(long)]
    pub loop_attempts: u32,
    /// Files of a layer that keep what the kernel has cached of them when the layer leaves FUSE.
    #[arg(long)]
    pub held_files: u32,
    /// Layers that are complete are mounted without a loop device: this machine can, as [`Kernel::probe`] finds.
    #[arg(long)]
    pub without_device: bool,
}

/// The kernel front end, on a machine that was found to have it.
#[derive(Clone, Debug)]
pub struct Kernel {
    options: KernelOptions,
    errands: Errands,
}

/// One layer's EROFS mount. Has to be unmounted; dropping it leaves the mount as it is.
#[derive(Debug)]
#[must_use = "dropping it leaves the mount behind"]
pub struct KernelMount {
    mount_point: PathBuf,
    layer: Arc<Layer>,
    options: KernelOptions,
    errands: Errands,
    /// Its bytes come from the local file.
    local: AtomicBool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    pub operation: Cow<'static, str>,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

// === impl KernelOptions ===

impl Default for KernelOptions {
    fn default() -> KernelOptions {
        KernelOptions {
            read_ahead_kib: 1024,
            local_read_ahead_kib: 1024,
            loop_attempts: 64,
            held_files: 65_536,
            without_device: false,
        }
    }
}

// === impl Kernel ===

impl Kernel {
    /// Tries on a small image below `scratch` whether this machine has EROFS with blocks of 512 bytes and loop devices, and tells udev of the latter.
    /// Blocking.
    ///
    /// # Errors
    /// What it lacks.
    pub fn probe(scratch: &Path, options: KernelOptions, errands: Errands) -> Result<Kernel, ProbeError> {
        let options = KernelOptions { without_device: probe::probe(scratch, options)?, ..options };
        if let Err(error) = udev::tell(Path::new(udev::PLACE)) {
            tracing::warn!(error = %error, "udev cannot be told to leave loop devices alone; it has some of every layer fetched");
        }
        Ok(Kernel { options, errands })
    }

    /// Puts EROFS, mounted at `…/erofs`, above a layer that FUSE shows at `…/fs`. One that an earlier process left there, and that works, is gone on
    /// with; a dead one is taken out of sight first. Not on the network: metadata is always here.
    ///
    /// # Errors
    /// [`KernelError`], also when `deadline` has passed; there is nothing but the FUSE mount then, or what comes too late is unmounted again.
    pub async fn attach(
        &self,
        layer: &Arc<Layer>,
        fuse_at: &Path,
        deadline: Duration,
    ) -> Result<KernelMount, KernelError> {
        if failpoint::never_attaches() {
            return Err(failed("mount EROFS beside", fuse_at)(io::ErrorKind::PermissionDenied.into()));
        }
        let errand = Errand::Attach {
            fuse: fuse_at.to_owned(),
            file: layer.path(),
            complete: layer.is_complete(),
            options: self.options,
        };
        let backing = self.errands.perform(errand, Some(deadline)).await?;
        Ok(KernelMount {
            mount_point: fuse_at.with_file_name(DIRECTORY),
            layer: Arc::clone(layer),
            options: self.options,
            errands: self.errands.clone(),
            local: AtomicBool::new(backing == Some(Backing::Local)),
        })
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

    /// Has a layer that is complete read from its local file from now on, by containers that run too. The reads in flight
    /// are waited for, all of whose data is here.
    ///
    /// Returns whether it does so now and did not before.
    ///
    /// # Errors
    /// [`KernelError`], also where nothing is mounted any more; everything is as before then, unless it took too long, when it may still be done.
    pub async fn leave_fuse(&self) -> Result<bool, KernelError> {
        if !self.may_leave() {
            return Ok(false);
        }
        self.exchange().await?;
        Ok(true)
    }

    /// Where the kernel can, has who comes from now on read the file without a loop device. What the kernel has cached is that of the loop device, and of no use to them: this is
    /// for later than [`KernelMount::leave_fuse`].
    ///
    /// Returns whether anything has changed.
    ///
    /// # Errors
    /// As those of [`KernelMount::leave_fuse`].
    pub async fn leave_device(&self) -> Result<bool, KernelError> {
        if !self.options.without_device || !self.local.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let (at, file) = (self.mount_point.clone(), self.layer.path());
        self.errands.perform(Errand::Replace { at, file }, None).await?;
        Ok(true)
    }

    async fn exchange(&self) -> Result<(), KernelError> {
        let (at, file) = (self.mount_point.clone(), self.layer.path());
        self.errands.perform(Errand::Exchange { at, file, options: self.options }, None).await?;
        self.local.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A container may be given no byte of the file itself before all of it was checked.
    fn may_leave(&self) -> bool {
        !self.local.load(Ordering::Relaxed) && self.layer.is_complete()
    }

    /// Unmounts it; one that is in use is taken out of sight, and goes when its last user does. An exchange that is under way finds no mount any more, or
    /// ends with its own. Blocking, see [`Errands::unmount`].
    ///
    /// # Errors
    /// [`KernelError`] if the kernel refuses; it is still mounted then.
    pub fn unmount(&self) -> Result<Unmounting, KernelError> {
        self.errands.unmount(&self.mount_point)
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError { operation: operation.into(), path, source }
}
