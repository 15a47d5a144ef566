//! `manifest.json`: what the other files of a layer's directory are.

use serde::{Deserialize, Serialize};

use super::checksum::Checksum;
use super::{Damaged, name};

/// The format that this program writes. It reads all from 1 to this.
pub(crate) const FORMAT: u64 = 1;

/// A manifest is smaller than this; a larger file is damaged.
pub(crate) const LIMIT: u64 = 64 << 10;

/// How the layer blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// gzip, one or more members.
    Gzip,
    /// The tar itself.
    Tar,
}

/// Sizes, identity and checksums of a layer's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Number of the whole layout, always first.
    pub(crate) format: u64,
    pub(crate) layer: String,
    pub(crate) ztoc: String,
    pub(crate) encoding: Encoding,
    /// Bytes of the layer blob.
    pub(crate) compressed_size: u64,
    /// Bytes of the tar that the zTOC covers.
    pub(crate) uncompressed_size: u64,
    /// Where the tar begins in `layer.erofs`; also the length of the metadata.
    pub(crate) tar_start: u64,
    /// Length of `layer.erofs`.
    pub(crate) file_size: u64,
    /// Checksum of the first `tar_start` bytes of `layer.erofs`, hexadecimal like the next two.
    pub(crate) metadata: String,
    pub(crate) spans: String,
    pub(crate) headers: String,
    /// Checksum of this manifest's JSON with `check` empty.
    pub(crate) check: String,
}

/// Why a manifest is of no use.
#[derive(Debug)]
pub(crate) enum ManifestError {
    /// From another version of this program.
    Format(u64),
    Damaged(Damaged),
}

impl Manifest {
    /// The bytes of `manifest.json`, with the right `check`.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let check = self.checksum()?;
        serde_json::to_vec_pretty(&Self { check, ..self.clone() })
    }

    /// Reads `manifest.json`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let damaged = |reason| ManifestError::Damaged(Damaged { file: name::MANIFEST, reason });
        let head: Head = serde_json::from_slice(bytes).map_err(|_| damaged("not JSON with a format"))?;
        if head.format != FORMAT {
            return Err(ManifestError::Format(head.format));
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|_| damaged("a field is missing or has a wrong type"))?;
        if manifest.checksum().ok().as_deref() != Some(manifest.check.as_str()) {
            return Err(damaged("wrong checksum"));
        }
        Ok(manifest)
    }

    fn checksum(&self) -> serde_json::Result<String> {
        let json = serde_json::to_vec(&Self { check: String::new(), ..self.clone() })?;
        Ok(Checksum::of(&json).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            format: FORMAT,
            layer: "sha256:a".into(),
            ztoc: "sha256:b".into(),
            encoding: Encoding::Gzip,
            compressed_size: 1,
            uncompressed_size: 2,
            tar_start: 4096,
            file_size: 4608,
            metadata: "00".into(),
            spans: "01".into(),
            headers: "02".into(),
            check: String::new(),
        }
    }

    #[test]
    fn comes_back() {
        let read = Manifest::decode(&sample().encode().unwrap()).unwrap();
        assert_eq!(Manifest { check: String::new(), ..read }, sample());
    }

    #[test]
    fn a_changed_number_is_noticed() {
        let text = String::from_utf8(sample().encode().unwrap()).unwrap().replace("4608", "4609");
        assert!(matches!(Manifest::decode(text.as_bytes()), Err(ManifestError::Damaged(_))));
    }

    #[test]
    fn a_newer_format_is_no_damage() {
        assert!(matches!(Manifest::decode(br#"{"format": 7, "x": []}"#), Err(ManifestError::Format(7))));
        assert!(matches!(Manifest::decode(b""), Err(ManifestError::Damaged(_))));
    }
}
