//! Making an index.

use crate::index::{SociIndex, Version};
use crate::names::{
    ANNOTATION_BUILD_TOOL, ANNOTATION_DISABLE_XATTRS, ANNOTATION_LAYER_DIGEST, ANNOTATION_LAYER_MEDIA_TYPE,
    ANNOTATION_SPAN_SIZE, BUILD_TOOL, PREFETCH_MEDIA_TYPE, ZTOC_MEDIA_TYPE,
};
use oci_spec::image::{Descriptor, Digest, MediaType};
use std::collections::{BTreeMap, HashMap};

/// Collects zTOCs, in the order of the image's layers, and makes an index of them.
#[derive(Clone, Debug)]
pub struct IndexBuilder {
    version: Version,
    subject: Option<Descriptor>,
    build_tool: String,
    ztocs: Vec<Descriptor>,
    prefetches: Vec<Descriptor>,
}

/// A zTOC as an index lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZtocRecord {
    /// Digest of the zTOC.
    pub digest: Digest,
    /// Size of the zTOC in bytes.
    pub size: u64,
    /// Digest of the (compressed) layer.
    pub layer_digest: Digest,
    /// The layer's media type, as in the image manifest.
    pub layer_media_type: String,
    /// Span size that it was built with, in uncompressed bytes.
    pub span_size: u64,
    /// Whether the layer is known to have no extended attributes, and this is to be told (`--optimizations xattr`).
    pub disable_xattrs: bool,
}

impl IndexBuilder {
    /// Begins a v1 index for the image whose platform manifest is `subject`; of that only media type, digest and size
    /// are taken.
    pub fn v1(subject: Descriptor) -> Self {
        let subject = Descriptor::new(subject.media_type().clone(), subject.size(), subject.digest().clone());
        Self { version: Version::V1, subject: Some(subject), ..Self::v2() }
    }

    /// Begins a v2 index.
    pub fn v2() -> Self {
        Self {
            version: Version::V2,
            subject: None,
            build_tool: BUILD_TOOL.to_owned(),
            ztocs: Vec::new(),
            prefetches: Vec::new(),
        }
    }

    /// Says who made the index; [`BUILD_TOOL`] where nothing is said.
    pub fn build_tool(&mut self, name: &str) -> &mut Self {
        name.clone_into(&mut self.build_tool);
        self
    }

    /// Adds the zTOC of the next layer that has one.
    pub fn add_ztoc(&mut self, record: ZtocRecord) -> &mut Self {
        let mut annotations = HashMap::from([
            (ANNOTATION_LAYER_DIGEST.to_owned(), record.layer_digest.to_string()),
            (ANNOTATION_LAYER_MEDIA_TYPE.to_owned(), record.layer_media_type),
            (ANNOTATION_SPAN_SIZE.to_owned(), record.span_size.to_string()),
        ]);
        if record.disable_xattrs {
            annotations.insert(ANNOTATION_DISABLE_XATTRS.to_owned(), "true".to_owned());
        }
        self.ztocs.push(descriptor(ZTOC_MEDIA_TYPE, record.size, record.digest, annotations));
        self
    }

    /// Adds the prefetch artifact `digest` (of `size` bytes) of the next layer that has one.
    pub fn add_prefetch(&mut self, layer_digest: &Digest, digest: Digest, size: u64) -> &mut Self {
        let annotations = HashMap::from([(ANNOTATION_LAYER_DIGEST.to_owned(), layer_digest.to_string())]);
        self.prefetches.push(descriptor(PREFETCH_MEDIA_TYPE, size, digest, annotations));
        self
    }

    /// Whether there is nothing in it yet; such an index is not worth storing, upstream refuses to.
    pub fn is_empty(&self) -> bool {
        self.ztocs.is_empty()
    }

    /// The index.
    pub fn build(self) -> SociIndex {
        let mut layers = self.ztocs;
        layers.extend(self.prefetches);
        SociIndex {
            version: self.version,
            layers,
            subject: self.subject,
            annotations: BTreeMap::from([(ANNOTATION_BUILD_TOOL.to_owned(), self.build_tool)]),
        }
    }
}

fn descriptor(
    media_type: &str,
    size: u64,
    digest: Digest,
    annotations: HashMap<String, String>,
) -> Descriptor {
    let mut descriptor = Descriptor::new(MediaType::from(media_type), size, digest);
    descriptor.set_annotations(Some(annotations));
    descriptor
}
