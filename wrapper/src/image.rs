//! Images as documents: manifests, lists of them, configs, and what follows from them.

use std::collections::HashMap;
use std::path::Path;

use oci_registry::platform::Platform;
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::Deserialize;
use serde_json::Value;
use soci_index::{digest_of, is_sha256};

/// More layers than any file system stacks; a hostile manifest may list as many as fit into 4 MiB.
const MAX_LAYERS: usize = 1024;

/// Why a document is no usable image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// Not JSON, or not of a manifest's shape.
    #[error("{digest} is no image manifest")]
    Json {
        /// The document.
        digest: Digest,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A shape that means two things, or none.
    #[error("{digest} is no image manifest: {what}")]
    Shape {
        /// The document.
        digest: Digest,
        /// What is wrong.
        what: &'static str,
    },
    /// Layers and the config's list of them differ in number.
    #[error("the manifest {manifest} has {layers} layers, its config {diff_ids}")]
    LayerCount {
        /// The manifest.
        manifest: Digest,
        /// Layers in it.
        layers: usize,
        /// Layers in its config.
        diff_ids: usize,
    },
}

/// What a reference may name.
#[derive(Debug)]
pub(crate) enum Document {
    /// Manifests for several platforms (and artifacts).
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Box<Manifest>),
}

/// An image manifest: what of it matters here.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    /// The config blob.
    pub(crate) config: Descriptor,
    /// The layers, lowest first.
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default)]
    pub(crate) annotations: Option<HashMap<String, String>>,
}

/// An image config: what of it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// A layer and its place in the chain.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// The (compressed) blob.
    pub(crate) blob: Descriptor,
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Digest,
    /// Name of the snapshot that ends with this layer.
    pub(crate) chain_id: Digest,
}

impl Document {
    /// Reads a manifest or a list of them.
    pub(crate) fn parse(digest: &Digest, bytes: &[u8]) -> Result<Document, ImageError> {
        let json = |source| ImageError::Json { digest: digest.clone(), source };
        let shape = |what| ImageError::Shape { digest: digest.clone(), what };
        let mut value: Value = serde_json::from_slice(bytes).map_err(json)?;
        let present = |key: &str| value.get(key).is_some_and(|value| !value.is_null());
        // A document with both would be one image to us and another to somebody else.
        if present("manifests") && (present("layers") || present("config")) {
            return Err(shape("it has both manifests and layers"));
        }
        if present("fsLayers") {
            return Err(shape("it is of schema version 1, which is no longer pulled"));
        }
        if present("manifests") {
            let list = value.get_mut("manifests").map(Value::take).unwrap_or_default();
            let manifests: Vec<Descriptor> = serde_json::from_value(list).map_err(json)?;
            return if manifests.iter().all(|entry| is_sha256(entry.digest())) {
                Ok(Document::Index(manifests))
            } else {
                Err(shape("it has digests that are not SHA-256"))
            };
        }
        if !present("config") {
            return Err(shape("it has neither manifests nor a config"));
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(json)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(shape("it has too many layers"));
        }
        if !manifest.blobs().all(|blob| is_sha256(blob.digest())) {
            return Err(shape("it has digests that are not SHA-256"));
        }
        Ok(Document::Manifest(Box::new(manifest)))
    }
}

impl Manifest {
    /// Config and layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// One annotation.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str)
    }

    /// Whether this is something to make a root file system of, and not an attestation, an index of ours or another artifact.
    pub(crate) fn is_image(&self) -> bool {
        self.layers.iter().all(|layer| is_layer(layer.media_type()))
            && soci_index::Version::from_artifact_type(self.config.media_type().as_ref()).is_none()
    }

    /// The layers with their uncompressed digests and chain IDs.
    pub(crate) fn chain(&self, manifest: &Digest, config: &Config) -> Result<Vec<Layer>, ImageError> {
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != self.layers.len() {
            return Err(ImageError::LayerCount {
                manifest: manifest.clone(),
                layers: self.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let mut parent: Option<Digest> = None;
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (blob, diff_id) in self.layers.iter().zip(diff_ids) {
            let chain_id = chain_id(parent.as_ref(), diff_id);
            parent = Some(chain_id.clone());
            layers.push(Layer { blob: blob.clone(), diff_id: diff_id.clone(), chain_id });
        }
        Ok(layers)
    }
}

impl Config {
    /// Reads an image config.
    pub(crate) fn parse(digest: &Digest, bytes: &[u8]) -> Result<Config, ImageError> {
        let config: Config = serde_json::from_slice(bytes)
            .map_err(|source| ImageError::Json { digest: digest.clone(), source })?;
        if config.rootfs.diff_ids.iter().all(is_sha256) {
            Ok(config)
        } else {
            Err(ImageError::Shape { digest: digest.clone(), what: "its diff IDs are not SHA-256" })
        }
    }

    /// The platform that the image says it is for; nothing said is this machine's.
    pub(crate) fn platform(&self) -> Platform {
        if self.os.is_empty() || self.architecture.is_empty() {
            return Platform::host();
        }
        Platform::new(&self.os, &self.architecture, &self.variant)
    }
}

/// Name of a stack of layers, from that of the stack below and the uncompressed digest of the top one.
fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
        None => diff_id.clone(),
    }
}

/// Whether a media type is that of a file system layer.
pub(crate) fn is_layer(media_type: &MediaType) -> bool {
    let text = media_type.to_string();
    text.starts_with("application/vnd.oci.image.layer.")
        || text.starts_with("application/vnd.docker.image.rootfs.")
}

/// Whether a registry may lack the blob because it may not be distributed.
pub(crate) fn is_foreign(media_type: &MediaType) -> bool {
    let text = media_type.to_string();
    text.contains(".nondistributable.") || text.contains(".foreign.")
}

/// What progress calls a blob: `sha256:` and 12 digits, with the last part of its media type.
pub(crate) fn short(descriptor: &Descriptor) -> String {
    let digits: String = descriptor.digest().digest().chars().take(12).collect();
    let media_type = descriptor.media_type().to_string();
    let kind = Path::new(&media_type).extension().and_then(|kind| kind.to_str()).unwrap_or_default();
    match kind {
        "gzip" | "tar" => format!("layer {digits}"),
        _ if is_layer(descriptor.media_type()) => format!("layer {digits}"),
        _ => format!("blob {digits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> String {
        digest_of(&[n]).to_string()
    }

    fn manifest(layers: usize) -> String {
        let layer = format!(
            r#"{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"{}","size":1}}"#,
            digest(1)
        );
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{}","size":1}},"layers":[{}]}}"#,
            digest(0),
            vec![layer; layers].join(",")
        )
    }

    #[test]
    fn documents() {
        let name = digest_of(b"");
        assert!(
            matches!(Document::parse(&name, manifest(3).as_bytes()), Ok(Document::Manifest(m)) if m.is_image())
        );
        let index = format!(r#"{{"manifests":[{{"mediaType":"x/y","digest":"{}","size":2}}]}}"#, digest(2));
        assert!(
            matches!(Document::parse(&name, index.as_bytes()), Ok(Document::Index(list)) if list.len() == 1)
        );
        for bad in [
            String::new(),
            "{}".to_owned(),
            "[]".to_owned(),
            r#"{"fsLayers":[]}"#.to_owned(),
            r#"{"manifests":[],"layers":[]}"#.to_owned(),
            r#"{"config":{}}"#.to_owned(),
            manifest(MAX_LAYERS + 1),
            manifest(1).replace("sha256:", "sha384:"),
        ] {
            assert!(Document::parse(&name, bad.as_bytes()).is_err(), "{bad:.80}");
        }
    }

    /// Values of `identity.ChainID` in the image specification's Go package.
    #[test]
    fn chain_ids() {
        let (a, b, c) = (digest_of(b"a"), digest_of(b"b"), digest_of(b"c"));
        let ab = digest_of(format!("{a} {b}").as_bytes());
        let abc = digest_of(format!("{ab} {c}").as_bytes());
        let config = format!(
            r#"{{"os":"linux","architecture":"arm64","variant":"v8","rootfs":{{"diff_ids":["{a}","{b}","{c}"]}}}}"#
        );
        let config = Config::parse(&a, config.as_bytes()).unwrap();
        assert_eq!(config.platform().to_string(), "linux/arm64");
        let Ok(Document::Manifest(three)) = Document::parse(&a, manifest(3).as_bytes()) else { panic!() };
        let chain: Vec<Digest> = three.chain(&a, &config).unwrap().into_iter().map(|l| l.chain_id).collect();
        assert_eq!(chain, [a.clone(), ab, abc]);
        let Ok(Document::Manifest(two)) = Document::parse(&a, manifest(2).as_bytes()) else { panic!() };
        assert!(two.chain(&a, &config).is_err());
    }
}
