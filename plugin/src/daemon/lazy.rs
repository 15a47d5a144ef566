//! The snapshot verbs' [`Backend`]: resolver, FUSE and unpacker put together.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use erofs_image::{Kind, Nid};
use futures_util::future::BoxFuture;
use lazy_layer::{Attachment, Layer, LayerStatus};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::failpoint;
use crate::fuse::{FuseMount, FuseOptions};
use crate::keeper::{Keeper, KeptMount};
use crate::kernel::errand::Errands;
use crate::kernel::{Kernel, KernelMount, Unmounting};
use crate::mountinfo::MountInfo;
use crate::resolve::{Resolution, ResolvedLayer, Resolver};
use crate::snapshot::{
    Asked, Attempt, Backend, Below, Directories, FrontEnd, Id, KeptLayer, LazyMount, LazyRecord, Look, Pin,
    Sight, Slot, Then,
};
use crate::telemetry::chain;
use crate::unpack::Unpacker;

/// Before a complete layer is tried once more to be made independent of FUSE or its loop device; each further pause is twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// The real thing.
#[derive(Debug)]
pub(super) struct LazyBackend {
    pub(super) resolver: Arc<Resolver>,
    pub(super) unpacker: Arc<Unpacker>,
    pub(super) mounting: Mounting,
    pub(super) errands: Errands,
    pub(super) keeper: Keeper,
    /// What the keeper had at the start and nobody has asked for yet.
    pub(super) kept: Mutex<BTreeMap<Slot, KeptMount>>,
}

/// How layers are mounted.
#[derive(Clone, Debug)]
pub(super) struct Mounting {
    pub(super) fuse: FuseOptions,
    /// How long mount(2) and the hand-shake may take; they ask nobody outside the machine.
    pub(super) mount_deadline: Duration,
    /// None where containers read FUSE itself.
    pub(super) kernel: Option<Kernel>,
    /// How long that may take to come up, once FUSE is there.
    pub(super) attach_deadline: Duration,
    /// How long a layer that has left FUSE keeps its loop device for new containers, which share what is cached of it.
    pub(super) shared_cache: Duration,
}

/// A layer that the kernel shows.
#[derive(Debug)]
struct MountedLayer {
    mount: FuseMount,
    kernel: Option<Attached>,
    layer: Arc<Layer>,
    source: Attachment,
}

/// What the users of a mount need that was given up, and what is done when the last of them has gone.
struct Left {
    source: Option<Attachment>,
    then: Option<Then>,
}

/// The kernel front end of a layer, and the task that has it leave FUSE when the layer is complete, and its loop device after that.
#[derive(Debug)]
struct Attached {
    mount: Arc<KernelMount>,
    leaving: AbortHandle,
}

impl Backend for LazyBackend {
    fn starts(&self, from_above: &[Arc<Layer>]) {
        self.resolver.starts(from_above);
    }

    fn runs(&self, namespace: Option<&str>, key: &str, from_above: &[Arc<Layer>]) {
        self.resolver.runs(namespace, key, from_above);
    }

    fn mount(
        &self,
        asked: Asked,
        id: Id,
        at: PathBuf,
        below: Vec<Arc<Layer>>,
    ) -> BoxFuture<'static, Attempt> {
        let (resolver, mounting) = (Arc::clone(&self.resolver), self.mounting.clone());
        let how = How::Anew(self.keeper.clone(), id);
        Box::pin(async move {
            match resolver.resolve(asked.namespace.as_deref(), &asked.layer, &below).await {
                Resolution::Lazy(resolved) => {
                    let record = resolved.record.clone();
                    // The uppermost layer of an image that comes: somebody is about to start it.
                    if asked.layer.rest.len() <= 1 {
                        let from_above: Vec<_> =
                            std::iter::once(Arc::clone(&resolved.layer)).chain(below).collect();
                        resolver.starts(&from_above);
                    }
                    failpoint::pass("prepare.resolved");
                    match mounting.mount(resolved, at, how).await {
                        Ok(mounted) => Attempt::Mounted(record, mounted),
                        Err(MountFailure::Refused(reason)) => Attempt::Failed(reason),
                        Err(MountFailure::Late) => {
                            Attempt::Stuck(format!("the kernel did not mount layer {} in time", record.layer))
                        }
                    }
                }
                Resolution::NoZtoc(reason) => Attempt::NoZtoc(reason),
                Resolution::NoIndex(reason) => Attempt::NoIndex(reason),
                Resolution::NoAnswer(reason) => Attempt::NoAnswer(reason),
                Resolution::Unusable(reason) => Attempt::Failed(reason),
            }
        })
    }

    fn unpack(&self, asked: Asked, lower: Vec<Below>, at: PathBuf) -> BoxFuture<'static, Result<(), String>> {
        let unpacker = Arc::clone(&self.unpacker);
        Box::pin(async move {
            unpacker
                .unpack(asked.namespace.as_deref(), &asked.layer, lower, at)
                .await
                .map_err(|error| chain(&error))
        })
    }

    fn remount(
        &self,
        lazy: LazyRecord,
        id: Id,
        at: PathBuf,
    ) -> BoxFuture<'static, Result<Box<dyn LazyMount>, String>> {
        let how = How::Anew(self.keeper.clone(), id);
        Box::pin(restore(Arc::clone(&self.resolver), lazy, at, how, self.mounting.clone()))
    }

    fn kept(&self) -> Vec<KeptLayer> {
        let kept = self.kept.lock();
        let layer = |(slot, kept): (&Slot, &KeptMount)| KeptLayer {
            slot: *slot,
            id: kept.record.snapshot,
            lazy: kept.record.lazy.clone(),
            ready: kept.record.agreed.is_some(),
        };
        kept.iter().map(layer).collect()
    }

    fn resume(
        &self,
        slot: Slot,
        sight: Sight,
        at: PathBuf,
    ) -> BoxFuture<'static, Result<Box<dyn LazyMount>, String>> {
        let Some(kept) = self.kept.lock().remove(&slot) else {
            return Box::pin(std::future::ready(Err("it is not kept".to_owned())));
        };
        // The very layer file that the kernel has the inode numbers of, whatever the snapshot says today.
        let lazy = kept.record.lazy.clone();
        let how = How::Resumed(Box::new(kept), sight);
        Box::pin(restore(Arc::clone(&self.resolver), lazy, at, how, self.mounting.clone()))
    }

    fn drop_kept(&self, slot: Slot) {
        let kept = self.kept.lock().remove(&slot);
        if let Some(kept) = kept {
            kept.release();
        }
    }

    fn unmount_front_end(&self, at: &Path) -> io::Result<()> {
        self.errands.unmount(at).map(drop).map_err(io::Error::other)
    }

    fn pin(&self, lazy: &LazyRecord) -> Pin {
        Box::new(self.resolver.pin(lazy))
    }

    fn sweep(&self, keep: &[LazyRecord]) {
        self.resolver.sweep(keep);
    }
}

/// A layer that was mounted before. One that is kept and fails here is let go.
async fn restore(
    resolver: Arc<Resolver>,
    lazy: LazyRecord,
    at: PathBuf,
    how: How,
    mounting: Mounting,
) -> Result<Box<dyn LazyMount>, String> {
    let restored = resolver.restore(&lazy).await;
    let resolved = match restored.and_then(|resolved| how.fits(&resolved.layer).map(|()| resolved)) {
        Ok(resolved) => resolved,
        Err(reason) => {
            if let How::Resumed(kept, _) = how {
                kept.release();
            }
            return Err(reason);
        }
    };
    mounting.mount(resolved, at, how).await.map_err(|failure| match failure {
        MountFailure::Refused(reason) => reason,
        MountFailure::Late => "the kernel did not mount it in time".to_owned(),
    })
}

enum MountFailure {
    /// Nothing is mounted.
    Refused(String),
    /// It may be, later.
    Late,
}

/// How a mount comes to be.
enum How {
    Anew(Keeper, Id),
    Resumed(Box<KeptMount>, Sight),
}

// === impl How ===

impl How {
    /// Whether the mount can have this layer file. What the kernel knows by number of one that is gone on with are the files of that very one: if that was lost,
    /// the same may have been made anew, and if it is another, the mount is better dead.
    fn fits(&self, layer: &Layer) -> Result<(), String> {
        match self {
            How::Resumed(kept, _) if !kept.record.may_have(layer.metadata()) => {
                Err("the layer file that it was made with is lost, and what is made from the zTOC today is another".into())
            }
            How::Anew(..) | How::Resumed(..) => Ok(()),
        }
    }
}

// === impl Mounting ===

impl Mounting {
    /// FUSE first, then what is above it, where the machine has that.
    async fn mount(
        self,
        resolved: ResolvedLayer,
        at: PathBuf,
        how: How,
    ) -> Result<Box<dyn LazyMount>, MountFailure> {
        let ResolvedLayer { layer, source, record, took } = resolved;
        let began = Instant::now();
        let seen = !matches!(how, How::Resumed(_, Sight::Unseen));
        let (options, shown) = (self.fuse.clone(), Arc::clone(&layer));
        let mut mounting = tokio::task::spawn_blocking(move || {
            let shows_file = options.layer_file;
            let mount = match how {
                How::Anew(keeper, id) => FuseMount::mount(Arc::clone(&shown), &at, options, |device| {
                    keeper.hold(id, &record, shows_file, shown.metadata(), device)
                })?,
                How::Resumed(kept, _) => FuseMount::resume(Arc::clone(&shown), &at, options, *kept)?,
            };
            Ok::<_, crate::fuse::MountError>(MountedLayer { mount, kernel: None, layer: shown, source })
        });
        let mut mounted = match tokio::time::timeout(self.mount_deadline, &mut mounting).await {
            Ok(Ok(Ok(mounted))) => mounted,
            Ok(Ok(Err(error))) => return Err(MountFailure::Refused(chain(&error))),
            Ok(Err(_)) => return Err(MountFailure::Refused("the daemon is stopping".into())),
            Err(_) => {
                // Should it come after all, nobody waits for it any more.
                tokio::spawn(async move {
                    if let Ok(Ok(mounted)) = mounting.await {
                        let unmount = move || Box::new(mounted).unmount(Box::new(|| {}));
                        let _ = tokio::task::spawn_blocking(unmount).await;
                    }
                });
                return Err(MountFailure::Late);
            }
        };
        let fuse = began.elapsed();
        if let Some(kernel) = self.kernel.filter(|_| seen) {
            match kernel.attach(&layer, mounted.mount.mount_point(), self.attach_deadline).await {
                Ok(mount) => mounted.kernel = Some(Attached::of(mount, &layer, self.shared_cache)),
                Err(error) => tracing::warn!(
                    layerDigest = %layer.key().layer,
                    "mount-point" = %mounted.mount.mount_point().display(),
                    error = chain(&error),
                    "a layer goes on with FUSE alone"
                ),
            }
        }
        tracing::debug!(
            layerDigest = %layer.key().layer,
            "mount-point" = %mounted.mount.mount_point().display(),
            inodes = layer.image().inodes(),
            "file-usec" = micros(took),
            "fuse-usec" = micros(fuse),
            "kernel-usec" = micros(began.elapsed().saturating_sub(fuse)),
            "layer mounted"
        );
        Ok(Box::new(mounted))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Whether a step that a layer takes when it is complete has changed anything. What fails (a process may not start, or be killed) is tried again, as long as the layer is
/// mounted; `said` hears of the first failure.
async fn until_done<S, E>(step: impl Fn() -> S, mut pause: Duration, said: impl FnOnce(String)) -> bool
where
    S: Future<Output = Result<bool, E>>,
    E: std::error::Error,
{
    let mut said = Some(said);
    loop {
        match step().await {
            Ok(changed) => return changed,
            Err(error) => {
                let error = chain(&error);
                match said.take() {
                    Some(said) => said(error),
                    None => tracing::debug!(error, "a complete layer is where it was"),
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(LAST_PAUSE);
    }
}

/// Whether what is mounted here comes from a device, as the table of all mounts says: the mount itself is not asked.
fn has_device(at: &Path) -> bool {
    let mounts = MountInfo::all().unwrap_or_default();
    mounts
        .iter()
        .rfind(|mount| mount.point == at)
        .is_some_and(|mount| mount.source.parent() == Some(Path::new("/dev")))
}

// === impl Attached ===

impl Attached {
    fn of(mount: KernelMount, layer: &Layer, shared_cache: Duration) -> Attached {
        let mount = Arc::new(mount);
        let (completed, leaves) = (layer.completed(), Arc::clone(&mount));
        let leaving = tokio::spawn(async move {
            if !completed.await {
                return;
            }
            let at = leaves.mount_point().to_owned();
            let place = at.display();
            let said = |error| tracing::warn!("mount-point" = %place, error, "a complete layer stays with FUSE for now");
            if until_done(|| leaves.leave_fuse(), FIRST_PAUSE, said).await {
                tracing::info!("mount-point" = %place, "a complete layer needs FUSE no longer");
            }
            // One that has left FUSE before a restart has still to leave its device; one that was complete before it was mounted never had any.
            let device = at.clone();
            if !tokio::task::spawn_blocking(move || has_device(&device)).await.unwrap_or(false) {
                return;
            }
            tokio::time::sleep(shared_cache).await;
            let said = |error| tracing::warn!("mount-point" = %place, error, "a complete layer keeps its loop device for now");
            if until_done(|| leaves.leave_device(), FIRST_PAUSE, said).await {
                tracing::info!("mount-point" = %place, "a complete layer needs its loop device no longer");
            }
        });
        Attached { mount, leaving: leaving.abort_handle() }
    }
}

// === impl Left ===

impl Drop for Left {
    fn drop(&mut self) {
        self.source = None;
        if let Some(then) = self.then.take() {
            then();
        }
    }
}

/// What the layer file's metadata says.
#[derive(Debug)]
struct LayerDirectories(Arc<Layer>);

impl LazyMount for MountedLayer {
    fn unmount(self: Box<Self>, then: Then) -> Result<(), String> {
        let MountedLayer { mount, kernel, source, .. } = *self;
        source.for_reads_only();
        let unmounted = match kernel {
            Some(Attached { mount, leaving }) => {
                leaving.abort();
                mount.unmount().map_err(|error| chain(&error))
            }
            None => Ok(Unmounting::Done),
        };
        failpoint::pass("clean.erofs-unmounted");
        // What the kernel waits for, and nobody else, ends without it. Else whoever still has a file open goes on reading it.
        let source = (unmounted != Ok(Unmounting::Waits)).then_some(source);
        mount.keep(Left { source, then: Some(then) });
        let below = mount.unmount().map_err(|error| chain(&error));
        unmounted.and(below.map(|_| ()))
    }

    fn leave(self: Box<Self>, then: Then) {
        let MountedLayer { mount, source, .. } = *self;
        source.for_reads_only();
        mount.keep(Left { source: Some(source), then: Some(then) });
    }

    fn status(&self) -> Box<dyn FnOnce() -> LayerStatus + Send> {
        let layer = Arc::clone(&self.layer);
        Box::new(move || layer.status())
    }

    fn lower(&self) -> Option<&Path> {
        self.kernel.as_ref().map(|attached| attached.mount.mount_point())
    }

    fn layer(&self) -> Option<&Arc<Layer>> {
        Some(&self.layer)
    }

    fn directories(&self) -> Option<Arc<dyn Directories>> {
        Some(Arc::new(LayerDirectories(Arc::clone(&self.layer))))
    }

    fn front_end(&self) -> FrontEnd {
        self.kernel.as_ref().map_or(FrontEnd::Fuse, |attached| attached.mount.front_end())
    }
}

impl Directories for LayerDirectories {
    fn look(&self, path: &[Vec<u8>]) -> Option<Look> {
        let image = self.0.image();
        let directory = path.iter().try_fold(Nid::ROOT, |parent, name| image.lookup(parent, name).ok()?)?;
        let inode = image.inode(directory).ok().filter(|inode| inode.kind == Kind::Directory)?;
        Some(Look { uid: inode.uid, gid: inode.gid, mode: inode.permissions.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A process that could not be started is no verdict.
    #[tokio::test]
    async fn what_a_complete_layer_could_not_do_is_tried_again() {
        let (tries, said) = (AtomicUsize::new(0), Mutex::new(0));
        let step = || {
            std::future::ready(match tries.fetch_add(1, Ordering::SeqCst) {
                ..4 => Err(io::Error::from_raw_os_error(11)),
                _ => Ok(true),
            })
        };
        let pause = Duration::from_millis(1);
        assert!(until_done(step, pause, |_| *said.lock() += 1).await);
        assert_eq!((tries.load(Ordering::SeqCst), *said.lock()), (5, 1));
        let nothing = || std::future::ready(Ok::<_, io::Error>(false));
        assert!(!until_done(nothing, pause, |_| *said.lock() += 1).await);
        assert_eq!(*said.lock(), 1);
    }
}
