//! The snapshot verbs' [`Backend`]: resolver, FUSE and unpacker put together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use lazy_layer::{Attachment, Layer, LayerStatus};

use crate::fuse::{FuseMount, FuseOptions, Unmounted};
use crate::resolve::{Resolution, ResolvedLayer, Resolver};
use crate::snapshot::{Asked, Attempt, Backend, LazyMount, LazyRecord};
use crate::telemetry::chain;
use crate::unpack::Unpacker;

/// The real thing.
#[derive(Debug)]
pub(super) struct LazyBackend {
    pub(super) resolver: Arc<Resolver>,
    pub(super) unpacker: Arc<Unpacker>,
    /// How long mount(2) and the hand-shake may take; they ask nobody outside the machine.
    pub(super) mount_deadline: Duration,
}

/// A layer that the kernel shows.
#[derive(Debug)]
struct MountedLayer {
    mount: FuseMount,
    layer: Arc<Layer>,
    source: Attachment,
}

impl Backend for LazyBackend {
    fn mount(&self, asked: Asked, at: PathBuf) -> BoxFuture<'static, Attempt> {
        let (resolver, deadline) = (Arc::clone(&self.resolver), self.mount_deadline);
        Box::pin(async move {
            match resolver.resolve(asked.namespace.as_deref(), &asked.layer).await {
                Resolution::Lazy(resolved) => {
                    let record = resolved.record.clone();
                    match mount(resolved, at, deadline).await {
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

    fn unpack(
        &self,
        asked: Asked,
        lower: Vec<PathBuf>,
        at: PathBuf,
    ) -> BoxFuture<'static, Result<(), String>> {
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
        at: PathBuf,
    ) -> BoxFuture<'static, Result<Box<dyn LazyMount>, String>> {
        let (resolver, deadline) = (Arc::clone(&self.resolver), self.mount_deadline);
        Box::pin(async move {
            let resolved = resolver.restore(&lazy).await?;
            mount(resolved, at, deadline).await.map_err(|failure| match failure {
                MountFailure::Refused(reason) => reason,
                MountFailure::Late => "the kernel did not mount it in time".to_owned(),
            })
        })
    }

    fn sweep(&self, keep: &[LazyRecord]) {
        self.resolver.sweep(keep);
    }
}

enum MountFailure {
    /// Nothing is mounted.
    Refused(String),
    /// It may be, later.
    Late,
}

async fn mount(
    resolved: ResolvedLayer,
    at: PathBuf,
    deadline: Duration,
) -> Result<Box<dyn LazyMount>, MountFailure> {
    let ResolvedLayer { layer, source, .. } = resolved;
    let mut mounting = tokio::task::spawn_blocking(move || {
        let mount = FuseMount::mount(Arc::clone(&layer), &at, FuseOptions::default())?;
        Ok::<_, crate::fuse::MountError>(MountedLayer { mount, layer, source })
    });
    match tokio::time::timeout(deadline, &mut mounting).await {
        Ok(Ok(Ok(mounted))) => Ok(Box::new(mounted)),
        Ok(Ok(Err(error))) => Err(MountFailure::Refused(chain(&error))),
        Ok(Err(_)) => Err(MountFailure::Refused("the daemon is stopping".into())),
        Err(_) => {
            // Should it come after all, nobody waits for it any more.
            tokio::spawn(async move {
                if let Ok(Ok(mounted)) = mounting.await {
                    let _ = tokio::task::spawn_blocking(move || Box::new(mounted).unmount()).await;
                }
            });
            Err(MountFailure::Late)
        }
    }
}

impl LazyMount for MountedLayer {
    fn unmount(self: Box<Self>) -> Result<(), String> {
        let MountedLayer { mount, source, .. } = *self;
        match mount.unmount() {
            // Transfers end with the source.
            Ok(Unmounted::Gone) => drop(source),
            // Whoever still has a file open goes on reading it: its source stays as long as the process.
            Ok(Unmounted::InUse) => std::mem::forget(source),
            Err(error) => {
                std::mem::forget(source);
                return Err(chain(&error));
            }
        }
        Ok(())
    }

    fn status(&self) -> LayerStatus {
        self.layer.status()
    }
}
