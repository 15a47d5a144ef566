//! From layers to snapshots: one Prepare, Apply and Commit for each.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::{Descriptor as WireDescriptor, Mount};
use jiff::Timestamp;
use oci_spec::image::Digest;
use parking_lot::Mutex;
use soci_store::labels::Labels;
use soci_store::{Containerd, StoreError, labels};

use crate::connection::rejoined;
use crate::error::{Error, one_line};
use crate::image::Layer;

/// A layer's bytes may take long to unpack; longer than this means that containerd hangs.
const APPLY_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// A lazy Prepare may mount; the daemon's own deadline for that is 30 s.
const PREPARE_DEADLINE: Duration = Duration::from_secs(120);
/// Prepare under a fresh name and find the snapshot made by another, again and again: that often, then it is an error.
const ATTEMPTS: usize = 5;

/// Why a layer did not become a snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// What was in the layer is not what the config promises.
    #[error("layer {layer} unpacks to {found}, the image config says {expected}")]
    DiffId {
        /// The layer.
        layer: Digest,
        /// Digest of what was in it.
        found: String,
        /// Diff ID in the config.
        expected: Digest,
    },
    /// Somebody keeps making and removing the same snapshot.
    #[error("the snapshot {chain_id} appears and disappears")]
    Unstable {
        /// The snapshot.
        chain_id: Digest,
    },
}

/// What Prepare gave.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// The snapshot is there: somebody has it already, or the snapshotter mounted it from afar.
    Present,
    /// It has to be filled: where, and under which name.
    Active {
        /// Name of the active snapshot.
        key: String,
        /// Where the layer goes.
        mounts: Vec<Mount>,
    },
}

/// Makes snapshots in one snapshotter, under the handle's lease.
#[derive(Debug, Clone)]
pub(crate) struct Unpacker {
    containerd: Containerd,
    snapshotter: String,
    /// Names of active snapshots that are being filled.
    active: Arc<Mutex<Vec<String>>>,
}

impl Unpacker {
    /// An unpacker into `snapshotter`.
    pub(crate) fn new(containerd: Containerd, snapshotter: &str) -> Unpacker {
        Unpacker { containerd, snapshotter: snapshotter.to_owned(), active: Arc::default() }
    }

    /// Whether the snapshot is there.
    pub(crate) async fn has(&self, chain_id: &Digest) -> Result<bool, Error> {
        let request =
            StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: chain_id.to_string() };
        let found = rejoined(&self.containerd, &self.snapshotter, async || {
            let mut client = self.containerd.snapshots_client();
            let call = client.stat(self.containerd.request(request.clone()));
            self.containerd.call("snapshot", chain_id.as_ref(), call).await
        });
        match found.await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts the snapshot of `layer` on top of `parent`.
    pub(crate) async fn prepare(
        &self,
        layer: &Layer,
        parent: Option<&Digest>,
        labels: Labels,
    ) -> Result<Prepared, Error> {
        let containerd = self.containerd.with_deadline(PREPARE_DEADLINE);
        // containerd itself looks for the snapshot that a label names.
        let named = labels.contains_key(labels::SNAPSHOT_REF);
        for attempt in 0..ATTEMPTS {
            if (attempt > 0 || !named) && self.has(&layer.chain_id).await? {
                return Ok(Prepared::Present);
            }
            let key = format!("extract-{} {}", unique(), layer.chain_id);
            self.active.lock().push(key.clone());
            let request = PrepareSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                key: key.clone(),
                parent: parent.map(Digest::to_string).unwrap_or_default(),
                labels: labels.clone(),
            };
            let prepared = rejoined(&self.containerd, &self.snapshotter, async || {
                let mut client = containerd.snapshots_client();
                let call = client.prepare(containerd.request(request.clone()));
                containerd.call("prepare snapshot", layer.chain_id.as_ref(), call).await
            });
            match prepared.await {
                Ok(response) => return Ok(Prepared::Active { key, mounts: response.mounts }),
                // Either a remote snapshotter has made the snapshot, or the name was taken after all: the next round shows which.
                Err(StoreError::AlreadyExists { .. }) => self.forget(&key),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::command(UnpackError::Unstable { chain_id: layer.chain_id.clone() }))
    }

    /// Has containerd unpack the layer's blob, which must be in its content store, and makes the snapshot.
    pub(crate) async fn fill(&self, layer: &Layer, key: String, mounts: Vec<Mount>) -> Result<(), Error> {
        let containerd = self.containerd.with_deadline(APPLY_DEADLINE);
        let blob = &layer.blob;
        let request = containerd.request(ApplyRequest {
            diff: Some(WireDescriptor {
                media_type: blob.media_type().to_string(),
                digest: blob.digest().to_string(),
                size: i64::try_from(blob.size()).unwrap_or(i64::MAX),
                annotations: blob.annotations().clone().unwrap_or_default(),
            }),
            mounts,
            ..ApplyRequest::default()
        });
        let mut client = containerd.diff_client();
        let applied = containerd.call("unpack layer", blob.digest().as_ref(), client.apply(request)).await?;
        let found = applied.applied.map(|descriptor| descriptor.digest).unwrap_or_default();
        if found != layer.diff_id.as_ref() {
            return Err(Error::command(UnpackError::DiffId {
                layer: blob.digest().clone(),
                found,
                expected: layer.diff_id.clone(),
            }));
        }
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: layer.chain_id.to_string(),
            key: key.clone(),
            labels: Labels::new(),
        };
        let committed = rejoined(&self.containerd, &self.snapshotter, async || {
            let mut client = containerd.snapshots_client();
            let call = client.commit(containerd.request(request.clone()));
            containerd.call("commit snapshot", layer.chain_id.as_ref(), call).await
        });
        match committed.await {
            Ok(()) => self.forget(&key),
            // Somebody else was first; ours goes.
            Err(StoreError::AlreadyExists { .. }) => self.remove(&key).await,
            Err(error) => return Err(error.into()),
        }
        // What containerd's own pull notes on a layer, for whoever makes a diff or an export of it.
        let uncompressed = Labels::from([(labels::UNCOMPRESSED.to_owned(), layer.diff_id.to_string())]);
        self.containerd.content().set_labels(blob.digest(), uncompressed).await?;
        Ok(())
    }

    /// Removes what was started and not ended; what cannot be removed is said in the log and goes with the lease.
    pub(crate) async fn abandon(&self) {
        let keys: Vec<String> = self.active.lock().clone();
        for key in keys {
            self.remove(&key).await;
        }
    }

    async fn remove(&self, key: &str) {
        let request = self
            .containerd
            .request(RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() });
        let mut client = self.containerd.snapshots_client();
        match self.containerd.call("remove snapshot", key, client.remove(request)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => tracing::warn!(key, error = one_line(&error), "an unfinished snapshot stays"),
        }
        self.forget(key);
    }

    fn forget(&self, key: &str) {
        self.active.lock().retain(|active| active != key);
    }
}

/// Nanoseconds and chance, as in containerd's own keys.
fn unique() -> String {
    let nanoseconds = Timestamp::now().subsec_nanosecond();
    // Seeded by the system for every value.
    let chance = RandomState::new().build_hasher().finish();
    format!("{nanoseconds}-{chance:016x}")
}
