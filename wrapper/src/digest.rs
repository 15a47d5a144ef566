//! Digests on the command line.

use oci_spec::image::Digest;

use crate::error::Error;

/// Reads `sha256:<64 hexadecimal digits>`.
///
/// # Errors
/// Anything else.
pub(crate) fn parse(text: &str) -> Result<Digest, Error> {
    soci_store::parse_digest(text).ok_or_else(|| Error::Usage(format!("{text:?} is not a sha256 digest")))
}
