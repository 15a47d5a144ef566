//! The golden files, and random numbers.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use ztoc::{Compression, Entry, Want, Ztoc, extract_gzip};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden").join(name)
}

pub(crate) fn bytes(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn json(name: &str) -> Value {
    serde_json::from_slice(&bytes(name)).unwrap()
}

/// One layer of the manifest.
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) compression: Compression,
    pub(crate) blob: Vec<u8>,
    /// `sha256:…`
    pub(crate) digest: String,
}

impl Layer {
    pub(crate) fn open(name: &str) -> Self {
        let manifest = json("manifest.json");
        let layer = &manifest["layers"][name];
        let compression = match layer["kind"].as_str().unwrap() {
            "tar" => Compression::Uncompressed,
            _ => Compression::Gzip,
        };
        let blob = bytes(layer["file"].as_str().unwrap());
        Self {
            name: name.to_owned(),
            compression,
            blob,
            digest: layer["digest"].as_str().unwrap().to_owned(),
        }
    }

    /// The whole uncompressed stream, by another decoder.
    pub(crate) fn tar(&self) -> Vec<u8> {
        match self.compression {
            Compression::Uncompressed => self.blob.clone(),
            Compression::Gzip => gunzip(&self.blob),
        }
    }
}

/// One zTOC of the manifest.
pub(crate) struct Golden {
    pub(crate) file: String,
    pub(crate) layer: String,
    pub(crate) span_size: u64,
    pub(crate) digest: String,
    pub(crate) build_tool: String,
    pub(crate) spans: Vec<[u64; 4]>,
    pub(crate) bytes: Vec<u8>,
}

impl Golden {
    pub(crate) fn all() -> Vec<Self> {
        let manifest = json("manifest.json");
        let ztocs: Vec<Self> = manifest["ztocs"].as_array().unwrap().iter().map(Self::read).collect();
        assert!(ztocs.len() >= 36, "the golden files are not all there");
        ztocs
    }

    fn read(row: &Value) -> Self {
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        let number = |value: &Value| value.as_u64().unwrap();
        let spans = row["spans"].as_array().unwrap();
        Self {
            file: text("file"),
            layer: text("layer"),
            span_size: number(&row["span_size"]),
            digest: text("digest"),
            build_tool: text("build_tool"),
            spans: spans.iter().map(|span| std::array::from_fn(|index| number(&span[index]))).collect(),
            bytes: bytes(row["file"].as_str().unwrap()),
        }
    }

    /// Whether no zTOC of ours exists for this layer.
    pub(crate) fn is_unindexable(&self) -> bool {
        self.layer.starts_with("sparse") || self.layer == "hardlink-size"
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

pub(crate) fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut tar).unwrap();
    tar
}

/// Decodes every span on its own, after checking its digest; `result[i]` begins at span i's uncompressed start.
pub(crate) fn decode_spans(ztoc: &Ztoc, blob: &[u8]) -> Vec<Vec<u8>> {
    ztoc.spans
        .iter()
        .map(|span| {
            let compressed = &blob[span.compressed.start.0 as usize..span.compressed.end.0 as usize];
            assert_eq!(ztoc::SpanDigest::of(compressed), span.digest, "digest of span {}", span.id);
            let len = usize::try_from(span.uncompressed_len()).unwrap();
            match ztoc.spans.checkpoint(span.id) {
                None => compressed[..len].to_vec(),
                Some(checkpoint) => extract_gzip(checkpoint.into(), compressed, Want::Exactly(len)).unwrap(),
            }
        })
        .collect()
}

/// An entry's content, put together from decoded spans.
pub(crate) fn content(ztoc: &Ztoc, spans: &[Vec<u8>], entry: &Entry) -> Vec<u8> {
    let start = entry.data_offset;
    let end = ztoc::UncompressedOffset(start.0 + entry.size);
    let mut content = Vec::new();
    if start == end {
        return content;
    }
    let (first, last) = ztoc.spans.covering(start..end).into_inner();
    for id in first.0..=last.0 {
        let span = ztoc.spans.span(ztoc::SpanId(id)).unwrap();
        let data = &spans[id as usize];
        let from = start.0.saturating_sub(span.uncompressed.start.0) as usize;
        let to = ((end.0 - span.uncompressed.start.0) as usize).min(data.len());
        content.extend_from_slice(data.get(from..to).unwrap_or_default());
    }
    content
}

/// SplitMix64. The seed is printed, and taken from `ZTOC_TEST_SEED` if that is set.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(test: &str) -> Self {
        let seed = match std::env::var("ZTOC_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        };
        println!("{test}: ZTOC_TEST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0..limit
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Mostly small, sometimes large.
    pub(crate) fn push_size(&mut self) -> usize {
        let bits = self.below(18);
        1 + self.below(1 << bits)
    }

    /// Flips bits, overwrites, cuts: one to four wounds.
    pub(crate) fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes[at] = [0, 0xff, 0x7f, 0x80][self.below(4)],
                2 => {
                    let end = (at + 4).min(bytes.len());
                    let value = (self.next() >> self.below(64)) as u32;
                    bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
                }
                _ => bytes[at] ^= 1 << self.below(8),
            }
        }
    }
}
