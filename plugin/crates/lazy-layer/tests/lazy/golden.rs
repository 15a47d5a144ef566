//! Layers and zTOCs that the Go tools made, against contents that an independent program found.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use erofs_image::Kind;
use lazy_layer::{BlobSource, LayerKey, ReadError};
use serde_json::Value;

use crate::bed::{Bed, Source, ask};
use crate::making::digest;
use crate::whole::{diff_id_of, settled};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden")
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(golden().join(path)).unwrap()).unwrap()
}

/// A path with its dots and slashes gone, as the tree has it.
fn cleaned(name: &[u8]) -> Vec<Vec<u8>> {
    name.split(|byte| *byte == b'/').filter(|part| !matches!(part, [] | [b'.'])).map(<[u8]>::to_vec).collect()
}

#[test]
fn every_ztoc_gives_the_right_bytes_or_is_refused() {
    let manifest = json("manifest.json");
    let (mut read, mut complete, mut refused, mut failed) = (0, 0, Vec::new(), Vec::new());
    for record in manifest["ztocs"].as_array().unwrap() {
        let file = record["file"].as_str().unwrap();
        let name = record["layer"].as_str().unwrap();
        let blob: Bytes =
            fs::read(golden().join(manifest["layers"][name]["file"].as_str().unwrap())).unwrap().into();
        let ztoc = fs::read(golden().join(file)).unwrap();
        let bed = Bed::new();
        let key = LayerKey { layer: digest(&blob), ztoc: digest(&ztoc) };
        let layer = match bed.store.create_layer(&key, &ztoc) {
            Ok(layer) => layer,
            Err(_) => {
                refused.push(file.to_owned());
                continue;
            }
        };
        let source = Source::new(&blob);
        let _attachment = layer.attach(source as Arc<dyn BlobSource>);
        let listing = json(&format!("files/{name}.json"));
        let entries = listing["entries"].as_array().unwrap();
        for (at, entry) in entries.iter().enumerate() {
            let Some(expected) = entry["sha256"].as_str() else { continue };
            let path = name_of(entry);
            let later = entries[at + 1..].iter().any(|other| cleaned(&name_of(other)) == cleaned(&path));
            let parts = cleaned(&path);
            if later || parts.last().is_some_and(|last| last.starts_with(b".wh.")) {
                continue;
            }
            let image = layer.image();
            let nid = parts.iter().try_fold(image.root(), |at, part| image.lookup(at, part).unwrap());
            let nid =
                nid.unwrap_or_else(|| panic!("{file}: {} is not there", String::from_utf8_lossy(&path)));
            let inode = image.inode(nid).unwrap();
            assert_eq!(inode.kind, Kind::Regular);
            match ask(&layer, nid, 0, u32::try_from(inode.size).unwrap()).wait() {
                Ok(bytes) => {
                    let expected = if expected.starts_with("sha256:") {
                        expected.to_owned()
                    } else {
                        format!("sha256:{expected}")
                    };
                    assert_eq!(
                        digest(&bytes).to_string(),
                        expected,
                        "{file}: {}",
                        String::from_utf8_lossy(&path)
                    );
                    read += 1;
                }
                Err(error) => {
                    let wrong = matches!(error, ReadError::Inflate { .. });
                    assert!(wrong, "{file}: {}: {error:?}", String::from_utf8_lossy(&path));
                    failed.push(file.to_owned());
                }
            }
        }
        assert_eq!(layer.status().headers_refused, 0, "{file}");
        if failed.last().is_none_or(|last| last != file) {
            layer.read_file(0, u32::MAX, Box::new(|_| {}));
            layer.expect(&diff_id_of(&blob));
            assert!(settled(&bed, &layer), "{file}");
            complete += 1;
        }
    }
    println!("{read} files read, refused: {refused:?}, with errors: {failed:?}");
    assert!(read > 300 && complete > 20, "{complete}");
    // What upstream refuses to load, we refuse too.
    assert!(
        refused.iter().all(|file| file.contains("sparse-pax") || file.contains("hardlink-size")),
        "{refused:?}"
    );
    assert!(failed.iter().all(|file| file.contains("0.4.1/multi-member")), "{failed:?}");
}

fn name_of(entry: &Value) -> Vec<u8> {
    match entry["name_hex"].as_str() {
        Some(hex) => {
            let digits =
                hex.bytes().map(|digit| char::from(digit).to_digit(16).unwrap() as u8).collect::<Vec<_>>();
            digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
        }
        None => entry["name"].as_str().unwrap().as_bytes().to_vec(),
    }
}
