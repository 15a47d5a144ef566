//! containerd's snapshots service.

use std::collections::HashMap;
use std::pin::Pin;

use containerd_client::types;
use futures_util::{Stream, stream};
use soci_proto::snapshots as pb;
use soci_proto::snapshots::snapshots_server::Snapshots;
use tonic::{Request, Response, Status};

use super::{namespace, status_of};
use crate::snapshot::overlay::Mount;
use crate::snapshot::{Kind, Labels, Moment, Named, SnapshotError, Snapshotter};

/// Snapshots in one message of a List, as containerd sends them.
const LIST_CHUNK: usize = 100;

/// The service.
#[derive(Clone, Debug)]
pub struct SnapshotsService {
    snapshotter: Snapshotter,
}

// === impl SnapshotsService ===

impl SnapshotsService {
    /// Over this snapshotter.
    #[must_use]
    pub fn new(snapshotter: Snapshotter) -> SnapshotsService {
        SnapshotsService { snapshotter }
    }

    /// Runs `work` to its end even where the client hangs up in the middle: half a Prepare is worse than a whole one.
    async fn whole<T, F>(work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SnapshotError>> + Send + 'static,
    {
        match tokio::spawn(work).await {
            Ok(result) => result.map_err(|error| status_of(&error)),
            Err(_) => Err(status_of(&SnapshotError::Stopping)),
        }
    }
}

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    async fn prepare(
        &self,
        request: Request<pb::PrepareSnapshotRequest>,
    ) -> Result<Response<pb::PrepareSnapshotResponse>, Status> {
        let namespace = namespace(request.metadata(), &request.get_ref().key);
        let pb::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let this = self.snapshotter.clone();
        let mounts =
            Self::whole(async move { this.prepare(namespace, key, parent, sorted(labels)).await }).await?;
        Ok(Response::new(pb::PrepareSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn view(
        &self,
        request: Request<pb::ViewSnapshotRequest>,
    ) -> Result<Response<pb::ViewSnapshotResponse>, Status> {
        let pb::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let this = self.snapshotter.clone();
        let mounts = Self::whole(async move { this.view(key, parent, sorted(labels)).await }).await?;
        Ok(Response::new(pb::ViewSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn mounts(
        &self,
        request: Request<pb::MountsRequest>,
    ) -> Result<Response<pb::MountsResponse>, Status> {
        let key = request.get_ref().key.clone();
        let namespace = namespace(request.metadata(), &key);
        let mounts = self.snapshotter.mounts(namespace, key).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(pb::MountsResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn commit(&self, request: Request<pb::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let pb::CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let this = self.snapshotter.clone();
        Self::whole(async move { this.commit(key, name, sorted(labels), parent).await }).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<pb::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let this = self.snapshotter.clone();
        Self::whole(async move { this.remove(request.into_inner().key).await }).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<pb::StatSnapshotRequest>,
    ) -> Result<Response<pb::StatSnapshotResponse>, Status> {
        let found =
            self.snapshotter.stat(request.into_inner().key).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(pb::StatSnapshotResponse { info: Some(info(found)) }))
    }

    /// Kind and times come as containerd happens to have them (committed, year 1) and are not looked at.
    async fn update(
        &self,
        request: Request<pb::UpdateSnapshotRequest>,
    ) -> Result<Response<pb::UpdateSnapshotResponse>, Status> {
        let pb::UpdateSnapshotRequest { info: wanted, update_mask, .. } = request.into_inner();
        let wanted = wanted.ok_or_else(|| Status::invalid_argument("no info to update from"))?;
        let mask = update_mask.map(|mask| mask.paths);
        let updated = self
            .snapshotter
            .update(wanted.name, sorted(wanted.labels), mask)
            .await
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(pb::UpdateSnapshotResponse { info: Some(info(updated)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<pb::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<pb::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let found =
            self.snapshotter.list(&request.into_inner().filters).await.map_err(|error| status_of(&error))?;
        let infos: Vec<pb::Info> = found.into_iter().map(info).collect();
        let messages: Vec<_> = infos
            .chunks(LIST_CHUNK)
            .map(|chunk| Ok(pb::ListSnapshotsResponse { info: chunk.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }

    async fn usage(&self, request: Request<pb::UsageRequest>) -> Result<Response<pb::UsageResponse>, Status> {
        let usage =
            self.snapshotter.usage(request.into_inner().key).await.map_err(|error| status_of(&error))?;
        let number = |value| i64::try_from(value).unwrap_or(i64::MAX);
        Ok(Response::new(pb::UsageResponse { size: number(usage.bytes), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<pb::CleanupRequest>) -> Result<Response<()>, Status> {
        let cleaned = self.snapshotter.cleanup().await;
        cleaned.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        Ok(Response::new(()))
    }
}

fn sorted(labels: HashMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

fn mount(mount: Mount) -> types::Mount {
    types::Mount {
        r#type: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    }
}

fn info(snapshot: Named) -> pb::Info {
    let Named { key, record } = snapshot;
    let kind = match record.kind {
        Kind::View => pb::Kind::View,
        Kind::Active => pb::Kind::Active,
        Kind::Committed => pb::Kind::Committed,
    };
    pb::Info {
        name: key,
        parent: record.parent,
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.into_iter().collect(),
    }
}

fn timestamp(moment: Moment) -> prost_types::Timestamp {
    let (seconds, nanos) = moment.parts();
    prost_types::Timestamp { seconds, nanos }
}
