//! The state file: `/.soci-snapshotter/<layer digest>.json` in the root of every layer, as upstream has it.
//!
//! The directory is not listed in the root, but can be reached by name, unless the layer itself has that name. The file is
//! `{"digest","size","fetchedSize","fetchedPercent"}`, after the first failed read with `"error"` before them. Sizes are uncompressed bytes.
//! It is the one file that changes, so its attributes are never cached, and its time is always now, which makes the kernel drop what it has of the
//! data. Its size must not change between the kernel's question for it and the read, so the text is padded with spaces.

use std::ffi::OsString;
use std::sync::OnceLock;

use lazy_layer::{Layer, LayerStatus};
use serde::Serialize;

/// Name of the directory in the root.
pub(super) const DIRECTORY: &str = ".soci-snapshotter";
/// Name in it of the layer file, which is not listed.
pub(super) const LAYER: &str = "layer.erofs";
/// Size of the file, and once it has an error.
const SIZE: usize = 256;
const SIZE_WITH_ERROR: usize = 1024;
/// Longest error, so that everything fits even if JSON escapes each byte.
const ERROR_MAX: usize = 120;

/// State of one mount that the kernel is not told in any other way.
#[derive(Debug)]
pub(super) struct StateFile {
    name: OsString,
    digest: String,
    error: OnceLock<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    digest: &'a str,
    size: u64,
    fetched_size: u64,
    fetched_percent: f64,
}

impl StateFile {
    pub(super) fn new(layer: &Layer) -> StateFile {
        let digest = layer.key().layer.to_string();
        StateFile { name: format!("{digest}.json").into(), digest, error: OnceLock::new() }
    }

    /// Name in the directory.
    pub(super) fn name(&self) -> &OsString {
        &self.name
    }

    /// Remembers the first error.
    ///
    /// A container can read it, so it is only our own short text: what the network said may name hosts.
    pub(super) fn failed(&self, error: &lazy_layer::ReadError) {
        self.error.get_or_init(|| error.to_string().chars().take(ERROR_MAX).collect());
    }

    pub(super) fn size(&self) -> u64 {
        if self.error.get().is_some() { SIZE_WITH_ERROR as u64 } else { SIZE as u64 }
    }

    pub(super) fn content(&self, status: &LayerStatus) -> Vec<u8> {
        let (size, fetched) = (status.size, status.present.min(status.size));
        let percent = if size == 0 { 100.0 } else { fetched as f64 / size as f64 * 100.0 };
        let error = self.error.get().map(String::as_str);
        let content =
            Content { error, digest: &self.digest, size, fetched_size: fetched, fetched_percent: percent };
        let mut text = serde_json::to_vec(&content).unwrap_or_default();
        text.resize(if error.is_some() { SIZE_WITH_ERROR } else { SIZE } - 1, b' ');
        text.push(b'\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> StateFile {
        let digest = format!("sha256:{}", "a".repeat(64));
        StateFile { name: format!("{digest}.json").into(), digest, error: OnceLock::new() }
    }

    fn status(size: u64, present: u64) -> LayerStatus {
        LayerStatus { size, present, spans: 1, ..LayerStatus::default() }
    }

    #[test]
    fn content_is_json_of_the_announced_size() {
        let state = state();
        for (size, present, percent) in
            [(0, 0, 100.0), (u64::MAX, 1, 0.0), (400, 100, 25.0), (400, 400, 100.0)]
        {
            let content = state.content(&status(size, present));
            assert_eq!(content.len() as u64, state.size());
            let json: serde_json::Value = serde_json::from_slice(&content).unwrap();
            assert_eq!(json["size"], size);
            assert_eq!(json["fetchedSize"], present);
            assert!((json["fetchedPercent"].as_f64().unwrap() - percent).abs() < 1e-9);
            assert!(json.get("error").is_none());
        }
    }

    #[test]
    fn the_first_error_stays() {
        let state = state();
        state.error.set("\u{1}".repeat(ERROR_MAX)).unwrap();
        state.failed(&lazy_layer::ReadError::Digest { span: 7 });
        let content = state.content(&status(u64::MAX, u64::MAX - 1));
        assert_eq!(content.len() as u64, state.size());
        let json: serde_json::Value = serde_json::from_slice(&content).unwrap();
        assert_eq!(json["error"].as_str().unwrap().len(), ERROR_MAX);
    }
}
