//! Names of labels, and the limit that containerd puts on one.
//!
//! containerd's collector follows every label whose key starts with [`GC_REF_CONTENT`] and a dot, whatever the rest of the name says.
//! `ctr content prune references` strips those that point to layers (`….l.N`) and those whose name is a plain number, so ours are neither.

use std::collections::HashMap;

/// Prefix of labels from content to content that the collector follows.
pub const GC_REF_CONTENT: &str = "containerd.io/gc.ref.content";
/// From the index to its (empty) config.
pub const GC_REF_CONFIG: &str = "containerd.io/gc.ref.content.config";
/// From the image manifest to the newest SOCI index made or pulled for it.
pub const GC_REF_SOCI_INDEX: &str = "containerd.io/gc.ref.content.soci-index";
/// Prefix of labels from content to a snapshot; the snapshotter's name follows.
pub const GC_REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";
/// When a lease ends by itself, RFC 3339.
pub const GC_EXPIRE: &str = "containerd.io/gc.expire";
/// Prefix of labels that say where content came from; the registry's host follows, the value lists repositories.
pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source";
/// On a gzip layer: the digest of what is inside.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// On a snapshot that is being prepared: the name under which it is looked for when it is committed.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// On an index: the image manifest that it was made for.
pub const INDEX_IMAGE_DIGEST: &str = "com.amazon.soci.index.image-digest";
/// On an index: the platform, as `os/arch[/variant]`.
pub const INDEX_PLATFORM: &str = "com.amazon.soci.index.platform";
/// On an index: `v1` or `v2`.
pub const INDEX_VERSION: &str = "com.amazon.soci.index.version";
/// On an index: when it was made, RFC 3339.
pub const INDEX_CREATED_AT: &str = "com.amazon.soci.index.created-at";
/// On a zTOC: the compressed layer that it describes.
pub const ZTOC_LAYER_DIGEST: &str = "com.amazon.soci.ztoc.layer-digest";
/// On a zTOC: bytes of uncompressed data per span, decimal.
pub const ZTOC_SPAN_SIZE: &str = "com.amazon.soci.ztoc.span-size";
/// On a prefetch artifact: the layer whose spans it lists.
pub const PREFETCH_LAYER_DIGEST: &str = "com.amazon.soci.prefetch.layer-digest";

/// Bytes that containerd allows a label's key and value to have together.
pub const MAX_SIZE: usize = 4096;

/// Labels as containerd's API has them.
pub type Labels = HashMap<String, String>;

/// Key of the label from an index to its blob number `n` (in the order of the index, from 0).
#[must_use]
pub fn gc_ref_ztoc(n: usize) -> String {
    format!("{GC_REF_CONTENT}.ztoc.{n}")
}

/// Key of the label from a manifest to its layer number `n` (from 0), as containerd's own pull writes it.
#[must_use]
pub fn gc_ref_layer(n: usize) -> String {
    format!("{GC_REF_CONTENT}.l.{n}")
}

/// Key of the label from an image index to its manifest number `n` (from 0), as containerd's own pull writes it.
#[must_use]
pub fn gc_ref_manifest(n: usize) -> String {
    format!("{GC_REF_CONTENT}.m.{n}")
}

/// Key of the label from an image config to the top snapshot of the image in `snapshotter`.
#[must_use]
pub fn gc_ref_snapshot(snapshotter: &str) -> String {
    format!("{GC_REF_SNAPSHOT}.{snapshotter}")
}

/// Whether containerd would take this label.
#[must_use]
pub fn fits(key: &str, value: &str) -> bool {
    key.len().saturating_add(value.len()) <= MAX_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `ctr content prune references` strips: `….l.` and plain numbers other than 0.
    fn pruned(key: &str) -> bool {
        let Some(rest) = key.strip_prefix("containerd.io/gc.ref.content.") else { return false };
        rest.starts_with("l.") || (rest.chars().all(|c| c.is_ascii_digit()) && rest != "0")
    }

    #[test]
    fn our_references_survive_pruning() {
        for key in [GC_REF_CONFIG.to_owned(), GC_REF_SOCI_INDEX.to_owned(), gc_ref_ztoc(0), gc_ref_ztoc(12)] {
            assert!(!pruned(&key), "{key}");
            assert!(key.starts_with("containerd.io/gc.ref.content."), "{key}");
        }
        assert!(pruned(&gc_ref_layer(3)));
    }

    #[test]
    fn limit_counts_key_and_value() {
        assert!(fits("k", &"v".repeat(4095)));
        assert!(!fits("k", &"v".repeat(4096)));
    }
}
