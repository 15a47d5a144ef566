//! Our bytes against those of the Go tools (`tests/golden/README.md` says where they come from).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use oci_spec::image::{Descriptor, Digest, MediaType};
use soci_index::{IndexBuilder, PrefetchSpans, SociIndex, Version, ZtocRecord, digest_of};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden/index")
}

fn files(part: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for folder in ["0.4.1", "head"] {
        for entry in std::fs::read_dir(golden().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name.contains(part) && !name.contains(".subject.") {
                found.push((format!("{folder}/{name}"), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_index_is_written_as_it_was_read() {
    let all: Vec<_> = [".v1-", ".v2-"].iter().flat_map(|part| files(part)).collect();
    assert_eq!(all.len(), 9);
    for (name, bytes) in all {
        let index = SociIndex::parse(&bytes).unwrap();
        let json = index.to_json();
        assert_eq!(String::from_utf8_lossy(&json), String::from_utf8_lossy(&bytes), "{name}");
        let digest = digest_of(&json);
        let prefix = name.rsplit_once('-').unwrap().1.strip_suffix(".json").unwrap();
        assert!(digest.digest().starts_with(prefix), "{name}");
        let referrer = index.referrer_descriptor(&json);
        assert_eq!((referrer.digest(), referrer.size()), (&digest, bytes.len() as u64));
    }
}

#[test]
fn spacing_and_key_order_of_the_input_do_not_matter() {
    for (name, bytes) in files(".v1-") {
        let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let object = value.as_object_mut().unwrap();
        let keys: Vec<String> = object.keys().cloned().collect();
        let reversed: serde_json::Map<_, _> =
            keys.into_iter().rev().map(|key| (key.clone(), object[&key].clone())).collect();
        let pretty = serde_json::to_vec_pretty(&reversed).unwrap();
        assert_ne!(pretty, bytes);
        assert_eq!(SociIndex::parse(&pretty).unwrap().to_json(), bytes, "{name}");
    }
}

/// Takes a golden index of HEAD apart into what `create` knows, and builds it again.
#[test]
fn the_builder_makes_the_same_bytes() {
    let mut built = 0;
    for (name, bytes) in files(".v1-").into_iter().chain(files(".v2-")) {
        if !name.starts_with("head/") {
            continue;
        }
        let golden = SociIndex::parse(&bytes).unwrap();
        let mut builder = match golden.version() {
            Version::V1 => {
                let mut subject = golden.subject().unwrap().clone();
                subject.set_annotations(Some([("dropped".to_owned(), "yes".to_owned())].into()));
                IndexBuilder::v1(subject)
            }
            Version::V2 => IndexBuilder::v2(),
        };
        for blob in golden.blobs() {
            let annotations = blob.annotations().clone().unwrap();
            let layer_digest =
                Digest::try_from(annotations["com.amazon.soci.image-layer-digest"].as_str()).unwrap();
            if *blob.media_type() == MediaType::from(soci_index::PREFETCH_MEDIA_TYPE) {
                builder.add_prefetch(&layer_digest, blob.digest().clone(), blob.size());
                continue;
            }
            assert_eq!(golden.ztoc_for_layer(&layer_digest), Some(blob));
            builder.add_ztoc(ZtocRecord {
                digest: blob.digest().clone(),
                size: blob.size(),
                layer_digest,
                layer_media_type: annotations["com.amazon.soci.image-layer-mediaType"].clone(),
                span_size: 65536,
                disable_xattrs: annotations.contains_key("com.amazon.soci.disable-xattrs"),
            });
        }
        assert_eq!(
            String::from_utf8_lossy(&builder.build().to_json()),
            String::from_utf8_lossy(&bytes),
            "{name}"
        );
        built += 1;
    }
    assert_eq!(built, 5);
}

#[test]
fn the_subject_is_the_image_manifest() {
    let bytes = std::fs::read(golden().join("head/prefetch.v1-8f134b933f96.json")).unwrap();
    let manifest = std::fs::read(golden().join("head/prefetch.v1-8f134b933f96.subject.json")).unwrap();
    let subject = Descriptor::new(MediaType::ImageManifest, manifest.len() as u64, digest_of(&manifest));
    assert_eq!(SociIndex::parse(&bytes).unwrap().subject(), Some(&subject));
}

#[test]
fn prefetch_artifacts_are_written_as_they_were_read() {
    let all = files(".prefetch.");
    assert_eq!(all.len(), 2);
    let index = std::fs::read(golden().join("head/prefetch.v1-8f134b933f96.json")).unwrap();
    let index = SociIndex::parse(&index).unwrap();
    for (name, bytes) in all {
        let spans = PrefetchSpans::parse(&bytes).unwrap();
        assert_eq!(spans.to_json(), bytes, "{name}");
        assert_eq!(PrefetchSpans::merged(spans.spans().to_vec()).unwrap(), spans);
        assert!(index.blobs().iter().any(|blob| *blob.digest() == digest_of(&bytes)), "{name}");
    }
}
