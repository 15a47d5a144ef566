//! A layer that is complete already, by way of another index.
//!
//! Who may share a layer file: an incomplete one belongs to the pair of layer and zTOC. One that is complete, and of which all is known, is as good for whoever
//! says by his own configuration that this is what the layer is uncompressed. Only files of the same compressed layer are looked at: what of one should be lost is fetched again from this
//! image's registry, under this image's name for it.

use std::sync::Arc;

use lazy_layer::{Layer, LayerKey};
use oci_registry::Repository;
use oci_spec::image::Digest;

use super::Resolver;
use super::index::FoundIndex;
use crate::snapshot::LazyRecord;
use crate::telemetry::chain;

// === impl Resolver ===

impl Resolver {
    /// The layer file of an image: its own, or one that is complete, where its own would have to be made.
    pub(super) async fn layer_or_twin(
        self: &Arc<Self>,
        repository: &Repository,
        key: LayerKey,
        record: &LazyRecord,
        found: &Arc<FoundIndex>,
    ) -> Result<Arc<Layer>, String> {
        if let Some(twin) = self.twin(&key, record).await {
            return Ok(twin);
        }
        let namespace = Some(record.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        self.layer(namespace, repository, key, Some(Arc::clone(found))).await
    }

    /// What the image itself says decides, as far as containerd knows that: nobody else may be believed, and nobody is asked for whom a Prepare would have to wait.
    async fn twin(&self, key: &LayerKey, record: &LazyRecord) -> Option<Arc<Layer>> {
        let (layers, own) = (Arc::clone(&self.layers), key.clone());
        let twins = match tokio::task::spawn_blocking(move || layers.twins(&own)).await.ok()? {
            Ok(twins) => twins,
            Err(error) => {
                tracing::debug!(error = chain(&error), %key, "complete layers are not looked for");
                return None;
            }
        };
        if twins.is_empty() {
            return None;
        }
        let record = LazyRecord { layer: key.layer.to_string(), ..record.clone() };
        let says: Digest = self.diff_id_here(&record).await?;
        for (twin, diff_id) in twins {
            if diff_id == says
                && let Ok(Some(layer)) = self.open(&twin).await
            {
                tracing::debug!(%key, file = %twin, %diff_id, "a complete file of the layer is mounted");
                return Some(layer);
            }
        }
        None
    }
}
