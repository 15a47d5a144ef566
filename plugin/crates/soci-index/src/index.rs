//! The index itself.

use crate::names::{
    ANNOTATION_BUILD_TOOL, ANNOTATION_CREATED, ANNOTATION_LAYER_DIGEST, ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2,
    EMPTY_CONFIG_DIGEST, MANIFEST_MEDIA_TYPE, PREFETCH_MEDIA_TYPE, ZTOC_MEDIA_TYPE,
};
use crate::wire::{Annotations, WireDescriptor, WireError, WireManifest};
use crate::{canonical_json, digest_of};
use oci_spec::image::{Descriptor, Digest, MediaType};
use std::collections::BTreeMap;

/// Largest index that is read, in bytes: the usual bound of registries on a manifest.
pub const MAX_INDEX_SIZE: usize = 4 << 20;

/// Which of the two kinds an index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// Refers to its image; found through the referrers API or its fallback tag.
    V1,
    /// Refers to nothing; named by an annotation of the image manifest.
    V2,
}

/// A SOCI index: which zTOC describes which layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SociIndex {
    pub(crate) version: Version,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) subject: Option<Descriptor>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Why bytes are not a SOCI index.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// More than [`MAX_INDEX_SIZE`] bytes.
    #[error("the index has {0} bytes, more than {MAX_INDEX_SIZE}")]
    TooLarge(usize),
    /// Not JSON, or not of a manifest's shape.
    #[error("the index is not a JSON manifest")]
    Json(#[source] serde_json::Error),
    /// The config's media type is none of the two that say which version it is.
    #[error("unknown index version: {0}")]
    UnknownVersion(String),
    /// A descriptor without a usable digest or size.
    #[error("the index is invalid: {0}")]
    Descriptor(String),
}

// === impl Version ===

impl Version {
    /// Media type of an index's config blob, by which its version is known, and the artifact type of its referrer.
    pub fn artifact_type(self) -> &'static str {
        match self {
            Version::V1 => ARTIFACT_TYPE_V1,
            Version::V2 => ARTIFACT_TYPE_V2,
        }
    }

    /// The version that an artifact type stands for.
    pub fn from_artifact_type(artifact_type: &str) -> Option<Self> {
        match artifact_type {
            ARTIFACT_TYPE_V1 => Some(Version::V1),
            ARTIFACT_TYPE_V2 => Some(Version::V2),
            _ => None,
        }
    }
}

// === impl SociIndex ===

impl SociIndex {
    /// Reads an index, whatever the order of its keys, its white space or its additional fields.
    ///
    /// As in upstream, the config's media type alone says that a manifest is an index.
    ///
    /// # Errors
    /// Any [`ParseError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        if bytes.len() > MAX_INDEX_SIZE {
            return Err(ParseError::TooLarge(bytes.len()));
        }
        // By way of a value, so that the last of two equal keys counts, as in Go.
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(ParseError::Json)?;
        let wire: WireManifest = serde_json::from_value(value).map_err(ParseError::Json)?;
        let config_type = wire.config.and_then(|config| config.media_type).unwrap_or_default();
        let version = Version::from_artifact_type(&config_type)
            .ok_or_else(|| ParseError::UnknownVersion(config_type.chars().take(200).collect()))?;
        let invalid = |error: WireError| ParseError::Descriptor(error.to_string());
        let layers = wire.layers.unwrap_or_default();
        let layers = layers.iter().map(WireDescriptor::to_descriptor).collect::<Result<_, _>>();
        let subject = wire.subject.as_ref().map(WireDescriptor::to_descriptor).transpose();
        Ok(Self {
            version,
            layers: layers.map_err(invalid)?,
            subject: subject.map_err(invalid)?,
            annotations: wire.annotations.unwrap_or_default(),
        })
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The platform manifest of the image that a v1 index belongs to.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// Everything that the index lists, in its order: zTOCs, then prefetch artifacts.
    pub fn blobs(&self) -> &[Descriptor] {
        &self.layers
    }

    /// The zTOCs, in the order of the image's layers.
    pub fn ztocs(&self) -> impl Iterator<Item = &Descriptor> {
        self.layers.iter().filter(|layer| has_media_type(layer, ZTOC_MEDIA_TYPE))
    }

    /// The zTOC of the (compressed) layer `layer`; the last one, where several are listed, as in upstream.
    pub fn ztoc_for_layer(&self, layer: &Digest) -> Option<&Descriptor> {
        self.ztocs().filter(|ztoc| annotation(ztoc, ANNOTATION_LAYER_DIGEST) == Some(layer.as_ref())).last()
    }

    /// The prefetch artifact of the (compressed) layer `layer`.
    pub fn prefetch_for_layer(&self, layer: &Digest) -> Option<&Descriptor> {
        let describes =
            |blob: &&Descriptor| annotation(blob, ANNOTATION_LAYER_DIGEST) == Some(layer.as_ref());
        self.layers.iter().filter(|blob| has_media_type(blob, PREFETCH_MEDIA_TYPE)).rfind(describes)
    }

    /// The index's own annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// When the index says that it was made (RFC 3339, unchecked).
    pub fn created(&self) -> Option<&str> {
        self.annotations.get(ANNOTATION_CREATED).map(String::as_str)
    }

    /// The tool that made it.
    pub fn build_tool(&self) -> Option<&str> {
        self.annotations.get(ANNOTATION_BUILD_TOOL).map(String::as_str)
    }

    /// The bytes to store and push, equal to what Go's `encoding/json` makes of upstream's structures.
    pub fn to_json(&self) -> Vec<u8> {
        canonical_json(&WireManifest {
            schema_version: Some(2),
            media_type: Some(MANIFEST_MEDIA_TYPE.to_owned()),
            artifact_type: None,
            config: Some(WireDescriptor {
                media_type: Some(self.version.artifact_type().to_owned()),
                digest: Some(EMPTY_CONFIG_DIGEST.to_owned()),
                size: 2,
                ..WireDescriptor::default()
            }),
            layers: Some(self.layers.iter().map(WireDescriptor::from).collect()),
            subject: self.subject.as_ref().map(WireDescriptor::from),
            annotations: Some(self.annotations.clone()).filter(|map: &Annotations| !map.is_empty()),
        })
    }

    /// How a referrers list names the index whose bytes are `json`: with its artifact type and its annotations.
    pub fn referrer_descriptor(&self, json: &[u8]) -> Descriptor {
        let size = u64::try_from(json.len()).unwrap_or(u64::MAX);
        let mut descriptor = Descriptor::new(MediaType::ImageManifest, size, digest_of(json));
        descriptor.set_artifact_type(Some(MediaType::from(self.version.artifact_type())));
        if !self.annotations.is_empty() {
            descriptor.set_annotations(Some(self.annotations.clone().into_iter().collect()));
        }
        descriptor
    }
}

fn has_media_type(descriptor: &Descriptor, media_type: &str) -> bool {
    descriptor.media_type().as_ref() == media_type
}

fn annotation<'a>(descriptor: &'a Descriptor, name: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
