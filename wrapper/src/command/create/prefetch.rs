//! Files to be fetched before anything asks for them, as spans of the layers that hold them.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::Digest;
use soci_index::{PrefetchSpan, PrefetchSpans};
use thiserror::Error;
use ztoc::{UncompressedOffset, Ztoc};

/// Larger lists of paths than this are not read, bytes.
const MAX_LIST: u64 = 16 << 20;

/// The list of paths cannot be used.
#[derive(Debug, Error)]
pub(super) enum PathsError {
    #[error("cannot read prefetch files from {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is larger than {MAX_LIST} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not a JSON array of paths", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
}

/// Where the files are.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order of the layers.
    pub(super) spans: Vec<(Digest, PrefetchSpans)>,
    pub(super) missing: Vec<String>,
}

/// The paths of the command line and of the file, cleaned: absolute ones lose their slash, as names in a layer have none.
pub(super) fn paths(given: &[String], file: Option<&Path>) -> Result<Vec<String>, PathsError> {
    let mut paths = given.to_vec();
    if let Some(path) = file {
        let read = |source| PathsError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_LIST {
            return Err(PathsError::TooLarge { path: path.to_owned() });
        }
        let bytes = std::fs::read(path).map_err(read)?;
        let listed: Vec<String> = serde_json::from_slice(&bytes)
            .map_err(|source| PathsError::Json { path: path.to_owned(), source })?;
        paths.extend(listed);
    }
    Ok(paths.iter().map(|path| clean(path)).filter(|path| !path.is_empty()).collect())
}

/// Go's `path.Clean("/" + path)` without the leading slash.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Looks each path up in the topmost layer that has it; only the raw names of a layer count, as in upstream.
pub(super) fn find(paths: &[String], layers: &[(&Digest, &Ztoc)]) -> Found {
    let mut spans: Vec<Vec<PrefetchSpan>> = vec![Vec::new(); layers.len()];
    let mut missing = Vec::new();
    for path in paths {
        let found = layers.iter().zip(&mut spans).rev().find_map(|((_, ztoc), spans)| {
            let entry = ztoc.entries.iter().find(|entry| entry.name == path.as_bytes())?;
            Some((ztoc, entry, spans))
        });
        let Some((ztoc, entry, spans)) = found else {
            missing.push(path.clone());
            continue;
        };
        // The end is exclusive in upstream's arithmetic too, which may take one span more than needed.
        let end = UncompressedOffset(entry.data_offset.0.saturating_add(entry.size));
        spans.push(PrefetchSpan {
            start_span: ztoc.spans.at(entry.data_offset).0,
            end_span: ztoc.spans.at(end).0,
            priority: 0,
        });
    }
    let spans = layers
        .iter()
        .zip(spans)
        .filter_map(|((layer, _), spans)| Some(((*layer).clone(), PrefetchSpans::merged(spans).ok()?)))
        .collect();
    Found { spans, missing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn paths_are_cleaned() {
        for (path, cleaned) in
            [("/a/b", "a/b"), ("a//./b/", "a/b"), ("../a", "a"), ("/a/../b", "b"), ("/", ""), ("", "")]
        {
            assert_eq!(clean(path), cleaned, "{path}");
        }
    }

    #[test]
    fn the_file_is_an_array() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(br#"["/x", "y/"]"#).unwrap();
        assert_eq!(paths(&["/z".into()], Some(file.path())).unwrap(), ["z", "x", "y"]);
        file.write_all(b"!").unwrap();
        assert!(matches!(paths(&[], Some(file.path())), Err(PathsError::Json { .. })));
    }
}
