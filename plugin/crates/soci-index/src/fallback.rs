//! Referrers in a registry without the referrers API: an image index under a tag made from the subject's digest
//! (distribution specification 1.1, "Referrers Tag Schema"). A referrers API answers in the same form.

use crate::canonical_json;
use crate::names::INDEX_MEDIA_TYPE;
use crate::wire::WireDescriptor;
use oci_spec::image::{Descriptor, Digest};
use serde_json::{Map, Value};

/// Most entries that are read from one list.
const MAX_ENTRIES: usize = 10_000;

/// The tag that the referrers of `subject` are listed under: `sha256-<hex>`.
pub fn tag(subject: &Digest) -> String {
    // The specification cuts both parts, to 32 and 64 characters; SHA-256 is shorter.
    format!("{}-{}", subject.algorithm(), subject.digest())
}

/// A list of referrers. What others wrote into it is kept as it is, unknown fields too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferrersIndex {
    top: Map<String, Value>,
    entries: Vec<Value>,
}

/// Why bytes are not a list of referrers.
#[derive(Debug, thiserror::Error)]
pub enum ReferrersError {
    /// Not JSON, or not an object.
    #[error("the list of referrers is not JSON")]
    Json(#[source] serde_json::Error),
    /// JSON, but no image index, or one out of all proportion.
    #[error("the list of referrers is not an image index")]
    NotAnIndex,
}

impl ReferrersIndex {
    /// Reads a list.
    ///
    /// # Errors
    /// Where the bytes are no image index; a single bad entry is no error, [`referrers`](Self::referrers) leaves it out.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReferrersError> {
        let mut top: Map<String, Value> = serde_json::from_slice(bytes).map_err(ReferrersError::Json)?;
        let entries = match top.get_mut("manifests").map(Value::take) {
            Some(Value::Array(entries)) if entries.len() <= MAX_ENTRIES => entries,
            Some(Value::Null) => Vec::new(),
            _ => return Err(ReferrersError::NotAnIndex),
        };
        Ok(Self { top, entries })
    }

    /// The referrers whose artifact type is `artifact_type`, in their order.
    pub fn referrers(&self, artifact_type: &str) -> Vec<Descriptor> {
        let entries = self.all().into_iter();
        entries
            .filter(|entry| entry.artifact_type().as_ref().is_some_and(|t| t.as_ref() == artifact_type))
            .collect()
    }

    /// All referrers with a usable descriptor.
    pub fn all(&self) -> Vec<Descriptor> {
        let entries = self.entries.iter();
        let wire = entries.filter_map(|entry| serde_json::from_value::<WireDescriptor>(entry.clone()).ok());
        wire.filter_map(|entry| entry.to_descriptor().ok()).collect()
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a referrer, or replaces the entry with the same digest. Says whether anything changed.
    pub fn put(&mut self, referrer: &Descriptor) -> bool {
        let Ok(new) = serde_json::to_value(WireDescriptor::from(referrer)) else { return false };
        let digest = Value::String(referrer.digest().to_string());
        match self.entries.iter_mut().find(|entry| entry.get("digest") == Some(&digest)) {
            Some(entry) if *entry == new => false,
            Some(entry) => {
                *entry = new;
                true
            }
            None => {
                self.entries.push(new);
                true
            }
        }
    }

    /// The list's bytes: schema version, media type, entries, then whatever else there was.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Map::new();
        out.insert("schemaVersion".to_owned(), Value::from(2));
        out.insert("mediaType".to_owned(), Value::from(INDEX_MEDIA_TYPE));
        if let Some(artifact_type) = self.top.get("artifactType") {
            out.insert("artifactType".to_owned(), artifact_type.clone());
        }
        out.insert("manifests".to_owned(), Value::Array(self.entries.clone()));
        for (key, value) in &self.top {
            if !out.contains_key(key) {
                out.insert(key.clone(), value.clone());
            }
        }
        canonical_json(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest_of;
    use oci_spec::image::MediaType;

    fn referrer(content: &[u8]) -> Descriptor {
        let mut descriptor = Descriptor::new(MediaType::ImageManifest, 7, digest_of(content));
        descriptor.set_artifact_type(Some(MediaType::from(crate::ARTIFACT_TYPE_V1)));
        descriptor
    }

    #[test]
    fn tag_of_a_digest() {
        let digest = digest_of(b"{}");
        assert_eq!(tag(&digest), "sha256-44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
    }

    #[test]
    fn adds_replaces_and_reads_back() {
        let mut index = ReferrersIndex::default();
        assert!(index.put(&referrer(b"a")));
        assert!(!index.put(&referrer(b"a")));
        assert!(index.put(&referrer(b"b")));
        let mut changed = referrer(b"a");
        changed.set_annotations(Some([("k".to_owned(), "v".to_owned())].into()));
        assert!(index.put(&changed));
        let json = index.to_json();
        let again = ReferrersIndex::parse(&json).unwrap();
        assert_eq!(again.referrers(crate::ARTIFACT_TYPE_V1), [changed, referrer(b"b")]);
        assert!(again.referrers(crate::ARTIFACT_TYPE_V2).is_empty());
        assert_eq!(again.to_json(), json);
        assert!(json.starts_with(
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"#
        ));
    }

    #[test]
    fn keeps_what_it_does_not_know() {
        let theirs = br#"{"schemaVersion":2,"manifests":[{"digest":"sha512:x","foo":[1]},17],"annotations":{"a":"b"},"x":{"y":1}}"#;
        let mut index = ReferrersIndex::parse(theirs).unwrap();
        assert!(index.all().is_empty());
        index.put(&referrer(b"a"));
        let text = String::from_utf8(index.to_json()).unwrap();
        assert!(text.contains(r#""manifests":[{"digest":"sha512:x","foo":[1]},17,{"#), "{text}");
        assert!(text.ends_with(r#"],"annotations":{"a":"b"},"x":{"y":1}}"#), "{text}");
    }

    #[test]
    fn refuses_what_is_no_index() {
        for bad in ["", "<html>", "[]", "{}", r#"{"manifests":3}"#, r#"{"schemaVersion":2,"config":{}}"#] {
            assert!(ReferrersIndex::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(ReferrersIndex::parse(br#"{"manifests":null}"#).unwrap().is_empty());
    }
}
