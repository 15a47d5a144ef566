//! The one kind of digest taken here.

use oci_spec::image::Digest;

/// Reads `sha256:<64 hexadecimal digits>`; any other algorithm is none for us.
#[must_use]
pub fn parse_digest(text: &str) -> Option<Digest> {
    text.parse().ok().filter(soci_index::is_sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(parse_digest(empty), Some(soci_index::digest_of(b"")));
        assert_eq!(parse_digest("sha512:00"), None);
        assert_eq!(parse_digest(&format!("sha512:{}", "0".repeat(128))), None);
        assert_eq!(parse_digest("e3b0"), None);
    }
}
