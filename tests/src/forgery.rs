//! Artifacts that lie, in a registry.

use serde_json::Value;

use crate::image::{Image, digest};
use crate::rootfs;
use crate::stack::Stack;

/// Publishes `small:1` whose ztoc was changed by `change`; returns image, reference, digest of the forged index.
pub fn publish_forged(stack: &Stack, change: impl Fn(&mut Vec<u8>)) -> (Image, String, String) {
    let image = rootfs::small(stack.folder());
    let (reference, index) = stack.publish(&image, "small:1", 64 * 1024);
    let forged = forge(stack, "small", &index, change);
    (image, reference, forged)
}

/// Publishes an index like this one of a repository, but for the ztoc of the lowest layer, which was changed by `change`; returns its digest.
pub fn forge(stack: &Stack, repository: &str, index: &str, change: impl Fn(&mut Vec<u8>)) -> String {
    let mut index: Value =
        serde_json::from_str(&stack.registry.get(&format!("{repository}/manifests/{index}"))).unwrap();
    let slot = if index["layers"].is_array() { "layers" } else { "blobs" };
    let ztoc = index[slot][0]["digest"].as_str().unwrap().to_owned();
    let mut bytes = stack.registry.blob(repository, &ztoc);
    let genuine = bytes.clone();
    change(&mut bytes);
    assert_ne!(bytes, genuine, "nothing was forged");
    index[slot][0]["digest"] = stack.registry.put_blob(repository, &bytes).into();
    index[slot][0]["size"] = bytes.len().into();
    let forged = index.to_string();
    let name = digest(forged.as_bytes());
    let media_type = index["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
    stack.registry.put_manifest(repository, &name, media_type, forged.as_bytes());
    name
}

/// Replaces every `from` by `to`, which is as long.
pub fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from)
        .map(|(at, _)| at)
        .collect();
    for at in places {
        bytes[at..at + from.len()].copy_from_slice(to);
    }
}
