//! Which SOCI index an image has.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use oci_registry::Repository;
use oci_spec::image::{Descriptor, Digest};
use parking_lot::Mutex;
use serde::Deserialize;
use soci_index::{SociIndex, Version};
use soci_store::Containerd;

use super::Resolver;
use super::coming::Coming;
use super::content::{ArtifactError, Origin, What, fetch};
use super::ztocs::Waiting;

/// Largest manifest or index that is read, bytes.
const MAX_MANIFEST: u64 = soci_index::MAX_INDEX_SIZE as u64;

/// The image whose index is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ImageKey {
    pub(super) namespace: Option<String>,
    pub(super) repository: Repository,
    pub(super) manifest: Digest,
    /// The one that the client names.
    pub(super) explicit: Option<Digest>,
}

/// What came of looking.
#[derive(Clone, Debug)]
pub(super) enum IndexOutcome {
    /// This one.
    Found(Arc<FoundIndex>),
    /// None, as far as containerd and the registry know now.
    Absent(String),
    /// It cannot be known now.
    Failed(String),
}

/// An index, and what was fetched for it.
#[derive(Debug)]
pub(super) struct FoundIndex {
    pub(super) digest: Digest,
    pub(super) index: SociIndex,
    bytes: Bytes,
    origin: Origin,
    /// zTOCs that came from the registry, until containerd has them. None where nobody is going to give it any, or no longer.
    fetched: Mutex<Option<HashMap<Digest, Waiting>>>,
    /// The image's layers, until they are mounted.
    pub(super) coming: Coming,
}

/// An index that containerd is going to have: what is remembered for that is forgotten with this, however it ends.
struct Keeping(Arc<FoundIndex>);

/// As much of an image manifest as is looked at.
#[derive(Debug, Default, Deserialize)]
struct ImageManifest {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

// === impl FoundIndex ===

impl FoundIndex {
    fn new(digest: Digest, index: SociIndex, bytes: Bytes, origin: Origin) -> Arc<FoundIndex> {
        Arc::new(FoundIndex {
            digest,
            index,
            bytes,
            origin,
            fetched: Mutex::default(),
            coming: Coming::default(),
        })
    }

    /// Lets containerd have a zTOC later, where it is going to have any.
    pub(super) fn fetched(&self, digest: &Digest, ztoc: impl FnOnce() -> Option<Waiting>) {
        if let Some(fetched) = &mut *self.fetched.lock()
            && let Some(ztoc) = ztoc()
        {
            fetched.insert(digest.clone(), ztoc);
        }
    }
}

// === impl Keeping ===

impl Keeping {
    fn begin(found: &Arc<FoundIndex>) -> Keeping {
        *found.fetched.lock() = Some(HashMap::new());
        Keeping(Arc::clone(found))
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        *self.0.fetched.lock() = None;
    }
}

// === impl Resolver ===

impl Resolver {
    /// The explicit one, else the one that the manifest names (v2), else the newest of those that refer to it (v1).
    pub(super) async fn find_index(self: Arc<Self>, key: ImageKey) -> IndexOutcome {
        let outcome = self.look(&key).await;
        if let IndexOutcome::Found(found) = &outcome
            && found.origin == Origin::Registry
            && let Some(containerd) = self.containerd(key.namespace.as_deref())
        {
            tokio::spawn(Arc::clone(&self).keep(containerd, key, Keeping::begin(found)));
        }
        outcome
    }

    async fn look(&self, key: &ImageKey) -> IndexOutcome {
        let containerd = self.containerd(key.namespace.as_deref());
        let containerd = containerd.as_ref();
        if let Some(digest) = &key.explicit {
            tracing::debug!(%digest, "using provided soci index digest");
            return match self.index_at(containerd, key, digest).await {
                Ok(found) => IndexOutcome::Found(found),
                Err(Missing::Absent(text)) => IndexOutcome::Absent(text),
                Err(Missing::Failed(text)) => IndexOutcome::Failed(text),
            };
        }
        tracing::debug!("index digest not provided");
        let mut failure = None;
        if self.options.v2 {
            match self.by_annotation(containerd, key).await {
                Ok(found) => return IndexOutcome::Found(found),
                Err(Missing::Absent(_)) => {}
                Err(Missing::Failed(text)) => failure = Some(text),
            }
        } else {
            tracing::debug!("soci v2 is disabled");
        }
        if self.options.v1 {
            match self.by_referrers(containerd, key).await {
                Ok(found) => return IndexOutcome::Found(found),
                Err(Missing::Absent(_)) => {}
                Err(Missing::Failed(text)) => failure = Some(text),
            }
        } else {
            tracing::debug!("soci v1 is disabled");
        }
        match failure {
            Some(text) => IndexOutcome::Failed(text),
            None if !self.options.v1 && !self.options.v2 => {
                IndexOutcome::Absent("all lazy pull modes are disabled".into())
            }
            None => IndexOutcome::Absent(format!("no SOCI index found for {}", key.manifest)),
        }
    }

    async fn by_annotation(
        &self,
        containerd: Option<&Containerd>,
        key: &ImageKey,
    ) -> Result<Arc<FoundIndex>, Missing> {
        tracing::debug!("checking for soci v2 index annotation");
        let fetched =
            fetch(containerd, &self.registries, &key.repository, &key.manifest, What::Manifest, MAX_MANIFEST)
                .await;
        let (bytes, _) = fetched.map_err(|error| Missing::of("image manifest", &key.manifest, &error))?;
        let manifest: ImageManifest = serde_json::from_slice(&bytes).unwrap_or_default();
        let named =
            manifest.annotations.get(soci_index::ANNOTATION_INDEX_DIGEST).and_then(|text| text.parse().ok());
        let Some(digest) = named.filter(soci_index::is_sha256) else {
            tracing::debug!("soci v2 index annotation not found");
            return Err(Missing::Absent("no annotation".into()));
        };
        tracing::debug!(%digest, "using soci v2 index annotation");
        // One that is named but gone is no reason not to look for a v1 index.
        let found = self.index_at(containerd, key, &digest).await?;
        if found.index.version() == Version::V2 {
            Ok(found)
        } else {
            Err(Missing::Absent("not a v2 index".into()))
        }
    }

    async fn by_referrers(
        &self,
        containerd: Option<&Containerd>,
        key: &ImageKey,
    ) -> Result<Arc<FoundIndex>, Missing> {
        if let Some(containerd) = containerd {
            // Newest first already.
            let records = containerd.artifacts().list_indices().await.unwrap_or_default();
            for record in records
                .iter()
                .filter(|record| record.image_digest == key.manifest)
                .take(self.options.referrers)
            {
                if let Ok(found) = self.index_at(Some(containerd), key, &record.digest).await
                    && found.index.version() == Version::V1
                {
                    tracing::debug!(digest = %record.digest, "using soci v1 index of the content store");
                    return Ok(found);
                }
            }
        }
        let failed = |error: &ArtifactError| Missing::of("list of referrers", &key.manifest, error);
        let client = self.registries.client(&key.repository).map_err(|error| failed(&error.into()))?;
        let referrers = client.referrers(&key.repository, &key.manifest, soci_index::ARTIFACT_TYPE_V1).await;
        let mut referrers = referrers.map_err(|error| failed(&error.into()))?;
        newest_first(&mut referrers);
        let mut missing = Missing::Absent("no referrers".into());
        for descriptor in referrers
            .iter()
            .filter(|descriptor| soci_index::is_sha256(descriptor.digest()))
            .take(self.options.referrers)
        {
            match self.index_at(containerd, key, descriptor.digest()).await {
                Ok(found) => {
                    tracing::debug!(digest = %descriptor.digest(), "using soci v1 index via referrers API");
                    return Ok(found);
                }
                Err(failed @ Missing::Failed(_)) => missing = failed,
                Err(Missing::Absent(_)) => {}
            }
        }
        tracing::debug!("soci v1 referrers not found");
        Err(missing)
    }

    async fn index_at(
        &self,
        containerd: Option<&Containerd>,
        key: &ImageKey,
        digest: &Digest,
    ) -> Result<Arc<FoundIndex>, Missing> {
        tracing::info!(%digest, "fetching SOCI artifacts using index descriptor");
        let fetched =
            fetch(containerd, &self.registries, &key.repository, digest, What::Manifest, MAX_MANIFEST).await;
        let (bytes, origin) = fetched.map_err(|error| Missing::of("SOCI index", digest, &error))?;
        let index = SociIndex::parse(&bytes).map_err(|error| {
            Missing::Absent(format!("SOCI index {digest}: {}", crate::telemetry::chain(&error)))
        })?;
        if let Some(subject) = index.subject().filter(|subject| *subject.digest() != key.manifest) {
            // Layers that both images have would fit, but the client asked for this image's.
            tracing::debug!(%digest, subject = %subject.digest(), "index was made for another image");
        }
        Ok(FoundIndex::new(digest.clone(), index, bytes, origin))
    }

    /// Puts what the daemon fetched into containerd's store, where the image's manifest holds it: then it travels with the image, and the
    /// next daemon need not ask the registry. Nobody waits for this; it ends when its lease does.
    async fn keep(self: Arc<Self>, containerd: Containerd, key: ImageKey, keeping: Keeping) {
        let Keeping(found) = &keeping;
        tokio::time::sleep(self.options.keep_after).await;
        let deadline = self.options.store_deadline;
        let kept = tokio::time::timeout(deadline, self.keep_in(&containerd, &key, found)).await;
        if let Err(error) = kept.unwrap_or_else(|_| Err(format!("not done within {deadline:?}"))) {
            // For example an image that was pulled without its content being kept. The layers are lazy all the same.
            tracing::debug!(error, digest = %found.digest, "SOCI artifacts stay outside containerd's content store");
        }
    }

    async fn keep_in(
        self: &Arc<Self>,
        containerd: &Containerd,
        key: &ImageKey,
        found: &FoundIndex,
    ) -> Result<(), String> {
        let text = |error: soci_store::StoreError| crate::telemetry::chain(&error);
        if containerd.content().info(&key.manifest).await.map_err(text)?.is_none() {
            return Err("the image's manifest is not in the content store".into());
        }
        let lease = containerd.leases().create(self.options.store_deadline).await.map_err(text)?;
        let result = async {
            for ztoc in found.index.ztocs() {
                let annotations = ztoc.annotations().as_ref();
                let annotation = |name: &str| annotations.and_then(|all| all.get(name));
                let Some(layer) =
                    annotation(soci_index::ANNOTATION_LAYER_DIGEST).and_then(|text| text.parse().ok())
                else {
                    continue;
                };
                let ready = found.fetched.lock().as_mut().and_then(|fetched| fetched.remove(ztoc.digest()));
                let fetched = match ready {
                    Some(Waiting { ztoc, .. }) => ztoc,
                    // One that a layer is being made of is on its way already.
                    None => {
                        let (namespace, size) = (key.namespace.as_deref(), Some(ztoc.size()));
                        self.compared_ztoc(namespace, &key.repository, ztoc.digest(), size).await?
                    }
                };
                let span_size =
                    annotation(soci_index::ANNOTATION_SPAN_SIZE).and_then(|text| text.parse().ok());
                containerd
                    .artifacts()
                    .store_ztoc(Some(&lease), fetched.bytes.clone(), &layer, span_size)
                    .await
                    .map_err(text)?;
            }
            let target = soci_store::IndexTarget {
                image_digest: key.manifest.clone(),
                platform: oci_registry::platform::Platform::host().to_string(),
                created_at: found
                    .index
                    .created()
                    .and_then(|text| text.parse().ok())
                    .unwrap_or_else(Timestamp::now),
            };
            containerd
                .artifacts()
                .store_index(Some(&lease), found.bytes.clone(), &target)
                .await
                .map_err(text)?;
            Ok(())
        }
        .await;
        // An image that was removed meanwhile: its collection is over, and has spared what the lease held.
        let manifest = containerd.content().info(&key.manifest).await;
        let ended = match (&result, manifest) {
            (Ok(()), Ok(Some(_))) => containerd.leases().delete(&lease).await,
            _ => containerd.leases().delete_and_collect(&lease).await,
        };
        ended.map_err(text)?;
        result
    }
}

/// Why an index could not be had.
#[derive(Debug)]
enum Missing {
    /// There is none.
    Absent(String),
    /// Who knows.
    Failed(String),
}

// === impl Missing ===

impl Missing {
    fn of(what: &str, digest: &Digest, error: &ArtifactError) -> Missing {
        let text = format!("{what} {digest}: {}", crate::telemetry::chain(error));
        if error.is_not_found() { Missing::Absent(text) } else { Missing::Failed(text) }
    }
}

/// By `created` annotation, those without one last; of the same time by digest.
fn newest_first(referrers: &mut [Descriptor]) {
    let created = |descriptor: &Descriptor| -> Option<Timestamp> {
        descriptor.annotations().as_ref()?.get(soci_index::ANNOTATION_CREATED)?.parse().ok()
    };
    referrers.sort_by(|a, b| {
        created(b).cmp(&created(a)).then_with(|| a.digest().to_string().cmp(&b.digest().to_string()))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_wins_and_ties_are_settled() {
        let descriptor = |hex: char, created: Option<&str>| {
            let digest: Digest = format!("sha256:{}", hex.to_string().repeat(64)).parse().unwrap();
            let mut descriptor = Descriptor::new(oci_spec::image::MediaType::ImageManifest, 1_u64, digest);
            let annotations = created
                .map(|text| HashMap::from([(soci_index::ANNOTATION_CREATED.to_owned(), text.to_owned())]));
            descriptor.set_annotations(annotations);
            descriptor
        };
        let mut list = [
            descriptor('e', None),
            descriptor('d', None),
            descriptor('c', Some("2024-01-01T00:00:00Z")),
            descriptor('b', Some("2024-01-01T09:00:00+08:00")),
            descriptor('a', Some("nonsense")),
            descriptor('f', Some("2024-01-01T00:00:00Z")),
        ];
        newest_first(&mut list);
        let order: String = list.iter().filter_map(|d| d.digest().digest().chars().next()).collect();
        assert_eq!(order, "bcfade");
    }
}
