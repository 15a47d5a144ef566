//! After a start: what a daemon that died left mounted goes, and the committed lazy layers come back, all at once.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::record::{Kind, Named, Record};
use super::{Mounted, SnapshotError, Snapshotter};

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Mounts that were left over.
    pub cleared: usize,
    /// Layers that are mounted again.
    pub mounted: usize,
    /// Layers that are not, or not yet.
    pub missing: usize,
}

// === impl Snapshotter ===

impl Snapshotter {
    /// Clears what is left and mounts every committed lazy layer again. One that cannot be mounted is logged and its snapshot is Unavailable;
    /// those that take longer than the start should take go on in the background.
    ///
    /// # Errors
    /// Where the mount table or the store cannot be read, or the kernel refuses to unmount.
    pub async fn restore(&self) -> Result<Restored, SnapshotError> {
        let (cleared, lazy) = self
            .blocking(|shared| {
                let cleared = shared.tree.unmount_all().map_err(|source| SnapshotError::File {
                    operation: "unmount what is left below",
                    path: shared.tree.path().to_owned(),
                    source,
                })?;
                let mut all = shared.store.list()?;
                all.retain(|named| named.record.lazy.is_some() && named.record.kind == Kind::Committed);
                Ok((cleared, all))
            })
            .await?;
        let mut restored = Restored { cleared, mounted: 0, missing: lazy.len() };
        let mut tasks = JoinSet::new();
        for Named { key, record } in lazy {
            let this = self.clone();
            tasks.spawn(async move { this.remount(key, record).await });
        }
        let deadline = tokio::time::Instant::now() + self.shared.options.restore_deadline;
        while let Ok(Some(done)) = tokio::time::timeout_at(deadline, tasks.join_next()).await {
            if done.unwrap_or(false) {
                restored.mounted += 1;
                restored.missing = restored.missing.saturating_sub(1);
            }
        }
        // Dropping the set would stop them.
        tasks.detach_all();
        Ok(restored)
    }

    /// Tries once more to mount a layer that should be, in the background.
    pub(super) fn revive(&self, key: String, record: Record) {
        let this = self.clone();
        tokio::spawn(async move { this.remount(key, record).await });
    }

    /// Whether it is mounted afterwards.
    async fn remount(&self, key: String, record: Record) -> bool {
        let id = record.id;
        let Some(lazy) = record.lazy else { return false };
        if !self.shared.restoring.lock().insert(id) {
            return false;
        }
        let result = match self.shared.restores.acquire().await {
            Ok(_permit) if self.shared.mounted.lock().contains_key(&id) => Ok(true),
            Ok(_permit) => {
                self.shared.backend.remount(lazy.clone(), self.shared.tree.fs(id)).await.map(|mount| {
                    self.shared.mounted.lock().insert(id, Mounted { lazy: lazy.clone(), mount });
                    true
                })
            }
            Err(_) => Ok(false),
        };
        self.shared.restoring.lock().remove(&id);
        match result {
            Ok(mounted) => {
                let shared = Arc::clone(&self.shared);
                let look = key.clone();
                let gone = tokio::task::spawn_blocking(move || shared.store.get(&look).is_err())
                    .await
                    .unwrap_or(false);
                if gone {
                    // Removed while it was being mounted: nobody else would unmount it.
                    self.unmount(id).await;
                }
                mounted && !gone
            }
            Err(error) => {
                tracing::warn!(
                    key,
                    error,
                    layerDigest = lazy.layer,
                    "mount-point" = %self.shared.tree.fs(id).display(),
                    "failed to restore remote snapshot"
                );
                false
            }
        }
    }
}
