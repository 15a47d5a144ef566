//! Layers for tests, and random numbers that can be repeated.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use lazy_layer::LayerKey;
use sha2::{Digest as _, Sha256};
use ztoc::{BuildOptions, Builder, Compression, Ztoc};

/// SplitMix64: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed of this run, printed so that the run can be repeated (`SOCI_TEST_SEED`).
    pub fn seeded(test: &str) -> Self {
        let seed =
            std::env::var("SOCI_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
                now.as_nanos() as u64
            });
        println!("{test}: SOCI_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Bytes that compress to about a half.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| b'a' + (self.next() % 16) as u8).collect()
    }
}

/// How a tar becomes a blob.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Gzip,
    /// Members of about this many bytes of tar.
    Members(usize),
    Plain,
}

/// A layer with everything that a test wants to compare.
pub struct Made {
    pub blob: Bytes,
    pub ztoc: Ztoc,
    pub ztoc_bytes: Vec<u8>,
    pub tar: Vec<u8>,
    /// Regular files: path and content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Made {
    /// A plain layer of files that fill a span each, with their headers.
    pub fn file_per_span(seed: u64, files: u64, span: u64) -> Self {
        let mut random = Random::new(seed);
        let mut tar = tar::Builder::new(Vec::new());
        let contents = (0..files).map(|number| (format!("{number}"), random.bytes(span as usize - 512)));
        let files: Vec<_> = contents.collect();
        for (name, content) in &files {
            append(&mut tar, name, 0o644, content);
        }
        Self::of_tar(tar.into_inner().unwrap(), files, Shape::Plain, span)
    }

    /// A layer of random files and one of everything else.
    pub fn random(seed: u64, shape: Shape, files: u64, span_size: u64) -> Self {
        let mut random = Random::new(seed);
        let mut contents = Vec::new();
        let mut tar = tar::Builder::new(Vec::new());
        for number in 0..files {
            let size = match number % 5 {
                0 => 0,
                1 => random.below(700),
                2 => 512 * random.below(40),
                _ => random.below(150_000),
            };
            let name = match number % 7 {
                3 => format!("d{}/{}/file-{number}", number % 3, "long-name-".repeat(15)),
                _ => format!("d{}/file-{number}", number % 3),
            };
            let content = random.bytes(size as usize);
            if number % 4 == 1 {
                let value = vec![b'v'; 3 + random.below(900) as usize];
                tar.append_pax_extensions([("SCHILY.xattr.user.note", value.as_slice())]).unwrap();
            }
            append(&mut tar, &name, 0o644 + ((number % 2) as u32) * 0o4111, &content);
            contents.push((name, content));
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        link.set_mode(0o777);
        tar.append_link(&mut link, "link", "d0/file-0").unwrap();
        if let Some((target, content)) = contents.iter().find(|(_, content)| content.len() > 1000).cloned() {
            let mut hard = tar::Header::new_gnu();
            hard.set_entry_type(tar::EntryType::Link);
            hard.set_size(0);
            tar.append_link(&mut hard, "hard", &target).unwrap();
            contents.push(("hard".into(), content));
        }
        Self::of_tar(tar.into_inner().unwrap(), contents, shape, span_size)
    }

    pub fn of_tar(tar: Vec<u8>, files: Vec<(String, Vec<u8>)>, shape: Shape, span_size: u64) -> Self {
        let blob = match shape {
            Shape::Plain => tar.clone(),
            Shape::Gzip => gzip(&tar),
            Shape::Members(size) => tar.chunks(size).flat_map(gzip).collect(),
        };
        let compression = if shape == Shape::Plain { Compression::Uncompressed } else { Compression::Gzip };
        let mut builder =
            Builder::new(compression, BuildOptions { span_size, ..BuildOptions::default() }).unwrap();
        builder.write(&blob).unwrap();
        let ztoc = builder.finish().unwrap().ztoc;
        Self { blob: blob.into(), ztoc_bytes: ztoc.encode(), ztoc, tar, files }
    }

    pub fn key(&self) -> LayerKey {
        LayerKey { layer: digest(&self.blob), ztoc: digest(&self.ztoc_bytes) }
    }

    /// The same layer with another zTOC.
    pub fn with_ztoc(&self, change: impl FnOnce(&mut Ztoc)) -> Self {
        let mut ztoc = self.ztoc.clone();
        change(&mut ztoc);
        Self {
            blob: self.blob.clone(),
            ztoc_bytes: ztoc.encode(),
            ztoc,
            tar: self.tar.clone(),
            files: self.files.clone(),
        }
    }
}

pub fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(17);
    header.set_mtime(1_600_000_000);
    tar.append_data(&mut header, name, content).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn digest(bytes: &[u8]) -> oci_spec::image::Digest {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().unwrap()
}
