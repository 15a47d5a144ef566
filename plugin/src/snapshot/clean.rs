//! Letting go: one task that unmounts and deletes what belongs to no snapshot any more.

use std::sync::{Arc, Weak};

use tokio::sync::{mpsc, oneshot};

use super::record::{Id, LazyRecord};
use super::{Shared, SnapshotError, Snapshotter};
use crate::failpoint;

/// A clean-up that could not be waited for.
#[derive(Debug, thiserror::Error)]
#[error("too many clean-ups at the same time")]
pub struct CleanError;

/// Serves requests as long as there is a snapshotter. Everything that is queued when a pass begins is answered by it.
pub(super) async fn run(shared: Weak<Shared>, mut requests: mpsc::Receiver<oneshot::Sender<()>>) {
    let (mut waiting, all) = (Vec::new(), requests.max_capacity());
    while requests.recv_many(&mut waiting, all).await > 0 {
        let Some(shared) = shared.upgrade() else { return };
        Snapshotter { shared }.clean().await;
        for done in waiting.drain(..) {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }
}

// === impl Snapshotter ===

impl Snapshotter {
    /// Waits until everything that belongs to no snapshot at this moment is unmounted and deleted.
    ///
    /// # Errors
    /// Where more clean-ups wait than make sense.
    pub async fn cleanup(&self) -> Result<(), CleanError> {
        let (done, wait) = oneshot::channel();
        self.shared.cleaner.try_send(done).map_err(|_| CleanError)?;
        wait.await.map_err(|_| CleanError)
    }

    /// Unmounts everything, for the end of the daemon. The snapshots stay.
    pub async fn unmount_all(&self) {
        let all: Vec<Id> = self.shared.mounted.lock().keys().copied().collect();
        let mut tasks = tokio::task::JoinSet::new();
        for id in all {
            let this = self.clone();
            tasks.spawn(async move { this.unmount(id).await });
        }
        tasks.join_all().await;
    }

    pub(super) async fn unmount(&self, id: Id) {
        let Some(mounted) = self.shared.mounted.lock().remove(&id) else { return };
        let path = self.shared.tree.fs(id);
        let then = self.shared.cleaner_later();
        let unmounted = tokio::task::spawn_blocking(move || mounted.mount.unmount(then)).await;
        if let Ok(Err(error)) = unmounted {
            tracing::warn!(error, "mount-point" = %path.display(), "failed to unmount layer");
        }
    }

    async fn clean(&self) {
        let orphans = self.blocking(|shared| Ok(shared.store.orphans(|| shared.tree.present())?)).await;
        let orphans = match orphans {
            Ok(orphans) => orphans,
            Err(error) => return warn(&error, "failed to look for snapshots to clean up"),
        };
        for id in orphans {
            failpoint::pass("clean.found");
            self.unmount(id).await;
            failpoint::pass("clean.unmounted");
            let removed = self
                .blocking(move |shared| {
                    shared.tree.remove(id).map_err(|source| SnapshotError::File {
                        operation: "remove",
                        path: shared.tree.directory(id),
                        source,
                    })
                })
                .await;
            if let Err(error) = removed {
                warn(&error, "failed to remove a snapshot's directory");
            }
            failpoint::pass("clean.removed");
        }
        let swept = self
            .blocking(|shared| {
                let keep: Vec<LazyRecord> =
                    shared.store.list()?.into_iter().filter_map(|named| named.record.lazy).collect();
                Arc::clone(&shared.backend).sweep(&keep);
                Ok(())
            })
            .await;
        if let Err(error) = swept {
            warn(&error, "failed to look for layers to clean up");
        }
    }
}

fn warn(error: &SnapshotError, message: &'static str) {
    tracing::warn!(error = crate::telemetry::chain(error), "{message}");
}
