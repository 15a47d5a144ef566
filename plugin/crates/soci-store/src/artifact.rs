//! SOCI artifacts among containerd's content: what holds them there, and the labels that are their records.

use std::collections::HashMap;

use bytes::Bytes;
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest, MediaType};
use soci_index::{EMPTY_CONFIG, PREFETCH_MEDIA_TYPE, SociIndex, Version, ZTOC_MEDIA_TYPE, digest_of};

use crate::containerd::Containerd;
use crate::content::{ContentInfo, ContentStore};
use crate::digest::parse_digest;
use crate::error::StoreError;
use crate::filter;
use crate::labels::{self, Labels};
use crate::lease::Lease;

/// What an index is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexTarget {
    /// Digest of the platform's image manifest, whose blob will hold the index.
    pub image_digest: Digest,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// When the index was made.
    pub created_at: Timestamp,
}

/// Record of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexRecord {
    /// The index.
    pub digest: Digest,
    /// Bytes of its manifest.
    pub size: u64,
    /// The image manifest that it is for.
    pub image_digest: Digest,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// `v1` or `v2`.
    pub version: String,
    /// When it was made; when it arrived here, where that is unknown.
    pub created_at: Timestamp,
}

/// Record of a zTOC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZtocRecord {
    /// The zTOC.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// The compressed layer that it describes.
    pub layer_digest: Digest,
    /// Uncompressed bytes per span, where the record says so (indices of the 0.4 series do not).
    pub span_size: Option<u64>,
    /// When it arrived here.
    pub created_at: Option<Timestamp>,
}

/// SOCI artifacts of one namespace.
#[derive(Debug, Clone)]
pub struct Artifacts {
    content: ContentStore,
}

impl Artifacts {
    pub(crate) fn new(containerd: Containerd) -> Artifacts {
        Artifacts { content: containerd.content() }
    }

    /// Stores a zTOC with its record, held by the lease until an index refers to it.
    ///
    /// # Errors
    /// As [`ContentStore::write`].
    pub async fn store_ztoc(
        &self,
        lease: Option<&Lease>,
        bytes: Bytes,
        layer: &Digest,
        span_size: Option<u64>,
    ) -> Result<Descriptor, StoreError> {
        let media_type = MediaType::from(ZTOC_MEDIA_TYPE);
        let descriptor = Descriptor::new(media_type, bytes.len() as u64, digest_of(&bytes));
        self.content.write_bytes(lease, &descriptor, Self::ztoc_labels(layer, span_size), bytes).await?;
        Ok(descriptor)
    }

    /// The record of a zTOC, for who writes its bytes as they come.
    #[must_use]
    pub fn ztoc_labels(layer: &Digest, span_size: Option<u64>) -> Labels {
        let mut labels = Labels::from([(labels::ZTOC_LAYER_DIGEST.to_owned(), layer.to_string())]);
        if let Some(span_size) = span_size {
            labels.insert(labels::ZTOC_SPAN_SIZE.to_owned(), span_size.to_string());
        }
        labels
    }

    /// Stores a prefetch artifact with its record, held by the lease until an index refers to it.
    ///
    /// # Errors
    /// As [`ContentStore::write`].
    pub async fn store_prefetch(
        &self,
        lease: Option<&Lease>,
        bytes: Bytes,
        layer: &Digest,
    ) -> Result<Descriptor, StoreError> {
        let media_type = MediaType::from(PREFETCH_MEDIA_TYPE);
        let descriptor = Descriptor::new(media_type, bytes.len() as u64, digest_of(&bytes));
        let labels = Labels::from([(labels::PREFETCH_LAYER_DIGEST.to_owned(), layer.to_string())]);
        self.content.write_bytes(lease, &descriptor, labels, bytes).await?;
        Ok(descriptor)
    }

    /// Stores an index (v1 or v2) and its empty config, and ties both, and the zTOCs that it names, to the image manifest.
    ///
    /// The zTOCs and the manifest should be there; a zTOC that is not is simply not held. An index that the manifest held before stays
    /// held, under a name of its own.
    ///
    /// # Errors
    /// [`StoreError::Artifact`] where the bytes are no index; [`StoreError::NotFound`] where the manifest is not there.
    pub async fn store_index(
        &self,
        lease: Option<&Lease>,
        bytes: Bytes,
        target: &IndexTarget,
    ) -> Result<Descriptor, StoreError> {
        let descriptor = self.store_index_unlinked(lease, bytes, target).await?;
        self.link_index(&target.image_digest, descriptor.digest()).await?;
        Ok(descriptor)
    }

    /// Stores an index and its empty config, and leaves the manifest, which need not be there yet: see [`Artifacts::link_index`].
    ///
    /// # Errors
    /// [`StoreError::Artifact`] where the bytes are no index.
    pub async fn store_index_unlinked(
        &self,
        lease: Option<&Lease>,
        bytes: Bytes,
        target: &IndexTarget,
    ) -> Result<Descriptor, StoreError> {
        let digest = digest_of(&bytes);
        let index = SociIndex::parse(&bytes).map_err(|error| StoreError::Artifact {
            what: "index",
            digest: digest.to_string(),
            source: error,
        })?;
        // An index of ours or upstream's has the empty config; what another may have there nobody reads.
        let config_type = MediaType::from(index.version().artifact_type());
        let config = Descriptor::new(config_type, EMPTY_CONFIG.len() as u64, digest_of(EMPTY_CONFIG));
        let descriptor = Descriptor::new(MediaType::ImageManifest, bytes.len() as u64, digest);
        let labels = index_labels(&index, target);
        let (config_stored, stored) = tokio::join!(
            self.content.write_bytes(lease, &config, Labels::new(), Bytes::from_static(EMPTY_CONFIG)),
            self.content.write_bytes(lease, &descriptor, labels, bytes)
        );
        config_stored?;
        stored?;
        Ok(descriptor)
    }

    /// Makes the manifest hold a stored index. One that it held before stays held, under a name of its own.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the manifest is not there.
    pub async fn link_index(&self, manifest: &Digest, index: &Digest) -> Result<(), StoreError> {
        let Some(info) = self.content.info(manifest).await? else {
            return Err(StoreError::NotFound { operation: "image manifest", subject: manifest.to_string() });
        };
        self.content.set_labels(manifest, link_labels(&info.labels, index)).await
    }

    /// Records of all indices, newest first, those of the same time by digest.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn list_indices(&self) -> Result<Vec<IndexRecord>, StoreError> {
        let infos = self.content.list(&[filter::present(labels::INDEX_IMAGE_DIGEST)]).await?;
        let mut records: Vec<IndexRecord> = infos.iter().filter_map(index_record).collect();
        records.sort_by(|a, b| {
            b.created_at.cmp(&a.created_at).then_with(|| a.digest.as_ref().cmp(b.digest.as_ref()))
        });
        Ok(records)
    }

    /// The record of one index; `None` where there is none or it is no index.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn index(&self, digest: &Digest) -> Result<Option<IndexRecord>, StoreError> {
        Ok(self.content.info(digest).await?.as_ref().and_then(index_record))
    }

    /// Records of all zTOCs, newest first, those of the same time by digest.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn list_ztocs(&self) -> Result<Vec<ZtocRecord>, StoreError> {
        let infos = self.content.list(&[filter::present(labels::ZTOC_LAYER_DIGEST)]).await?;
        let mut records: Vec<ZtocRecord> = infos.iter().filter_map(ztoc_record).collect();
        records.sort_by(|a, b| {
            b.created_at.cmp(&a.created_at).then_with(|| a.digest.as_ref().cmp(b.digest.as_ref()))
        });
        Ok(records)
    }

    /// The record of one zTOC; `None` where there is none or it is no zTOC.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn ztoc(&self, digest: &Digest) -> Result<Option<ZtocRecord>, StoreError> {
        Ok(self.content.info(digest).await?.as_ref().and_then(ztoc_record))
    }

    /// The newest zTOC of this layer with this span size.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn find_ztoc(&self, layer: &Digest, span_size: u64) -> Result<Option<ZtocRecord>, StoreError> {
        let filter = format!(
            "{},{}",
            filter::equals(labels::ZTOC_LAYER_DIGEST, layer.as_ref()),
            filter::equals(labels::ZTOC_SPAN_SIZE, &span_size.to_string())
        );
        let infos = self.content.list(&[filter]).await?;
        Ok(infos.iter().filter_map(ztoc_record).max_by(|a, b| {
            a.created_at.cmp(&b.created_at).then_with(|| b.digest.as_ref().cmp(a.digest.as_ref()))
        }))
    }

    /// Bytes of an index.
    ///
    /// # Errors
    /// As [`ContentStore::read_all`].
    pub async fn read_index(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        self.content.read_all(digest, soci_index::MAX_INDEX_SIZE as u64).await
    }

    /// Lets go of an index and deletes it; its zTOCs go with the next collection unless another index holds them.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where there is no such index.
    pub async fn remove_index(&self, digest: &Digest) -> Result<(), StoreError> {
        let Some(record) = self.index(digest).await? else {
            return Err(StoreError::NotFound { operation: "index", subject: digest.to_string() });
        };
        if let Some(manifest) = self.content.info(&record.image_digest).await? {
            for (key, value) in &manifest.labels {
                if key.starts_with(labels::GC_REF_SOCI_INDEX) && value == digest.as_ref() {
                    self.content.remove_label(&manifest.digest, key).await?;
                }
            }
        }
        self.content.delete(digest).await
    }
}

/// Labels for the manifest: the new index under the plain name, the one before under a name with its own digest.
fn link_labels(present: &Labels, index: &Digest) -> Labels {
    let mut labels = HashMap::from([(labels::GC_REF_SOCI_INDEX.to_owned(), index.to_string())]);
    if let Some(before) = present.get(labels::GC_REF_SOCI_INDEX).and_then(|text| parse_digest(text))
        && before != *index
    {
        let name: String = before.digest().chars().take(12).collect();
        labels.insert(format!("{}.{name}", labels::GC_REF_SOCI_INDEX), before.to_string());
    }
    // The index may have been such an earlier one itself.
    let name: String = index.digest().chars().take(12).collect();
    let own = format!("{}.{name}", labels::GC_REF_SOCI_INDEX);
    if present.contains_key(&own) {
        labels.insert(own, String::new());
    }
    labels
}

/// What holds an index's parts, and its record.
fn index_labels(index: &SociIndex, target: &IndexTarget) -> Labels {
    let version = match index.version() {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    let mut labels = Labels::from([
        (labels::GC_REF_CONFIG.to_owned(), digest_of(EMPTY_CONFIG).to_string()),
        (labels::INDEX_IMAGE_DIGEST.to_owned(), target.image_digest.to_string()),
        (labels::INDEX_PLATFORM.to_owned(), target.platform.clone()),
        (labels::INDEX_VERSION.to_owned(), version.to_owned()),
        (labels::INDEX_CREATED_AT.to_owned(), target.created_at.to_string()),
    ]);
    for (n, blob) in index.blobs().iter().enumerate() {
        labels.insert(labels::gc_ref_ztoc(n), blob.digest().to_string());
    }
    labels
}

fn index_record(info: &ContentInfo) -> Option<IndexRecord> {
    let label = |key: &str| info.labels.get(key).map(String::as_str);
    Some(IndexRecord {
        digest: info.digest.clone(),
        size: info.size,
        image_digest: label(labels::INDEX_IMAGE_DIGEST).and_then(parse_digest)?,
        platform: label(labels::INDEX_PLATFORM).unwrap_or_default().to_owned(),
        version: label(labels::INDEX_VERSION).unwrap_or("v1").to_owned(),
        created_at: label(labels::INDEX_CREATED_AT)
            .and_then(|text| text.parse().ok())
            .or(info.created_at)
            .unwrap_or(Timestamp::UNIX_EPOCH),
    })
}

fn ztoc_record(info: &ContentInfo) -> Option<ZtocRecord> {
    let label = |key: &str| info.labels.get(key).map(String::as_str);
    Some(ZtocRecord {
        digest: info.digest.clone(),
        size: info.size,
        layer_digest: label(labels::ZTOC_LAYER_DIGEST).and_then(parse_digest)?,
        span_size: label(labels::ZTOC_SPAN_SIZE).and_then(|text| text.parse().ok()),
        created_at: info.created_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> IndexTarget {
        IndexTarget {
            image_digest: digest_of(b"manifest"),
            platform: "linux/amd64".to_owned(),
            created_at: "2024-01-02T03:04:05Z".parse().unwrap(),
        }
    }

    #[test]
    fn index_labels_hold_config_and_ztocs() {
        let ztoc = digest_of(b"ztoc");
        let mut builder = soci_index::IndexBuilder::v2();
        builder.add_ztoc(soci_index::ZtocRecord {
            digest: ztoc.clone(),
            size: 4,
            layer_digest: digest_of(b"layer"),
            layer_media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            span_size: 4 << 20,
            disable_xattrs: false,
        });
        let index = builder.build();
        let labels = index_labels(&index, &target());
        assert_eq!(labels["containerd.io/gc.ref.content.config"], digest_of(b"{}").to_string());
        assert_eq!(labels["containerd.io/gc.ref.content.ztoc.0"], ztoc.to_string());
        assert_eq!(labels["com.amazon.soci.index.version"], "v2");

        let info = ContentInfo { digest: digest_of(&index.to_json()), size: 1, labels, created_at: None };
        let record = index_record(&info).unwrap();
        assert_eq!(record.image_digest, target().image_digest);
        assert_eq!(record.created_at, target().created_at);
        assert_eq!(record.platform, "linux/amd64");
    }

    #[test]
    fn earlier_index_stays_held() {
        let (old, new) = (digest_of(b"old"), digest_of(b"new"));
        let first = link_labels(&Labels::new(), &old);
        assert_eq!(first, Labels::from([(labels::GC_REF_SOCI_INDEX.to_owned(), old.to_string())]));
        assert_eq!(link_labels(&first, &old), first);
        let second = link_labels(&first, &new);
        assert_eq!(second[labels::GC_REF_SOCI_INDEX], new.to_string());
        let aside: Vec<_> = second.iter().filter(|(_, value)| **value == old.to_string()).collect();
        assert_eq!(aside.len(), 1);
        // Back to the old one: the new one is put aside, the old one's own name is dropped (an empty value removes a label).
        let third = link_labels(&second, &old);
        assert_eq!(third[labels::GC_REF_SOCI_INDEX], old.to_string());
        assert_eq!(third[aside[0].0], "");
        assert_eq!(third.values().filter(|value| **value == new.to_string()).count(), 1);
    }
}
