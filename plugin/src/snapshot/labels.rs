//! What the labels of a Prepare ask for.

use std::str::FromStr;

use oci_spec::image::Digest;

use super::record::Labels;

/// Chain ID of the layer that is being prepared. Its presence means "an image is being unpacked, the layer may be remote".
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// Image reference, in full.
pub const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
/// Digest of the compressed layer.
pub const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
/// Digests of the layers from this one upwards, separated by commas, as many as fit into a label.
pub const REST: &str = "containerd.io/snapshot/cri.image-layers";
/// Digest of the image's manifest.
pub const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Bytes of the compressed layer.
pub const SIZE: &str = "containerd.io/snapshot/remote/soci.size";
/// Digest of the SOCI index to use.
pub const INDEX: &str = "containerd.io/snapshot/remote/soci.index.digest";

/// Marks a lazily loaded layer; this is how users and tools recognise one.
pub const REMOTE: (&str, &str) = ("containerd.io/snapshot/remote", "remote snapshot");
/// Namespace that a layer was loaded for.
pub const NAMESPACE: &str = "containerd.io/snapshot/remote/namespace";
/// Marks a layer that came in by way of an index, lazily or not.
pub const HAS_INDEX: (&str, &str) = ("containerd.io/snapshot/remote/has.soci.index.digest", "true");

/// What a Prepare is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// A container's writable layer, or anything else that is no layer of an image.
    Container,
    /// An image's layer.
    Layer {
        /// Its chain ID.
        target: String,
        /// What it takes to load it lazily, or why that cannot be known.
        request: Result<Box<LayerRequest>, LabelError>,
    },
}

/// A layer to load lazily.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRequest {
    /// Image reference, in full.
    pub image: String,
    /// Digest of the image's manifest for this platform.
    pub manifest: Digest,
    /// Digest of the compressed layer.
    pub layer: Digest,
    /// Its bytes, where the client says.
    pub size: Option<u64>,
    /// The index that the client wants used.
    pub index: Option<Digest>,
    /// This layer and those above it, as far as the client says. Nothing depends on it but what is done ahead.
    pub rest: Vec<Digest>,
}

/// Labels that do not say what to load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// One is missing: the client does not know about lazy loading.
    #[error("unable to get {0} from labels")]
    Missing(&'static str),
    /// One is there, but no digest.
    #[error("label {label} is no SHA-256 digest: {value:?}")]
    NotADigest {
        /// Which one.
        label: &'static str,
        /// The beginning of what it says.
        value: String,
    },
    /// The size is no number.
    #[error("label {SIZE} is no size: {0:?}")]
    NotASize(String),
}

// === impl Intent ===

impl Intent {
    /// From the labels of a Prepare.
    #[must_use]
    pub fn of(labels: &Labels) -> Intent {
        match labels.get(TARGET) {
            None => Intent::Container,
            Some(target) => {
                Intent::Layer { target: target.clone(), request: LayerRequest::of(labels).map(Box::new) }
            }
        }
    }
}

// === impl LayerRequest ===

impl LayerRequest {
    fn of(labels: &Labels) -> Result<LayerRequest, LabelError> {
        let image =
            labels.get(IMAGE).filter(|image| !image.is_empty()).ok_or(LabelError::Missing("image ref"))?;
        Ok(LayerRequest {
            image: image.clone(),
            manifest: digest(labels, MANIFEST)?.ok_or(LabelError::Missing("image digest"))?,
            layer: digest(labels, LAYER)?.ok_or(LabelError::Missing("layer digest"))?,
            size: labels
                .get(SIZE)
                .map(|size| size.parse().map_err(|_| LabelError::NotASize(beginning(size))))
                .transpose()?,
            index: digest(labels, INDEX)?,
            rest: labels.get(REST).into_iter().flat_map(|list| list.split(',')).filter_map(sha256).collect(),
        })
    }
}

fn digest(labels: &Labels, label: &'static str) -> Result<Option<Digest>, LabelError> {
    // An empty label is what clients send for "no particular index".
    let Some(value) = labels.get(label).filter(|value| !value.is_empty()) else { return Ok(None) };
    match sha256(value) {
        Some(digest) => Ok(Some(digest)),
        None => Err(LabelError::NotADigest { label, value: beginning(value) }),
    }
}

fn sha256(text: &str) -> Option<Digest> {
    Digest::from_str(text).ok().filter(soci_index::is_sha256)
}

fn beginning(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn labels(extra: &[(&str, &str)]) -> Labels {
        let mut labels: Labels =
            [(TARGET, "sha256:chain"), (IMAGE, "docker.io/library/x:1"), (LAYER, D), (MANIFEST, D)]
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
        for (key, value) in extra {
            labels.insert((*key).to_owned(), (*value).to_owned());
        }
        labels
    }

    fn request(extra: &[(&str, &str)]) -> Result<LayerRequest, LabelError> {
        match Intent::of(&labels(extra)) {
            Intent::Layer { request, .. } => request.map(|request| *request),
            Intent::Container => panic!("a layer"),
        }
    }

    #[test]
    fn no_target_is_a_container() {
        assert_eq!(Intent::of(&Labels::from([(IMAGE.into(), "x".into())])), Intent::Container);
    }

    #[test]
    fn a_layer() {
        let plain = request(&[]).unwrap();
        assert_eq!((plain.size, plain.index), (None, None));
        let full = request(&[(SIZE, "123"), (INDEX, D)]).unwrap();
        assert_eq!((full.size, full.index.unwrap().to_string()), (Some(123), D.to_owned()));
        assert_eq!(request(&[(INDEX, "")]).unwrap().index, None);
        let two = format!("{D},nonsense,{D}");
        assert_eq!(request(&[(REST, &two)]).unwrap().rest.len(), 2);
    }

    #[test]
    fn what_cannot_be_loaded_is_said() {
        assert_eq!(request(&[(IMAGE, "")]), Err(LabelError::Missing("image ref")));
        assert!(matches!(request(&[(LAYER, "sha512:00")]), Err(LabelError::NotADigest { label: LAYER, .. })));
        assert!(matches!(request(&[(MANIFEST, "../../etc/passwd")]), Err(LabelError::NotADigest { .. })));
        assert!(matches!(request(&[(SIZE, "-1")]), Err(LabelError::NotASize(_))));
    }
}
