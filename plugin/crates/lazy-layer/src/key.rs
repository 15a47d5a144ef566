//! Which layer file is meant.

use std::fmt;

use oci_spec::image::{Digest, DigestAlgorithm};

/// The pair that names a layer file: the compressed layer blob, and the zTOC that describes it.
///
/// A layer file that is not complete belongs to the pair, never to the layer alone: span digests come
/// from the zTOC, so sharing by layer digest would let a forged index poison another image's layer.
/// For one that is complete, see [`LayerStore::twins`](crate::LayerStore::twins).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerKey {
    /// Digest of the layer blob as the registry has it.
    pub layer: Digest,
    /// Digest of the zTOC's bytes.
    pub ztoc: Digest,
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {} (ztoc {})", self.layer, self.ztoc)
    }
}

/// A digest that this crate cannot work with: only `sha256:` and 64 lower-case hexadecimal digits are accepted.
#[derive(Clone, Debug, thiserror::Error)]
#[error("unsupported digest {digest}")]
pub struct UnsupportedDigest {
    /// The digest as it was given.
    pub digest: String,
}

impl LayerKey {
    /// Name of the layer's directory: `<layer hex>-<ztoc hex>`.
    pub(crate) fn directory_name(&self) -> Result<String, UnsupportedDigest> {
        Ok(format!("{}-{}", sha256_hex(&self.layer)?, sha256_hex(&self.ztoc)?))
    }

    /// Reads a directory name back; `None` for a name that [`Self::directory_name`] does not write.
    pub(crate) fn from_directory_name(name: &str) -> Option<Self> {
        let (layer, ztoc) = name.split_once('-')?;
        let key = Self {
            layer: format!("sha256:{layer}").parse().ok()?,
            ztoc: format!("sha256:{ztoc}").parse().ok()?,
        };
        (key.directory_name().ok()? == name).then_some(key)
    }
}

/// The hexadecimal part of a SHA-256 digest, checked to be a plain file name.
fn sha256_hex(digest: &Digest) -> Result<&str, UnsupportedDigest> {
    let hex = digest.digest();
    let plain = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if *digest.algorithm() == DigestAlgorithm::Sha256 && plain {
        Ok(hex)
    } else {
        Err(UnsupportedDigest { digest: digest.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_names_come_back() {
        let key = LayerKey {
            layer: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
            ztoc: format!("sha256:{}", "01".repeat(32)).parse().unwrap(),
        };
        let name = key.directory_name().unwrap();
        assert_eq!(LayerKey::from_directory_name(&name), Some(key));
        assert_eq!(LayerKey::from_directory_name(".tmp-1"), None);
        assert_eq!(LayerKey::from_directory_name(&name.to_uppercase()), None);
    }

    #[test]
    fn other_algorithms_are_refused() {
        let digest: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        let key = LayerKey { layer: digest.clone(), ztoc: digest };
        assert!(key.directory_name().is_err());
    }
}
