//! SOCI index manifests, the JSON they are written in, and what surrounds them in a registry.
//!
//! A SOCI index is an OCI image manifest whose layers are zTOCs, each naming the image layer that it describes. Two
//! versions exist, told apart by the config's media type alone: v1 refers to its image (`subject`) and is found through
//! the referrers API or its fallback tag; v2 refers to nothing and is named by an annotation of the image manifest.
//!
//! Upstream's consumers parse a fetched index, write it again and keep the result under the *original* digest, so an
//! index is usable for them only in the very bytes that Go's `encoding/json` makes: see [`canonical_json`].
//!
//! Pure: no clock, file, socket or thread.

mod builder;
pub mod fallback;
mod index;
mod json;
mod layer;
mod names;
mod prefetch;
mod wire;

pub use builder::{IndexBuilder, ZtocRecord};
pub use index::{MAX_INDEX_SIZE, ParseError, SociIndex, Version};
pub use json::canonical_json;
pub use layer::{DEFAULT_MIN_LAYER_SIZE, LayerCompression, LayerVerdict, NotALayer, SkipReason, classify};
pub use names::*;
pub use prefetch::{PrefetchError, PrefetchSpan, PrefetchSpans};

use oci_spec::image::Digest;
use sha2::{Digest as _, Sha256};

/// The SHA-256 digest of `bytes`, in the form descriptors carry.
pub fn digest_of(bytes: &[u8]) -> Digest {
    digest_from(Sha256::digest(bytes).into())
}

/// The digest whose 32 bytes are `sha256`.
#[expect(clippy::expect_used, reason = "what the loop makes is a digest")]
pub fn digest_from(sha256: [u8; 32]) -> Digest {
    let mut text = String::from("sha256:");
    for byte in sha256 {
        text.extend([byte >> 4, byte & 15].map(|nibble| char::from_digit(nibble.into(), 16).unwrap_or('0')));
    }
    Digest::try_from(text).expect("an algorithm and 64 hexadecimal digits")
}

/// Whether a digest is of the one algorithm that this project accepts, SHA-256.
pub fn is_sha256(digest: &Digest) -> bool {
    *digest.algorithm() == oci_spec::image::DigestAlgorithm::Sha256
}
