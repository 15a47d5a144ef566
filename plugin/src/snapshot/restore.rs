//! After a start: mounts that an earlier life of the daemon left are gone on with, dead ones go, and the committed lazy layers that have none are
//! mounted again, all at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::backend::{KeptLayer, LazyMount, Pin, Sight, Slot};
use super::record::{Id, Kind, Named, Record};
use super::{Mounted, Shared, SnapshotError, Snapshotter};

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Mounts that were gone on with.
    pub resumed: usize,
    /// Dead mounts that were left over.
    pub cleared: usize,
    /// Layers that are mounted again.
    pub mounted: usize,
    /// Layers that are not, or not yet.
    pub missing: usize,
}

/// What a power cut can have taken away: directories of snapshots that are not mounts, made so shortly before that only their rows were on the disk.
fn lost<'a>(all: &'a [Named], present: &[Id]) -> impl Iterator<Item = &'a Named> {
    let present: HashSet<Id> = present.iter().copied().collect();
    all.iter().filter(move |named| named.record.lazy.is_none() && !present.contains(&named.record.id))
}

/// What is to be done with what is there.
#[derive(Debug, Default)]
struct Plan {
    /// Committed lazy layers, each with its mount if that lives.
    layers: Vec<(Named, Option<Slot>)>,
    /// Living mounts of snapshots that are gone: served as long as somebody uses them.
    orphans: Vec<(Slot, Id)>,
    /// Living mounts that were taken out of sight while they were in use.
    unseen: Vec<(Slot, Id)>,
    /// Mounts that were never ready.
    unready: Vec<Slot>,
    /// Snapshots whose mounts stay.
    alive: HashSet<Id>,
}

// === impl Plan ===

impl Plan {
    fn of(kept: Vec<KeptLayer>, mounted: &HashSet<Id>, layers: Vec<Named>) -> Plan {
        let mut plan = Plan::default();
        let mut visible = HashMap::new();
        for KeptLayer { slot, id, ready, .. } in kept {
            if !ready {
                plan.unready.push(slot);
            } else if !mounted.contains(&id) {
                plan.unseen.push((slot, id));
            } else if let Some(earlier) = visible.insert(id, slot) {
                // What was mounted later at the same place is what is seen there.
                plan.unseen.push((earlier.min(slot), id));
                visible.insert(id, earlier.max(slot));
            }
        }
        plan.alive = visible.keys().copied().collect();
        plan.layers = layers
            .into_iter()
            .map(|named| {
                let slot = visible.remove(&named.record.id);
                (named, slot)
            })
            .collect();
        plan.orphans = visible.into_iter().map(|(id, slot)| (slot, id)).collect();
        plan
    }
}

// === impl Shared ===

impl Shared {
    /// A container's own layer begins empty again. What containerd had unpacked is lost, and only it can do that again.
    fn recover(&self, all: &[Named]) -> Result<(), SnapshotError> {
        let present = self.tree.present().map_err(|source| SnapshotError::File {
            operation: "list",
            path: self.tree.path().to_owned(),
            source,
        })?;
        for Named { key, record } in lost(all, &present) {
            if record.kind == Kind::Committed {
                tracing::error!(key, "the files of a snapshot are lost; remove its image and pull it again");
                continue;
            }
            tracing::warn!(key, "the directory of a snapshot is lost; there is an empty one again");
            self.make_good(record.id, record.kind == Kind::Active)?;
        }
        Ok(())
    }
}

// === impl Snapshotter ===

impl Snapshotter {
    /// Goes on with the mounts that were kept, clears dead ones, and mounts every other committed lazy layer again. One that cannot be mounted is
    /// logged and its snapshot is Unavailable; those that take longer than the start should take go on in the background.
    ///
    /// # Errors
    /// Where the mount table or the store cannot be read, or the kernel refuses to unmount.
    pub async fn restore(&self) -> Result<Restored, SnapshotError> {
        let kept = self.shared.backend.kept();
        // Before anybody looks for what can go: of these mounts, some wait for their turn, and some have no row that names their layer.
        let mut pins: HashMap<Slot, Pin> =
            kept.iter().map(|kept| (kept.slot, self.shared.backend.pin(&kept.lazy))).collect();
        let (plan, cleared) = self
            .blocking(|shared| {
                let failed = |operation| {
                    let path = shared.tree.path().to_owned();
                    move |source| SnapshotError::File { operation, path, source }
                };
                let mut all = shared.store.list()?;
                shared.recover(&all)?;
                all.retain(|named| named.record.lazy.is_some() && named.record.kind == Kind::Committed);
                let mounted = shared.tree.mounted().map_err(failed("find what is mounted below"))?;
                let plan = Plan::of(kept, &mounted, all);
                let cleared = shared.tree.unmount_dead(&plan.alive);
                let cleared = cleared.map_err(failed("unmount what is left below"))?;
                Ok((plan, cleared))
            })
            .await?;
        for slot in plan.unready {
            self.shared.backend.drop_kept(slot);
            pins.remove(&slot);
        }
        let mut restored = Restored { cleared, missing: plan.layers.len(), ..Restored::default() };
        let mut tasks = JoinSet::new();
        for (Named { key, record }, slot) in plan.layers {
            let this = self.clone();
            let pins = (
                slot.and_then(|slot| pins.remove(&slot)),
                record.lazy.as_ref().map(|lazy| self.shared.backend.pin(lazy)),
            );
            tasks.spawn(async move {
                let _pins = pins;
                let resumed = match slot {
                    Some(slot) => this.resume(slot, &key, &record).await,
                    None => false,
                };
                (resumed, resumed || this.remount(key, record).await)
            });
        }
        for (slot, id) in plan.orphans {
            let (this, pin) = (self.clone(), pins.remove(&slot));
            tokio::spawn(async move {
                if let Some(mount) = this.resumed(slot, id, Sight::Seen).await {
                    tracing::debug!(id = id.0, "a mount whose snapshot is gone is unmounted");
                    let then = this.shared.cleaner_later();
                    let _ = tokio::task::spawn_blocking(move || mount.unmount(then)).await;
                }
                drop(pin);
                // Its directory was in use until now, and its layer was spared.
                this.shared.wake_cleaner();
            });
        }
        for (slot, id) in plan.unseen {
            let (this, pin) = (self.clone(), pins.remove(&slot));
            tokio::spawn(async move {
                if let Some(mount) = this.resumed(slot, id, Sight::Unseen).await {
                    mount.leave(this.shared.cleaner_later());
                }
                drop(pin);
                this.shared.wake_cleaner();
            });
        }
        let deadline = tokio::time::Instant::now() + self.shared.options.restore_deadline;
        while let Ok(Some(done)) = tokio::time::timeout_at(deadline, tasks.join_next()).await {
            if let Ok((resumed, true)) = done {
                restored.resumed += usize::from(resumed);
                restored.mounted += usize::from(!resumed);
                restored.missing = restored.missing.saturating_sub(1);
            }
        }
        // What a daemon that was killed had removed and not yet cleaned away.
        self.shared.wake_cleaner();
        // Dropping the set would stop them.
        tasks.detach_all();
        Ok(restored)
    }

    /// Tries once more to mount a layer that should be, in the background.
    pub(super) fn revive(&self, key: String, record: Record) {
        let this = self.clone();
        tokio::spawn(async move { this.remount(key, record).await });
    }

    /// Whether the snapshot's mount lives on.
    async fn resume(&self, slot: Slot, key: &str, record: &Record) -> bool {
        let Some(lazy) = record.lazy.clone() else { return false };
        let id = record.id;
        self.shared.restoring.lock().insert(id);
        let mount = self.resumed(slot, id, Sight::Seen).await;
        let resumed = mount.is_some();
        if let Some(mount) = mount {
            self.shared.mounted.lock().insert(id, Mounted { lazy, mount });
        }
        self.shared.restoring.lock().remove(&id);
        resumed && self.forget_if_gone(key, id).await
    }

    /// A mount that was gone on with. One that cannot be is dropped, and cleared where it is to be seen.
    async fn resumed(&self, slot: Slot, id: Id, sight: Sight) -> Option<Box<dyn LazyMount>> {
        let at = self.shared.tree.fs(id);
        let result = match self.shared.restores.acquire().await {
            Ok(_permit) => self.shared.backend.resume(slot, sight, at.clone()).await,
            Err(_) => return None,
        };
        match result {
            Ok(mount) => Some(mount),
            Err(error) => {
                tracing::warn!(error, "mount-point" = %at.display(), "failed to resume a mount; whoever uses it gets errors");
                let cleared = self
                    .blocking(move |shared| {
                        shared.backend.drop_kept(slot);
                        if sight == Sight::Unseen {
                            return Ok(0);
                        }
                        shared.tree.unmount_below(id).map_err(|source| SnapshotError::File {
                            operation: "unmount what is in",
                            path: shared.tree.directory(id),
                            source,
                        })
                    })
                    .await;
                if let Err(error) = cleared {
                    tracing::warn!(error = crate::telemetry::chain(&error), "failed to clear a dead mount");
                }
                None
            }
        }
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
            Ok(_permit) => match self.blocking(move |shared| shared.make_good(id, false)).await {
                Ok(()) => self.shared.backend.remount(lazy.clone(), id, self.shared.tree.fs(id)).await.map(
                    |mount| {
                        self.shared.mounted.lock().insert(id, Mounted { lazy: lazy.clone(), mount });
                        true
                    },
                ),
                Err(error) => Err(crate::telemetry::chain(&error)),
            },
            Err(_) => Ok(false),
        };
        self.shared.restoring.lock().remove(&id);
        match result {
            Ok(mounted) => mounted && self.forget_if_gone(&key, id).await,
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

    /// Whether the snapshot is still there. If it was removed while its layer was being mounted, nobody else would unmount it.
    async fn forget_if_gone(&self, key: &str, id: Id) -> bool {
        let (shared, look) = (Arc::clone(&self.shared), key.to_owned());
        let gone =
            tokio::task::spawn_blocking(move || shared.store.get(&look).is_err()).await.unwrap_or(false);
        if gone {
            self.unmount(id).await;
        }
        !gone
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::record::{LazyRecord, Moment, Usage};
    use super::*;

    fn kept(slot: usize, id: u64, ready: bool) -> KeptLayer {
        KeptLayer { slot: Slot(slot), id: Id(id), lazy: LazyRecord::named(""), ready }
    }

    fn layer(id: u64) -> Named {
        let record = Record {
            id: Id(id),
            parent: String::new(),
            kind: Kind::Committed,
            created: Moment(0),
            updated: Moment(0),
            labels: BTreeMap::new(),
            usage: Usage::default(),
            lazy: Some(LazyRecord::named("")),
            committed_from: String::new(),
        };
        Named { key: id.to_string(), record }
    }

    #[test]
    fn each_kept_mount_has_one_fate() {
        let all = vec![
            kept(0, 1, true),
            kept(1, 2, false),
            kept(2, 3, true),
            kept(3, 4, true),
            kept(4, 1, true),
            kept(5, 6, true),
        ];
        let mounted = [1, 2, 3, 5, 6].map(Id).into();
        let mut plan = Plan::of(all, &mounted, vec![layer(1), layer(2), layer(5), layer(6)]);
        let slots: Vec<_> = plan.layers.iter().map(|(named, slot)| (named.record.id.0, *slot)).collect();
        assert_eq!(slots, [(1, Some(Slot(4))), (2, None), (5, None), (6, Some(Slot(5)))]);
        assert_eq!(plan.orphans, [(Slot(2), Id(3))]);
        plan.unseen.sort();
        assert_eq!(plan.unseen, [(Slot(0), Id(1)), (Slot(3), Id(4))]);
        assert_eq!(plan.unready, [Slot(1)]);
        assert_eq!(plan.alive, [1, 3, 6].map(Id).into());
    }
}
