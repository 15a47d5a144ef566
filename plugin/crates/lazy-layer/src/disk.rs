//! What a layer looks like on disk.
//!
//! One directory for each pair of layer and zTOC, `<root>/layers/<layer hex>-<ztoc hex>/`, made under a temporary name and renamed when
//! everything in it has reached the disk. All integers are little-endian; every checksum is XXH3-128 (it finds accidents of our own disk;
//! what comes from outside is checked with SHA-256).
//!
//! | file | written | content |
//! |---|---|---|
//! | `manifest.json` | once | format number, key, sizes, checksums of the next three: [`manifest`] |
//! | `layer.erofs` | metadata once, then span by span | EROFS metadata, and from `tar_start` (a multiple of 4096) the tar's own bytes, sparse |
//! | `spans` | once | ranges, digests and checkpoint bits of all spans: [`spans`] |
//! | `headers` | once | where each tar header is, and its fingerprint: [`headers`] |
//! | `windows` | once | 32 KiB of inflate window for each span; checked one by one against `spans` |
//! | `checked` | when complete | what all of it turned out to be: [`checked`] |
//! | `states` | all the time | which spans are here, with the checksum of their bytes: [`states`] |
//!
//! A file that is wrong in any way makes the directory worthless and it is removed; only `checked` and `states` can be lost alone: spans whose record is
//! intact are then compared with their checksum before use, the others are fetched again.
//!
//! Inode numbers that the kernel knows are those of `layer.erofs`. So a program that knows a newer format must go on reading the older ones.

pub(crate) mod boot;
pub(crate) mod bytes;
pub(crate) mod checked;
pub(crate) mod checksum;
pub(crate) mod directory;
pub(crate) mod headers;
pub(crate) mod manifest;
pub(crate) mod spans;
pub(crate) mod states;
pub(crate) mod sync;

/// File names in a layer's directory.
pub(crate) mod name {
    pub(crate) const MANIFEST: &str = "manifest.json";
    pub(crate) const LAYER: &str = "layer.erofs";
    pub(crate) const SPANS: &str = "spans";
    pub(crate) const HEADERS: &str = "headers";
    pub(crate) const WINDOWS: &str = "windows";
    pub(crate) const CHECKED: &str = "checked";
    pub(crate) const STATES: &str = "states";
}

/// Size of one inflate window in `windows`.
pub(crate) const WINDOW: usize = 32768;

/// A file of ours that cannot be what we wrote.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub(crate) struct Damaged {
    pub(crate) file: &'static str,
    pub(crate) reason: &'static str,
}
