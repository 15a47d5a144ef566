//! A container record in containerd, with the snapshot that is its root file system.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::services::v1::{Container, CreateContainerRequest, DeleteContainerRequest};
use containerd_client::types::Mount;
use prost_types::Any;
use soci_store::{Containerd, StoreError};

use crate::connection::rejoined;

/// containerd's type for the OCI runtime specification as JSON.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// A snapshotter may have to mount what it was not asked for since a restart.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(120);

/// A snapshot of one snapshotter.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) snapshotter: String,
    pub(crate) key: String,
}

impl Snapshot {
    /// Makes a writable snapshot on top of `parent` (a chain ID; empty for none).
    ///
    /// # Errors
    /// There is one with that key, there is no `parent` ([`StoreError::is_not_found`]), or the snapshotter refuses.
    pub(crate) async fn prepare(
        &self,
        containerd: &Containerd,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, StoreError> {
        let containerd = containerd.with_deadline(SNAPSHOT_DEADLINE);
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: self.key.clone(),
            parent: parent.to_owned(),
            labels,
        };
        let mut tries: u32 = 0;
        let prepared = rejoined(&containerd, &self.snapshotter, async || {
            tries = tries.saturating_add(1);
            let mut client = containerd.snapshots_client();
            let call = client.prepare(containerd.request(request.clone()));
            match containerd.call("snapshot", &self.key, call).await {
                // By the try before, whose answer was lost.
                Err(StoreError::AlreadyExists { .. }) if tries > 1 => self.mounts(&containerd).await,
                prepared => prepared.map(|prepared| prepared.mounts),
            }
        });
        prepared.await
    }

    /// What to mount for it. A lazy snapshotter takes the question, asked when the container is recorded, as a sign that it is about to run.
    ///
    /// # Errors
    /// There is no such snapshot, or the snapshotter does not answer.
    pub(crate) async fn rootfs(&self, containerd: &Containerd) -> Result<Vec<Mount>, StoreError> {
        rejoined(containerd, &self.snapshotter, async || self.mounts(containerd).await).await
    }

    async fn mounts(&self, containerd: &Containerd) -> Result<Vec<Mount>, StoreError> {
        let request = MountsRequest { snapshotter: self.snapshotter.clone(), key: self.key.clone() };
        let mut client = containerd.snapshots_client();
        let call = client.mounts(containerd.request(request));
        Ok(containerd.call("mounts of snapshot", &self.key, call).await?.mounts)
    }

    /// Removes it; one that is gone is no error.
    ///
    /// # Errors
    /// It is in use, or the snapshotter does not answer.
    pub(crate) async fn remove(&self, containerd: &Containerd) -> Result<(), StoreError> {
        let containerd = containerd.with_deadline(SNAPSHOT_DEADLINE);
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: self.key.clone() };
        let removed = rejoined(&containerd, &self.snapshotter, async || {
            let mut client = containerd.snapshots_client();
            let call = client.remove(containerd.request(request.clone()));
            containerd.call("remove snapshot", &self.key, call).await
        });
        match removed.await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// What a container record says.
#[derive(Debug)]
pub(crate) struct NewContainer {
    pub(crate) id: String,
    /// Name of the image; empty for none.
    pub(crate) image: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) runtime: String,
    pub(crate) runtime_options: Option<Any>,
    /// The runtime specification as JSON.
    pub(crate) spec: Vec<u8>,
    pub(crate) snapshot: Option<Snapshot>,
}

/// Records a container.
///
/// # Errors
/// There is one with that ID, or containerd refuses.
pub(crate) async fn create(containerd: &Containerd, new: NewContainer) -> Result<(), StoreError> {
    let id = new.id.clone();
    let (snapshotter, snapshot_key) =
        new.snapshot.map(|snapshot| (snapshot.snapshotter, snapshot.key)).unwrap_or_default();
    let container = Container {
        id: new.id,
        labels: new.labels,
        image: new.image,
        runtime: Some(Runtime { name: new.runtime, options: new.runtime_options }),
        spec: Some(Any { type_url: SPEC_TYPE.to_owned(), value: new.spec }),
        snapshotter,
        snapshot_key,
        ..Container::default()
    };
    let request = containerd.request(CreateContainerRequest { container: Some(container) });
    let mut client = containerd.containers_client();
    containerd.call("container", &id, client.create(request)).await.map(drop)
}

/// Deletes a container's record; one that is gone is no error.
///
/// # Errors
/// It still has a task, or containerd does not answer.
pub(crate) async fn delete(containerd: &Containerd, id: &str) -> Result<(), StoreError> {
    let request = containerd.request(DeleteContainerRequest { id: id.to_owned() });
    let mut client = containerd.containers_client();
    match containerd.call("delete container", id, client.delete(request)).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}
