//! Snapshots: the verbs, the decision how a layer comes here, and what is kept about them.
//!
//! Two things never happen while anything is held (a transaction, a lock, containerd's patience): talking to the network, and mounting.
//! A verb reads or writes the [`store`] in one short transaction, acts, and writes again.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lazy_layer::Layer;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};

mod backend;
mod clean;
mod error;
pub mod filter;
pub mod labels;
mod outcomes;
pub mod overlay;
mod prepare;
mod record;
mod restore;
pub mod store;
mod tree;

#[cfg(test)]
pub(crate) mod tests;

pub use backend::{
    Asked, Attempt, Backend, Below, Directories, FrontEnd, KeptLayer, LazyMount, Look, Pin, Sight, Slot, Then,
};
pub use clean::CleanError;
pub use error::SnapshotError;
pub use outcomes::{Outcome, Outcomes, Setback};
pub use record::{Id, Kind, Labels, LazyRecord, Moment, Named, Record, Usage};
pub use restore::Restored;
pub use tree::Tree;

use crate::failpoint;
use filter::Filter;
use labels::Intent;
use overlay::{Layers, Mount, OverlayOptions};
use store::{Committing, Store, StoreError};

/// The snapshotter. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshotter {
    shared: Arc<Shared>,
}

/// How it is to behave.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Layers with fewer compressed bytes are not mounted lazily, where the client says how many they have.
    pub min_layer_size: u64,
    /// Layers mounted again at the same time at the start.
    pub restores: usize,
    /// How long the start waits for them; the others come while requests are served.
    pub restore_deadline: Duration,
    /// Clean-ups that wait for a pass, at least one; one more fails.
    pub cleanups: usize,
    /// What the kernel wants to hear.
    pub overlay: OverlayOptions,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    tree: Tree,
    options: Options,
    backend: Arc<dyn Backend>,
    /// Layers that are mounted, by snapshot. Held for look-ups only.
    mounted: Mutex<HashMap<Id, Mounted>>,
    /// Snapshots whose layer is being mounted again.
    restoring: Mutex<HashSet<Id>>,
    restores: Semaphore,
    outcomes: Outcomes,
    cleaner: mpsc::Sender<oneshot::Sender<()>>,
    /// When this life began.
    began: Moment,
}

#[derive(Debug)]
struct Mounted {
    lazy: LazyRecord,
    mount: Box<dyn LazyMount>,
}

/// A layer that is mounted, for a status report.
#[derive(Clone, Debug)]
pub struct LayerReport {
    /// What it is.
    pub lazy: LazyRecord,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// How far it is.
    pub status: lazy_layer::LayerStatus,
    /// What containers read it through.
    pub front_end: FrontEnd,
}

// === impl Snapshotter ===

impl Snapshotter {
    /// Opens what is below `root`. Nothing is mounted yet: see [`Snapshotter::restore`]. Blocking; within a tokio runtime.
    ///
    /// # Errors
    /// Where the store or the directories cannot be opened.
    pub fn open(
        root: &Path,
        options: Options,
        backend: Arc<dyn Backend>,
    ) -> Result<Snapshotter, SnapshotError> {
        let tree = Tree::open(root).map_err(|source| SnapshotError::File {
            operation: "open",
            path: root.join("snapshotter/snapshots"),
            source,
        })?;
        let tree = tree.with_backend(Arc::clone(&backend));
        let store = Store::open(&root.join("snapshotter/metadata.redb"))?;
        let (cleaner, requests) = mpsc::channel(options.cleanups.max(1));
        let shared = Arc::new(Shared {
            store,
            tree,
            options,
            backend,
            mounted: Mutex::default(),
            restoring: Mutex::default(),
            restores: Semaphore::new(options.restores.max(1)),
            outcomes: Outcomes::default(),
            cleaner,
            began: Moment::now(),
        });
        tokio::spawn(clean::run(Arc::downgrade(&shared), requests));
        Ok(Snapshotter { shared })
    }

    /// Makes an active snapshot, or brings an image's layer here and says so with [`SnapshotError::Prepared`].
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn prepare(
        &self,
        namespace: Option<String>,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        match Intent::of(&labels) {
            Intent::Container => {
                let chain = self.available(&parent).await?;
                self.shared.backend.starts(&self.shared.lazy_layers(&chain));
                let record = self.create(Kind::Active, key, parent, labels).await?;
                Ok(self.shared.mounts(&record, &chain))
            }
            Intent::Layer { target, request } => {
                if self.unheard(namespace.as_deref(), &parent, &target).await? {
                    tracing::debug!(
                        key,
                        parent,
                        "the layer is here since before, and containerd has not heard of it"
                    );
                    return Err(SnapshotError::Prepared { target });
                }
                let record = self.create(Kind::Active, key.clone(), parent.clone(), labels).await?;
                self.prepare_layer(prepare::Layer { namespace, key, parent, record, target, request }).await
            }
        }
    }

    /// Makes a read-only snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn view(
        &self,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let chain = self.available(&parent).await?;
        let record = self.create(Kind::View, key, parent, labels).await?;
        Ok(self.shared.mounts(&record, &chain))
    }

    /// The mounts of an active snapshot or a view. Clients ask for them when a container is recorded and about to run.
    ///
    /// # Errors
    /// [`SnapshotError::Unavailable`] where a layer is not mounted.
    pub async fn mounts(&self, namespace: Option<String>, key: String) -> Result<Vec<Mount>, SnapshotError> {
        let mut chain = self.available(&key).await?;
        if chain.is_empty() {
            return Err(StoreError::NotFound { key }.into());
        }
        let own = chain.remove(0);
        match own.record.kind {
            Kind::Committed => return Err(StoreError::NotActive { key }.into()),
            Kind::Active => {
                self.shared.backend.runs(namespace.as_deref(), &key, &self.shared.lazy_layers(&chain))
            }
            Kind::View => {}
        }
        Ok(self.shared.mounts(&own.record, &chain))
    }

    /// Makes an active snapshot a committed one. Done once more it is no error: the answer to the first time may have been lost with the
    /// daemon that would have given it, and containerd then asks again.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn commit(
        &self,
        key: String,
        name: String,
        labels: Labels,
        parent: String,
    ) -> Result<(), SnapshotError> {
        self.blocking(move |shared| {
            let record = match shared.store.get(&key) {
                Err(StoreError::NotFound { .. }) if shared.is_committed(&key, &name)? => return Ok(()),
                found => found?,
            };
            if record.kind != Kind::Active {
                return Err(StoreError::NotActive { key }.into());
            }
            let usage = shared.usage(record.id)?;
            failpoint::pass("commit.measured");
            shared.store.commit(&key, &name, Committing { labels, usage, parent, lazy: None })?;
            failpoint::pass("commit.recorded");
            Ok(())
        })
        .await
    }

    /// Forgets a snapshot. Its mount and its files go right afterwards, without the caller waiting for them.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        self.blocking(move |shared| Ok(shared.store.remove(&key)?)).await?;
        failpoint::pass("remove.recorded");
        self.shared.wake_cleaner();
        Ok(())
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn stat(&self, key: String) -> Result<Named, SnapshotError> {
        self.blocking(move |shared| {
            let record = shared.store.get(&key)?;
            Ok(Named { key, record })
        })
        .await
    }

    /// Changes labels; see [`Store::update`].
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn update(
        &self,
        key: String,
        labels: Labels,
        mask: Option<Vec<String>>,
    ) -> Result<Named, SnapshotError> {
        self.blocking(move |shared| {
            let record = shared.store.update(&key, &labels, mask.as_deref())?;
            Ok(Named { key, record })
        })
        .await
    }

    /// Snapshots that any of the filters selects.
    ///
    /// # Errors
    /// [`SnapshotError::Filter`].
    pub async fn list(&self, filters: &[String]) -> Result<Vec<Named>, SnapshotError> {
        let filters = filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
        self.blocking(move |shared| {
            let mut all = shared.store.list()?;
            all.retain(|snapshot| filter::any_matches(&filters, snapshot));
            Ok(all)
        })
        .await
    }

    /// What a snapshot occupies: an unpacked layer's files, a lazily loaded layer's bytes that are here.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn usage(&self, key: String) -> Result<Usage, SnapshotError> {
        self.blocking(move |shared| {
            let record = shared.store.get(&key)?;
            if record.lazy.is_some() {
                let status = shared.mounted.lock().get(&record.id).map(|mounted| mounted.mount.status());
                return Ok(Usage { bytes: status.map_or(0, |count| count().present), inodes: 0 });
            }
            match record.kind {
                Kind::Committed => Ok(record.usage),
                Kind::Active | Kind::View => shared.usage(record.id),
            }
        })
        .await
    }

    /// The lazily loaded layers that are mounted, in the order in which they came. Looks at every span of each: blocking.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerReport> {
        let mut mounted: Vec<_> = {
            let mounted = self.shared.mounted.lock();
            let layer = |(id, mounted): (&Id, &Mounted)| {
                (*id, mounted.lazy.clone(), mounted.mount.status(), mounted.mount.front_end())
            };
            mounted.iter().map(layer).collect()
        };
        mounted.sort_by_key(|(id, ..)| *id);
        let report = |(id, lazy, count, front_end): (Id, _, Box<dyn FnOnce() -> _ + Send>, _)| LayerReport {
            lazy,
            mount_point: self.shared.tree.fs(id),
            status: count(),
            front_end,
        };
        mounted.into_iter().map(report).collect()
    }

    /// What became of the layers that were asked for.
    #[must_use]
    pub fn outcomes(&self) -> &Outcomes {
        &self.shared.outcomes
    }

    /// The chain of a snapshot, every lazily loaded layer in it being mounted.
    async fn available(&self, key: &str) -> Result<Vec<Named>, SnapshotError> {
        if key.is_empty() {
            return Ok(Vec::new());
        }
        let key = key.to_owned();
        let chain = {
            let key = key.clone();
            self.blocking(move |shared| Ok(shared.store.chain(&key)?)).await?
        };
        let mut missing = None;
        for Named { key: layer, record } in &chain {
            let path = self.shared.tree.fs(record.id);
            if record.lazy.is_none() {
                if record.kind == Kind::Committed {
                    tracing::debug!(key, "mount-point" = %path.display(), "layer is normal snapshot(overlayfs)");
                }
                continue;
            }
            tracing::debug!(key, "mount-point" = %path.display(), "checking mount point");
            if !self.shared.mounted.lock().contains_key(&record.id) {
                tracing::warn!(key, "mount-point" = %path.display(), "layer is unavailable");
                self.revive(layer.clone(), record.clone());
                missing = Some(record.id);
            }
        }
        match missing {
            Some(id) => Err(SnapshotError::Unavailable { id: id.0.to_string() }),
            None => Ok(chain),
        }
    }

    async fn create(
        &self,
        kind: Kind,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Record, SnapshotError> {
        self.blocking(move |shared| {
            let owner = if parent.is_empty() { None } else { shared.owner(&shared.store.get(&parent)?) };
            let staged =
                shared.tree.stage(owner, kind == Kind::Active).map_err(|source| SnapshotError::File {
                    operation: "make a directory in",
                    path: shared.tree.path().to_owned(),
                    source,
                })?;
            failpoint::pass("prepare.staged");
            shared.take_over(&key, kind, &parent)?;
            let record = shared.store.create(kind, &key, &parent, labels, |id| {
                staged.place(id)?;
                failpoint::pass("prepare.placed");
                Ok(())
            })?;
            failpoint::pass("prepare.recorded");
            Ok(record)
        })
        .await
    }

    /// Runs what waits for the disk where waiting is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&shared)).await.map_err(|_| SnapshotError::Stopping)?
    }
}

// === impl Shared ===

impl Shared {
    /// Has everything looked for that belongs to no snapshot any more.
    fn wake_cleaner(&self) {
        // A full queue means that a pass is about to begin anyway.
        let _ = self.cleaner.try_send(oneshot::channel().0);
    }

    /// The same later, when the last user of a mount has gone.
    fn cleaner_later(self: &Arc<Self>) -> Then {
        let shared = Arc::downgrade(self);
        Box::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.wake_cleaner();
            }
        })
    }

    /// Those of these layers that are mounted lazily, in the same order.
    fn lazy_layers(&self, chain: &[Named]) -> Vec<Arc<Layer>> {
        let mounted = self.mounted.lock();
        chain.iter().filter_map(|named| mounted.get(&named.record.id)?.mount.layer().cloned()).collect()
    }

    fn mounts(&self, own: &Record, ancestors: &[Named]) -> Vec<Mount> {
        let layers = Layers {
            kind: own.kind,
            upper: self.tree.fs(own.id),
            work: self.tree.work(own.id),
            lower: ancestors.iter().map(|named| self.lower(named.record.id)).collect(),
            lazy: ancestors.first().is_some_and(|named| named.record.lazy.is_some()),
        };
        layers.mounts(self.options.overlay)
    }

    /// The directory that containers get of a layer.
    fn lower(&self, id: Id) -> PathBuf {
        let mounted = self.mounted.lock();
        let lower = mounted.get(&id).and_then(|mounted| mounted.mount.lower());
        lower.map_or_else(|| self.tree.fs(id), Path::to_owned)
    }

    /// A snapshot of an earlier life with this very key, which containerd asks for again: it was killed before it answered, so that
    /// containerd knows nothing of it. It makes place.
    fn take_over(&self, key: &str, kind: Kind, parent: &str) -> Result<(), SnapshotError> {
        match self.store.get(key) {
            Ok(found) if found.created < self.began && found.kind == kind && found.parent == parent => {
                tracing::debug!(key, "a snapshot that was never answered for is made anew");
                self.store.remove(key)?;
                self.wake_cleaner();
            }
            // Whoever creates it says so.
            Ok(_) | Err(_) => {}
        }
        Ok(())
    }

    /// Whether `name` is what the snapshot `key` has become.
    fn is_committed(&self, key: &str, name: &str) -> Result<bool, SnapshotError> {
        match self.store.get(name) {
            Ok(record) => Ok(record.kind == Kind::Committed && record.committed_from == key),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Owner and group of the top directory of a snapshot. None if it cannot be looked at.
    fn owner(&self, record: &Record) -> Option<(u32, u32)> {
        match self.below(record) {
            Below::Directory(path) => {
                std::fs::symlink_metadata(path).ok().map(|found| (found.uid(), found.gid()))
            }
            Below::Lazy(directories) => directories.look(&[]).map(|look| (look.uid, look.gid)),
        }
    }

    /// A snapshot as a source of directories' attributes.
    fn below(&self, record: &Record) -> Below {
        let mounted = self.mounted.lock();
        let directories = mounted.get(&record.id).and_then(|mounted| mounted.mount.directories());
        directories.map_or_else(|| Below::Directory(self.tree.fs(record.id)), Below::Lazy)
    }

    fn make_good(&self, id: Id, writable: bool) -> Result<(), SnapshotError> {
        self.tree.make_good(id, writable).map_err(|source| SnapshotError::File {
            operation: "make",
            path: self.tree.fs(id),
            source,
        })
    }

    fn usage(&self, id: Id) -> Result<Usage, SnapshotError> {
        self.tree.usage(id).map_err(|source| SnapshotError::File {
            operation: "measure",
            path: self.tree.fs(id),
            source,
        })
    }
}
