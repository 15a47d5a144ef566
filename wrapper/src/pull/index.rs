//! Which SOCI index an image has, and its way into containerd's content store.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest, MediaType};
use soci_index::{
    ANNOTATION_CREATED, ANNOTATION_INDEX_DIGEST, ANNOTATION_SPAN_SIZE, ARTIFACT_TYPE_V1, SociIndex, digest_of,
};
use soci_store::{Artifacts, IndexTarget, StoreError, labels};

use super::{PlatformImage, Puller};
use crate::error::{Error, one_line};
use crate::image::Manifest;

/// Indices of one image that are looked at; a registry may list any number.
const MAX_CANDIDATES: usize = 16;
/// Artifacts fetched at a time: those of nearly every image at once.
const CONCURRENCY: usize = 64;

/// What the search for an index found. None is no failure.
#[derive(Debug)]
pub(crate) enum IndexOutcome {
    /// An index with zTOCs for layers of this image.
    Found(Box<FoundIndex>),
    /// Nobody made one, as far as the registry and containerd know.
    None,
    /// There is one, or should be, but it cannot be used.
    Unusable {
        /// Why not, one line.
        reason: String,
    },
}

/// Where to look for an index, in this order.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    digests: Vec<Digest>,
    /// Why some may be missing.
    reasons: Vec<String>,
}

/// An index, read but not stored.
#[derive(Debug)]
pub(crate) struct FoundIndex {
    digest: Digest,
    bytes: Bytes,
    index: SociIndex,
}

impl FoundIndex {
    /// Its digest.
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether it has a zTOC for this layer.
    pub(crate) fn has_ztoc(&self, layer: &Digest) -> bool {
        self.index.ztoc_for_layer(layer).is_some()
    }

    /// An index of this image; or in words why these bytes are none.
    pub(crate) fn read(bytes: Bytes, manifest: &Manifest) -> Result<FoundIndex, String> {
        let digest = digest_of(&bytes);
        let index = SociIndex::parse(&bytes).map_err(|error| format!("{digest}: {}", one_line(&error)))?;
        let index = FoundIndex { digest, bytes, index };
        if index.ztocs(manifest).is_empty() {
            return Err(format!("the index {} has no zTOC for any layer of this image", index.digest));
        }
        Ok(index)
    }

    /// Layers with their zTOCs, each layer once.
    fn ztocs(&self, manifest: &Manifest) -> HashMap<Digest, Descriptor> {
        let layers = manifest.layers.iter().map(Descriptor::digest);
        layers.filter_map(|layer| Some((layer.clone(), self.index.ztoc_for_layer(layer)?.clone()))).collect()
    }
}

impl Puller {
    /// Finds the image's index: the one that the manifest names, else the newest that refers to the manifest, in the registry or here.
    pub(crate) async fn find_index(&self, manifest: &Manifest, candidates: Candidates) -> IndexOutcome {
        let Candidates { digests, mut reasons } = candidates;
        let named = manifest.annotation(ANNOTATION_INDEX_DIGEST).and_then(soci_store::parse_digest);
        for digest in named.into_iter().chain(digests) {
            match self.read_index(&digest, manifest).await {
                Ok(found) => return IndexOutcome::Found(Box::new(found)),
                Err(reason) => reasons.push(reason),
            }
        }
        if reasons.is_empty() {
            IndexOutcome::None
        } else {
            IndexOutcome::Unusable { reason: reasons.join("; ") }
        }
    }

    /// Indices that refer to the manifest, newest first: those in the registry, then those made here and not pushed. Its digest is enough to
    /// look for them.
    pub(crate) async fn candidates(&self, subject: &Digest) -> Candidates {
        let artifacts = self.containerd.artifacts();
        let (remote, here) = tokio::join!(
            self.client.referrers(self.reference.repository(), subject, ARTIFACT_TYPE_V1),
            artifacts.list_indices()
        );
        let mut candidates = Candidates::default();
        match remote {
            Ok(mut referrers) => {
                sort_newest_first(&mut referrers);
                let newest = referrers.iter().take(MAX_CANDIDATES);
                candidates.digests.extend(newest.map(|descriptor| descriptor.digest().clone()));
            }
            Err(error) => candidates.reasons.push(one_line(&error)),
        }
        match here {
            Ok(records) => {
                let here = records.into_iter().filter(|record| record.image_digest == *subject);
                candidates.digests.extend(here.map(|record| record.digest).take(MAX_CANDIDATES));
            }
            Err(error) => candidates.reasons.push(one_line(&error)),
        }
        candidates
    }

    async fn read_index(&self, digest: &Digest, manifest: &Manifest) -> Result<FoundIndex, String> {
        FoundIndex::read(self.index_bytes(digest).await?, manifest)
    }

    /// An index's bytes, from containerd's store or the registry; or in words why they cannot be had.
    pub(crate) async fn index_bytes(&self, digest: &Digest) -> Result<Bytes, String> {
        self.index_from_anywhere(digest).await.map_err(|error| format!("{digest}: {}", one_line(&error)))
    }

    async fn index_from_anywhere(&self, digest: &Digest) -> Result<Bytes, Error> {
        match self.containerd.artifacts().read_index(digest).await {
            Err(StoreError::NotFound { .. }) => {
                let reference = self.reference.repository().with_digest(digest.clone());
                Ok(self.client.manifest(&reference).await.map_err(Error::command)?.bytes)
            }
            other => Ok(other?),
        }
    }

    /// Fetches the zTOCs of an index; gives the layers whose zTOC is here then, and says of which it could not be had.
    pub(crate) async fn fetch_ztocs(&self, found: &FoundIndex, manifest: &Manifest) -> HashSet<Digest> {
        let fetches = found.ztocs(manifest).into_iter().map(|(layer, ztoc)| async move {
            let span_size = ztoc
                .annotations()
                .as_ref()
                .and_then(|all| all.get(ANNOTATION_SPAN_SIZE))
                .and_then(|text| text.parse().ok());
            let labels = Artifacts::ztoc_labels(&layer, span_size);
            match self.blob(&ztoc, labels, false).await {
                Ok(()) => Some(layer),
                Err(error) => {
                    self.progress.notice(&format!(
                        "the zTOC of layer {layer} cannot be had, the layer will be downloaded: {}",
                        one_line(&error)
                    ));
                    None
                }
            }
        });
        futures_util::stream::iter(fetches)
            .buffer_unordered(CONCURRENCY)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    /// Stores the index, and the artifacts in it that are no zTOCs (prefetch artifacts) where they can be had.
    pub(crate) async fn store_index(&self, found: &FoundIndex, image: &PlatformImage) -> Result<(), Error> {
        let known = self.containerd.artifacts().index(&found.digest).await?;
        let created = found.index.created().and_then(|text| text.parse::<Timestamp>().ok());
        let target = IndexTarget {
            image_digest: image.descriptor.digest().clone(),
            platform: image.platform.to_string(),
            // A record that is here keeps its date.
            created_at: known.map(|record| record.created_at).or(created).unwrap_or_else(Timestamp::now),
        };
        let artifacts = self.containerd.artifacts();
        let stored = artifacts.store_index_unlinked(None, found.bytes.clone(), &target);
        let prefetch = MediaType::from(soci_index::PREFETCH_MEDIA_TYPE);
        let others = found.index.blobs().iter().filter(|blob| *blob.media_type() == prefetch);
        let others = futures_util::stream::iter(others.map(|blob| async move {
            if let Err(error) = self.blob(blob, labels::Labels::new(), false).await {
                tracing::debug!(digest = %blob.digest(), error = one_line(&error), "no prefetch artifact");
            }
        }));
        let others = others.buffer_unordered(CONCURRENCY).for_each(|()| std::future::ready(()));
        let (stored, ()) = tokio::join!(stored, others);
        stored?;
        Ok(())
    }

    /// Ties a stored index, with its zTOCs, to the image's manifest, which must be stored too.
    pub(crate) async fn link_index(&self, found: &FoundIndex, image: &PlatformImage) -> Result<(), Error> {
        Ok(self.containerd.artifacts().link_index(image.descriptor.digest(), &found.digest).await?)
    }
}

/// Newest `created` annotation first, those without one last, those of the same time by digest.
fn sort_newest_first(referrers: &mut [Descriptor]) {
    let created = |descriptor: &Descriptor| {
        descriptor
            .annotations()
            .as_ref()
            .and_then(|all| all.get(ANNOTATION_CREATED))
            .and_then(|text| text.parse::<Timestamp>().ok())
    };
    referrers.sort_by(|a, b| {
        created(b).cmp(&created(a)).then_with(|| a.digest().as_ref().cmp(b.digest().as_ref()))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(n: u8, created: Option<&str>) -> Descriptor {
        let mut descriptor = Descriptor::new(MediaType::ImageManifest, 1, digest_of(&[n]));
        if let Some(created) = created {
            descriptor
                .set_annotations(Some(HashMap::from([(ANNOTATION_CREATED.to_owned(), created.to_owned())])));
        }
        descriptor
    }

    #[test]
    fn newest_wins_and_ties_go_by_digest() {
        let mut list = vec![
            referrer(1, None),
            referrer(2, Some("2024-01-01T00:00:00Z")),
            referrer(3, Some("2024-01-01T01:00:00+02:00")),
            referrer(4, Some("2025-01-01T00:00:00Z")),
            referrer(5, Some("nonsense")),
        ];
        sort_newest_first(&mut list);
        let order: Vec<&Digest> = list.iter().map(Descriptor::digest).collect();
        assert_eq!(order[..3], [&digest_of(&[4]), &digest_of(&[2]), &digest_of(&[3])]);
        assert!(order[3].as_ref() < order[4].as_ref());
    }
}
