//! What is done for an image before anybody waits for it, once its index is known: the files of its later layers are made side by side, and its
//! layers are looked for in the registry. Nothing of this can fail a request: who comes later finds things done, or does them.

use std::sync::Arc;

use futures_util::StreamExt as _;
use lazy_layer::{Layer, LayerKey};
use oci_registry::Repository;
use oci_spec::image::Digest;

use super::Resolver;
use super::index::FoundIndex;
use crate::snapshot::LazyRecord;
use crate::telemetry::chain;

/// Layers of an image that are looked at: a label cannot list more, nor can overlayfs stack many more.
const MAX_LAYERS: usize = 128;
/// Connections that are there before anybody reads: a start has use for a second one from its second read on.
const CONNECTIONS: usize = 2;

// === impl Resolver ===

impl Resolver {
    /// Starts what can be done for these layers of an image (which the record of one of them names), on top of those lazy ones `below`, once for each answer about its index.
    pub(super) fn begin(
        self: &Arc<Self>,
        repository: &Repository,
        found: &Arc<FoundIndex>,
        image: &LazyRecord,
        layers: &[Digest],
        below: &[Arc<Layer>],
    ) {
        if !found.coming.begin() {
            return;
        }
        let with_ztoc = |layer: &Digest| {
            let ztoc = found.index.ztoc_for_layer(layer)?.digest();
            soci_index::is_sha256(ztoc).then(|| LayerKey { layer: layer.clone(), ztoc: ztoc.clone() })
        };
        let keys: Vec<LayerKey> = layers.iter().take(MAX_LAYERS).filter_map(with_ztoc).collect();
        let located: Vec<Digest> = keys.iter().map(|key| key.layer.clone()).collect();
        found.coming.expect(located.clone(), below);
        tokio::spawn(Arc::clone(self).locate(repository.clone(), located));
        if self.options.layers_ahead == 0 {
            return;
        }
        tokio::spawn(Arc::clone(self).make_all(repository.clone(), Arc::clone(found), image.clone(), keys));
    }

    /// Makes layer files, and holds those whose Prepare is still to come for as long as one may take.
    async fn make_all(
        self: Arc<Self>,
        repository: Repository,
        found: Arc<FoundIndex>,
        image: LazyRecord,
        keys: Vec<LayerKey>,
    ) {
        let making = keys.into_iter().map(|key| {
            let (this, found, image, repository) = (&self, &found, &image, &repository);
            async move {
                let Ok(_turn) = this.ahead.acquire().await else { return };
                if found.coming.is_taken(&key.layer) {
                    return;
                }
                // Why it could not be made, its own Prepare says.
                if let Ok(layer) = this.layer_or_twin(repository, key, image, found).await {
                    let source = this.attach(&layer, repository);
                    found.coming.hold(layer, source);
                    this.start_when_whole(found);
                }
            }
        });
        let making = futures_util::stream::iter(making).buffer_unordered(self.options.layers_ahead.max(1));
        making.for_each(|()| std::future::ready(())).await;
        tokio::time::sleep(self.options.mount_deadline).await;
        found.coming.let_go();
    }

    /// Finds out where the layers are: connections, token and redirects are there then, and the first reads cost one round trip each. Where the
    /// registry sends the bytes itself, those that are asked about first tell for all.
    async fn locate(self: Arc<Self>, repository: Repository, layers: Vec<Digest>) {
        let limit = self.options.locate_deadline;
        let locate = async |layer: &Digest| {
            let client = self.registries.client(&repository).map_err(|error| chain(&error))?;
            match tokio::time::timeout(limit, client.locate_blob(&repository, layer)).await {
                Ok(located) => located.map_err(|error| chain(&error)),
                Err(_) => Err(format!("no answer within {limit:?}")),
            }
        };
        let first = layers.iter().cycle().take(CONNECTIONS).map(&locate);
        let mut elsewhere = false;
        for located in futures_util::future::join_all(first).await {
            match located {
                Ok(located) => elsewhere |= located,
                Err(error) => tracing::debug!(error, %repository, "layer not located ahead of its readers"),
            }
        }
        if elsewhere {
            let others = futures_util::stream::iter(layers.iter().skip(CONNECTIONS).map(locate));
            others
                .buffer_unordered(self.options.layers_ahead.max(1))
                .for_each(|_| std::future::ready(()))
                .await;
        }
    }
}
