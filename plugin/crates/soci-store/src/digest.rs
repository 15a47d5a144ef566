//! The one kind of digest taken here.

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256};

/// SHA-256 of these bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    from_sha256(Sha256::digest(bytes).into())
}

/// The digest with this SHA-256 value.
#[expect(clippy::expect_used, reason = "64 hexadecimal digits behind `sha256:` always parse")]
pub(crate) fn from_sha256(value: [u8; 32]) -> Digest {
    let mut text = String::from("sha256:");
    for byte in value {
        for nibble in [byte >> 4, byte & 0xf] {
            text.extend(char::from_digit(u32::from(nibble), 16));
        }
    }
    Digest::try_from(text).expect("well-formed digest")
}

/// Reads `sha256:<64 hexadecimal digits>`; any other algorithm is none for us.
#[must_use]
pub fn parse_digest(text: &str) -> Option<Digest> {
    let digest: Digest = text.parse().ok()?;
    (*digest.algorithm() == DigestAlgorithm::Sha256).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digest() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest_of(b"").to_string(), empty);
        assert_eq!(parse_digest(empty), Some(digest_of(b"")));
        assert_eq!(parse_digest("sha512:00"), None);
        assert_eq!(parse_digest(&format!("sha512:{}", "0".repeat(128))), None);
        assert_eq!(parse_digest("e3b0"), None);
    }
}
