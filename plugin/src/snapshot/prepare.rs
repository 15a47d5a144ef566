//! How an image's layer comes here: lazily, unpacked by us, or by containerd's own hand.

use std::path::PathBuf;

use super::backend::{Asked, Attempt, Below};
use super::labels::{self, LabelError, LayerRequest};
use super::outcomes::{Outcome, Setback};
use super::overlay::Mount;
use super::record::{Kind, Labels, LazyRecord, Named, Record};
use super::store::{Committing, StoreError};
use super::{LazyMount, Mounted, SnapshotError, Snapshotter};
use crate::failpoint;

/// A layer whose active snapshot has been made.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) namespace: Option<String>,
    pub(super) key: String,
    pub(super) parent: String,
    pub(super) record: Record,
    pub(super) target: String,
    pub(super) request: Result<Box<LayerRequest>, LabelError>,
}

/// How a layer comes here.
#[derive(Debug)]
enum Decision {
    /// Mounted; its bytes come when they are read.
    Remote(LazyRecord, Box<dyn LazyMount>),
    /// Downloaded and unpacked by us: whoever pulls counts on us, and the index has nothing for this layer.
    Local(Asked),
    /// Left to containerd.
    Defer,
}

// === impl Snapshotter ===

impl Snapshotter {
    /// Whether this namespace's layer is here already, and usable. containerd does not ask for one that it knows, so it has not heard of this: the
    /// daemon was killed before it answered, or the client had hung up. containerd finds it now; a second one would be nobody's.
    pub(super) async fn unheard(
        &self,
        namespace: Option<&str>,
        parent: &str,
        target: &str,
    ) -> Result<bool, SnapshotError> {
        let (start, end) = (format!("{}/soci-", namespace.unwrap_or("-")), format!("/{target}"));
        let parent = parent.to_owned();
        self.blocking(move |shared| {
            let found = shared.store.between(&start, &end)?;
            let mounted = shared.mounted.lock();
            Ok(found.iter().any(|Named { key, record }| {
                *key == format!("{start}{}{end}", record.id.0)
                    && record.kind == Kind::Committed
                    && record.parent == parent
                    && (record.lazy.is_none() || mounted.contains_key(&record.id))
            }))
        })
        .await
    }

    /// Whatever goes wrong with lazy loading ends in mounts for containerd to unpack into, but for a kernel that does not answer; what the store or the disk refuses is an error.
    pub(super) async fn prepare_layer(&self, layer: Layer) -> Result<Vec<Mount>, SnapshotError> {
        match self.decide(&layer).await? {
            Decision::Remote(lazy, mount) => self.commit_remote(layer, lazy, mount).await,
            Decision::Local(asked) => {
                let chain = self.ancestors(&layer.parent).await?;
                let lower = chain.iter().map(|named| self.shared.below(&named.record)).collect();
                let (digest, at) = (asked.layer.layer.to_string(), self.shared.tree.fs(layer.record.id));
                tracing::info!(
                    key = layer.key,
                    parent = layer.parent,
                    layerDigest = digest,
                    "preparing snapshot as local snapshot"
                );
                match self.unpack(asked, lower, at).await {
                    Ok(()) => {
                        failpoint::pass("prepare.unpacked");
                        self.commit_local(layer).await
                    }
                    Err(error) => {
                        self.shared.outcomes.add(Outcome::LocalFailed);
                        tracing::warn!(
                            key = layer.key,
                            parent = layer.parent,
                            layerDigest = digest,
                            error,
                            "local-snapshot-prepared" = "false",
                            "failed to prepare local snapshot; deferring to container runtime"
                        );
                        Ok(self.shared.mounts(&layer.record, &chain))
                    }
                }
            }
            Decision::Defer => {
                let chain = self.ancestors(&layer.parent).await?;
                failpoint::pass("prepare.deferred");
                Ok(self.shared.mounts(&layer.record, &chain))
            }
        }
    }

    async fn decide(&self, layer: &Layer) -> Result<Decision, SnapshotError> {
        let Layer { key, parent, .. } = layer;
        let outcomes = &self.shared.outcomes;
        let request = match &layer.request {
            Ok(request) => LayerRequest::clone(request),
            // A client that knows nothing of lazy loading is no event; one that says nonsense is.
            Err(LabelError::Missing(_)) => {
                outcomes.add(Outcome::Unlabelled);
                return Ok(Decision::Defer);
            }
            Err(error) => {
                outcomes.add(Outcome::BadLabels);
                let error = error.to_string();
                tracing::warn!(
                    key,
                    parent,
                    error,
                    "remote-snapshot-prepared" = "false",
                    "failed to prepare remote snapshot"
                );
                return Ok(Decision::Defer);
            }
        };
        if request.size.is_some_and(|size| size < self.shared.options.min_layer_size) {
            outcomes.add(Outcome::TooSmall);
            tracing::info!(key, parent, layerDigest = %request.layer, "layer is smaller than min_layer_size; deferring to container runtime");
            return Ok(Decision::Defer);
        }
        let asked = Asked { namespace: layer.namespace.clone(), layer: request };
        let (id, at) = (layer.record.id, self.shared.tree.fs(layer.record.id));
        let below = self.shared.lazy_layers(&self.ancestors(&layer.parent).await?);
        let attempt = self.shared.backend.mount(asked.clone(), id, at, below).await;
        let failed = |error: &str| {
            tracing::warn!(
                key,
                parent,
                error,
                "remote-snapshot-prepared" = "false",
                "failed to prepare remote snapshot"
            );
        };
        Ok(match attempt {
            Attempt::Mounted(lazy, mount) => Decision::Remote(lazy, mount),
            Attempt::NoZtoc(reason) => {
                outcomes.meet(Setback::NoZtoc);
                failed(&reason);
                Decision::Local(asked)
            }
            Attempt::NoIndex(error) => {
                outcomes.add(Outcome::NoIndex);
                // For who looks for it: an image without an index is the ordinary case.
                tracing::info!(
                    key,
                    parent,
                    error,
                    "remote-snapshot-prepared" = "false",
                    "failed to prepare remote snapshot"
                );
                tracing::info!(
                    key,
                    parent,
                    "defer-snapshot-runtime" = "true",
                    "no valid SOCI index found; deferring to container runtime"
                );
                Decision::Defer
            }
            Attempt::NoAnswer(error) => {
                outcomes.add(Outcome::NoAnswer);
                failed(&error);
                tracing::warn!(
                    key,
                    parent,
                    "defer-snapshot-runtime" = "true",
                    "no valid SOCI index found; deferring to container runtime"
                );
                Decision::Defer
            }
            Attempt::Failed(error) => {
                outcomes.meet(Setback::MountFailed);
                failed(&error);
                Decision::Local(asked)
            }
            Attempt::Stuck(error) => {
                outcomes.meet(Setback::Stuck);
                failed(&error);
                return Err(SnapshotError::Stuck(error));
            }
        })
    }

    /// The name is ours: the same layer can be below different parents in different namespaces. containerd finds it by its labels.
    async fn commit_remote(
        &self,
        layer: Layer,
        lazy: LazyRecord,
        mount: Box<dyn LazyMount>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let Layer { key, parent, record, target, namespace, .. } = layer;
        let id = record.id;
        failpoint::pass("prepare.mounted");
        self.shared.mounted.lock().insert(id, Mounted { lazy: lazy.clone(), mount });
        let name = name_of(namespace.as_deref(), &record, &target);
        let labels = labelled(record.labels, namespace.as_deref(), true);
        let committed = {
            let key = key.clone();
            self.blocking(move |shared| {
                let committing = Committing { labels, lazy: Some(lazy), ..Committing::default() };
                Ok(shared.store.commit(&key, &name, committing)?)
            })
            .await
        };
        match committed {
            Ok(_) => {
                failpoint::pass("prepare.committed");
                self.shared.outcomes.add(Outcome::Remote);
                tracing::info!(
                    key,
                    parent,
                    "remote-snapshot-prepared" = "true",
                    "remote snapshot successfully prepared."
                );
                Err(SnapshotError::Prepared { target })
            }
            Err(error) => {
                let text = crate::telemetry::chain(&error);
                tracing::warn!(
                    key,
                    parent,
                    error = text,
                    "remote-snapshot-prepared" = "false",
                    "failed to internally commit remote snapshot"
                );
                self.unmount(id).await;
                Err(error)
            }
        }
    }

    async fn commit_local(&self, layer: Layer) -> Result<Vec<Mount>, SnapshotError> {
        let Layer { key, parent, record, target, namespace, .. } = layer;
        let name = name_of(namespace.as_deref(), &record, &target);
        let labels = labelled(record.labels, namespace.as_deref(), false);
        let committed = {
            let key = key.clone();
            self.blocking(move |shared| {
                let usage = shared.usage(record.id)?;
                Ok(shared.store.commit(&key, &name, Committing { labels, usage, ..Committing::default() })?)
            })
            .await
        };
        committed?;
        failpoint::pass("prepare.committed-local");
        self.shared.outcomes.add(Outcome::Local);
        tracing::info!(
            key,
            parent,
            "local-snapshot-prepared" = "true",
            "local snapshot successfully prepared"
        );
        Err(SnapshotError::Prepared { target })
    }

    async fn unpack(&self, asked: Asked, lower: Vec<Below>, at: PathBuf) -> Result<(), String> {
        self.shared.backend.unpack(asked, lower, at).await
    }

    async fn ancestors(&self, parent: &str) -> Result<Vec<Named>, SnapshotError> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let parent = parent.to_owned();
        self.blocking(move |shared| shared.store.chain(&parent).map_err(|error: StoreError| error.into()))
            .await
    }
}

/// Unlike any other: ids are not used twice.
fn name_of(namespace: Option<&str>, record: &Record, target: &str) -> String {
    format!("{}/soci-{}/{target}", namespace.unwrap_or("-"), record.id.0)
}

fn labelled(mut labels: Labels, namespace: Option<&str>, remote: bool) -> Labels {
    if remote {
        labels.insert(labels::REMOTE.0.to_owned(), labels::REMOTE.1.to_owned());
    }
    if let Some(namespace) = namespace {
        labels.insert(labels::NAMESPACE.to_owned(), namespace.to_owned());
    }
    labels.insert(labels::HAS_INDEX.0.to_owned(), labels::HAS_INDEX.1.to_owned());
    labels
}
