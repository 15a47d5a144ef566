//! What is kept of a snapshot.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use lazy_layer::LayerKey;
use serde::{Deserialize, Serialize};

/// Labels, sorted.
pub type Labels = BTreeMap<String, String>;

/// Number of a snapshot, never used twice; names its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(pub u64);

/// What a snapshot is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only, of one committed snapshot.
    View,
    /// Writable; becomes a committed one or goes.
    Active,
    /// Done: a parent for others.
    Committed,
}

/// Nanoseconds since 1970, which reach to 2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub i64);

/// What a snapshot occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, directories and other inodes.
    pub inodes: u64,
}

/// What a lazily loaded layer is mounted from: enough to mount it again with nothing but the daemon's own root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazyRecord {
    /// Image reference in full.
    pub image: String,
    /// Digest of the image's manifest.
    pub manifest: String,
    /// Digest of the compressed layer.
    pub layer: String,
    /// Digest of the zTOC that its layer file was made from.
    pub ztoc: String,
    /// containerd namespace that asked for it.
    pub namespace: String,
    /// Where the layer file is another image's, which was complete: digest of the zTOC in this image's index, from which it can be made should that be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_ztoc: Option<String>,
}

#[cfg(test)]
impl LazyRecord {
    /// One in which everything has the same name.
    pub(crate) fn named(text: &str) -> LazyRecord {
        let text = || text.to_owned();
        LazyRecord {
            image: text(),
            manifest: text(),
            layer: text(),
            ztoc: text(),
            namespace: text(),
            own_ztoc: None,
        }
    }
}

/// One snapshot. Stored as JSON under its key, so that a newer daemon can add fields and a person can read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub id: Id,
    /// Key of its parent; empty without one.
    pub parent: String,
    /// Its kind.
    pub kind: Kind,
    /// When it was made.
    pub created: Moment,
    /// When its labels last changed.
    pub updated: Moment,
    /// As given, and ours.
    pub labels: Labels,
    /// Of a committed snapshot; zero for others, and for lazily loaded layers.
    #[serde(default)]
    pub usage: Usage,
    /// Of a lazily loaded layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy: Option<LazyRecord>,
    /// Of a committed snapshot: the key that it had before. Empty where a version that did not keep it committed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub committed_from: String,
}

/// A record and the key it is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The key: `<namespace>/<number>/<name>` as containerd makes it.
    pub key: String,
    /// The record.
    pub record: Record,
}

// === impl LazyRecord ===

impl LazyRecord {
    /// The same for a layer that is mounted from this file.
    #[must_use]
    pub fn with_file(self, file: &LayerKey) -> LazyRecord {
        let ztoc = file.ztoc.to_string();
        let own_ztoc = (ztoc != self.ztoc).then(|| self.ztoc.clone());
        LazyRecord { ztoc, own_ztoc, ..self }
    }
}

// === impl Moment ===

impl Moment {
    /// This one.
    #[must_use]
    pub fn now() -> Moment {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Moment(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Whole seconds and the nanoseconds after them, as a protobuf timestamp has them.
    #[must_use]
    pub fn parts(self) -> (i64, i32) {
        let nanos = self.0.rem_euclid(1_000_000_000);
        (self.0.div_euclid(1_000_000_000), i32::try_from(nanos).unwrap_or(0))
    }
}

// === impl Kind ===

impl Kind {
    /// As filters spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }
    }
}
