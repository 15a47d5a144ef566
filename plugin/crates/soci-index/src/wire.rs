//! The JSON structures, in Go's field order and as lenient as Go about what is missing or null.
//!
//! `oci-spec`'s own types cannot be used for either direction: their maps have no order, their descriptor has another
//! field order, and their platform names `os.version` and `os.features` wrongly.

use oci_spec::image::{Arch, Descriptor, Digest, MediaType, Os, Platform};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

pub(crate) type Annotations = BTreeMap<String, String>;

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WireManifest {
    pub(crate) schema_version: Option<i64>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(crate) media_type: Option<String>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Option<WireDescriptor>,
    pub(crate) layers: Option<Vec<WireDescriptor>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<WireDescriptor>,
    #[serde(skip_serializing_if = "is_empty_map")]
    pub(crate) annotations: Option<Annotations>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WireDescriptor {
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Option<String>,
    pub(crate) size: i64,
    #[serde(skip_serializing_if = "is_empty_list")]
    pub(crate) urls: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_empty_map")]
    pub(crate) annotations: Option<Annotations>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(crate) data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<WirePlatform>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(crate) artifact_type: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub(crate) struct WirePlatform {
    pub(crate) architecture: Option<String>,
    pub(crate) os: Option<String>,
    #[serde(rename = "os.version", skip_serializing_if = "is_empty")]
    pub(crate) os_version: Option<String>,
    #[serde(rename = "os.features", skip_serializing_if = "is_empty_list")]
    pub(crate) os_features: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(crate) variant: Option<String>,
}

/// Why a descriptor is not one that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a descriptor has no valid sha256 digest: {0:?}")]
    Digest(String),
    #[error("a descriptor has the size {0}")]
    Size(i64),
}

// === impl WireDescriptor ===

impl WireDescriptor {
    pub(crate) fn to_descriptor(&self) -> Result<Descriptor, WireError> {
        let text = self.digest.as_deref().unwrap_or_default();
        let digest = Digest::try_from(text).ok().filter(crate::is_sha256);
        let digest = digest.ok_or_else(|| WireError::Digest(text.chars().take(100).collect()))?;
        let size = u64::try_from(self.size).map_err(|_| WireError::Size(self.size))?;
        let media_type = MediaType::from(self.media_type.as_deref().unwrap_or_default());
        let mut descriptor = Descriptor::new(media_type, size, digest);
        descriptor.set_urls(self.urls.clone().filter(|urls| !urls.is_empty()));
        let annotations = self.annotations.clone().filter(|map| !map.is_empty());
        descriptor.set_annotations(annotations.map(|map| map.into_iter().collect::<HashMap<_, _>>()));
        descriptor.set_data(self.data.clone().filter(|data| !data.is_empty()));
        descriptor.set_platform(self.platform.as_ref().map(WirePlatform::to_platform));
        let artifact_type = self.artifact_type.as_deref().filter(|text| !text.is_empty());
        descriptor.set_artifact_type(artifact_type.map(MediaType::from));
        Ok(descriptor)
    }
}

impl From<&Descriptor> for WireDescriptor {
    fn from(descriptor: &Descriptor) -> Self {
        Self {
            media_type: Some(descriptor.media_type().to_string()),
            digest: Some(descriptor.digest().to_string()),
            size: i64::try_from(descriptor.size()).unwrap_or(i64::MAX),
            urls: descriptor.urls().clone(),
            annotations: descriptor.annotations().clone().map(|map| map.into_iter().collect()),
            data: descriptor.data().clone(),
            platform: descriptor.platform().as_ref().map(WirePlatform::from),
            artifact_type: descriptor.artifact_type().as_ref().map(ToString::to_string),
        }
    }
}

// === impl WirePlatform ===

impl WirePlatform {
    fn to_platform(&self) -> Platform {
        let mut platform = Platform::default();
        platform.set_architecture(Arch::from(self.architecture.as_deref().unwrap_or_default()));
        platform.set_os(Os::from(self.os.as_deref().unwrap_or_default()));
        platform.set_os_version(self.os_version.clone().filter(|text| !text.is_empty()));
        platform.set_os_features(self.os_features.clone().filter(|list| !list.is_empty()));
        platform.set_variant(self.variant.clone().filter(|text| !text.is_empty()));
        platform
    }
}

impl From<&Platform> for WirePlatform {
    fn from(platform: &Platform) -> Self {
        Self {
            architecture: Some(platform.architecture().to_string()),
            os: Some(platform.os().to_string()),
            os_version: platform.os_version().clone(),
            os_features: platform.os_features().clone(),
            variant: platform.variant().clone(),
        }
    }
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_deref().unwrap_or_default().is_empty()
}

fn is_empty_map(map: &Option<Annotations>) -> bool {
    map.as_ref().is_none_or(BTreeMap::is_empty)
}

fn is_empty_list(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}
