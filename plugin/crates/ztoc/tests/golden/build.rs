//! What we build is what the Go tools built.

use std::io::Write as _;

use flate2::Compression as Level;
use flate2::write::{GzEncoder, ZlibEncoder};
use ztoc::{BuildError, BuildOptions, Builder, Built, Compression, EntryKind, Unindexable, Ztoc};

use crate::corpus::{self, Golden, Layer, Random};

/// Builds in pushes of random sizes.
pub(crate) fn build(
    compression: Compression,
    blob: &[u8],
    span_size: u64,
    build_tool: &str,
    mut push_size: impl FnMut() -> usize,
) -> Result<Built, BuildError> {
    let mut builder =
        Builder::new(compression, BuildOptions { span_size, build_tool: build_tool.to_owned() })?;
    let mut rest = blob;
    while !rest.is_empty() {
        let (bytes, after) = rest.split_at(push_size().min(rest.len()));
        builder.write(bytes)?;
        rest = after;
    }
    builder.finish()
}

fn build_whole(compression: Compression, blob: &[u8]) -> Result<Built, BuildError> {
    build(compression, blob, 65536, "test", || usize::MAX)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_ztoc_is_built_byte_for_byte() {
    let mut random = Random::new("every_ztoc_is_built_byte_for_byte");
    let mut built_ones = 0;
    for golden in Golden::all() {
        // 0.4.1 stops at the end of the first member.
        if golden.layer == "multi-member" && golden.file.starts_with("ztoc/0.4.1") {
            continue;
        }
        let layer = Layer::open(&golden.layer);
        for round in 0..3 {
            let mut push_size = || if round == 0 { usize::MAX } else { random.push_size() };
            let result =
                build(layer.compression, &layer.blob, golden.span_size, &golden.build_tool, &mut push_size);
            if golden.is_unindexable() {
                assert!(matches!(result, Err(BuildError::Unindexable { .. })), "{}: {result:?}", golden.file);
                continue;
            }
            let built = result.unwrap_or_else(|error| panic!("{}: {error}", golden.file));
            assert!(built.ztoc.encode() == golden.bytes, "{} differs", golden.file);
            assert_eq!(built.ztoc, Ztoc::decode(&golden.bytes).unwrap());
            let hex = |digest: [u8; 32]| ztoc::SpanDigest(digest).to_string();
            assert_eq!(hex(built.layer_digest), layer.digest, "{}", layer.name);
            assert_eq!(hex(built.diff_id), corpus::sha256(&layer.tar()), "{}", layer.name);
            built_ones += 1;
        }
    }
    assert!(built_ones >= 3 * 28, "only {built_ones} were built");
}

#[test]
fn byte_by_byte_is_the_same() {
    for name in ["whiteouts", "multi-member", "mix-smallblocks", "mix-stored", "plain"] {
        let golden =
            Golden::all().into_iter().find(|golden| golden.file == format!("ztoc/head/{name}.s65536.ztoc"));
        let golden = golden.unwrap();
        let layer = Layer::open(name);
        let built =
            build(layer.compression, &layer.blob, golden.span_size, &golden.build_tool, || 1).unwrap();
        assert!(built.ztoc.encode() == golden.bytes, "{name} differs");
    }
}

#[test]
fn layers_that_no_ztoc_can_have_say_why() {
    let result = |name: &str| {
        let layer = Layer::open(name);
        build_whole(layer.compression, &layer.blob)
    };
    assert!(matches!(result("bad-global-pax"), Err(BuildError::UnsupportedEntry { typeflag: b'g', .. })));
    assert!(matches!(result("bad-contiguous"), Err(BuildError::UnsupportedEntry { typeflag: b'7', .. })));
    assert!(matches!(result("zstd"), Err(BuildError::NotGzip { .. })));
    for sparse in ["sparse-oldgnu", "sparse-pax00", "sparse-pax01"] {
        let result = result(sparse);
        assert!(
            matches!(result, Err(BuildError::Unindexable { reason: Unindexable::Sparse, .. })),
            "{sparse}: {result:?}"
        );
    }
    let reason = Unindexable::SizeWithoutBody(EntryKind::Hardlink);
    assert!(
        matches!(result("hardlink-size"), Err(BuildError::Unindexable { reason: found, .. }) if found == reason)
    );
}

#[test]
fn what_is_no_gzip_is_refused() {
    let tar = Layer::open("whiteouts").tar();
    let layer = gzip(&tar);
    let gzip_error = |blob: &[u8]| build_whole(Compression::Gzip, blob).unwrap_err();
    assert!(matches!(gzip_error(b""), BuildError::Truncated { len: 0 }));
    assert!(matches!(gzip_error(&tar), BuildError::NotGzip { .. }));
    let mut zlib = ZlibEncoder::new(Vec::new(), Level::default());
    zlib.write_all(&tar).unwrap();
    assert!(matches!(gzip_error(&zlib.finish().unwrap()), BuildError::NotGzip { .. }));
    for len in 0..layer.len() {
        assert!(matches!(gzip_error(&layer[..len]), BuildError::Truncated { .. }), "{len} bytes");
    }
    for garbage in [&b"x"[..], b"garbage behind the last member", &[0; 512]] {
        let error = gzip_error(&[&layer, garbage].concat());
        assert!(matches!(error, BuildError::NotGzip { .. } | BuildError::Truncated { .. }), "{error:?}");
    }
    // A wrong checksum, and a wrong length.
    for at in [8, 4, 1] {
        let mut damaged = layer.clone();
        let at = damaged.len() - at;
        damaged[at] ^= 1;
        assert!(matches!(gzip_error(&damaged), BuildError::Gzip { .. }));
    }
    // Two members are fine.
    let (first, second) = tar.split_at(1000);
    let members = [gzip(first), gzip(second)].concat();
    assert_eq!(build_whole(Compression::Gzip, &members).unwrap().ztoc.entries.len(), 8);
}

#[test]
fn a_failed_builder_stays_failed() {
    let mut builder = Builder::new(Compression::Gzip, BuildOptions::default()).unwrap();
    builder.write(b"no gzip, as everybody can see").unwrap_err();
    assert!(matches!(builder.write(b"more"), Err(BuildError::Failed)));
    assert!(matches!(builder.finish(), Err(BuildError::Failed)));
}

#[test]
fn impossible_span_sizes_are_refused() {
    let new = |compression, span_size| {
        Builder::new(compression, BuildOptions { span_size, ..BuildOptions::default() }).map(drop)
    };
    new(Compression::Gzip, 0).unwrap();
    new(Compression::Gzip, i64::MAX as u64).unwrap();
    assert!(matches!(new(Compression::Gzip, 1 << 63), Err(BuildError::SpanSize(_))));
    assert!(matches!(new(Compression::Uncompressed, 0), Err(BuildError::SpanSize(0))));
    let empty = build_whole(Compression::Uncompressed, b"");
    assert!(matches!(empty, Err(BuildError::Unindexable { reason: Unindexable::Empty, .. })));
}

#[test]
fn any_span_size_of_any_layer_can_be_read_back() {
    let mut random = Random::new("any_span_size_of_any_layer_can_be_read_back");
    let mut seen = Vec::new();
    for golden in Golden::all() {
        if golden.is_unindexable() || seen.contains(&golden.layer) {
            continue;
        }
        seen.push(golden.layer.clone());
        let layer = Layer::open(&golden.layer);
        let tar = layer.tar();
        let plain = layer.compression == Compression::Uncompressed;
        for span_size in [0, 1, 511, 4096, 1 + random.below(300_000) as u64, 4 << 20] {
            if plain && span_size < 500 {
                continue;
            }
            let built =
                build(layer.compression, &layer.blob, span_size, "test", || random.push_size()).unwrap();
            let bytes = built.ztoc.encode();
            assert_eq!(Ztoc::decode(&bytes).unwrap(), built.ztoc);
            let spans = corpus::decode_spans(&built.ztoc, &layer.blob);
            for (span, data) in built.ztoc.spans.iter().zip(&spans) {
                let start = span.uncompressed.start.0 as usize;
                assert!(tar[start..start + data.len()] == data[..], "span {} of {}", span.id, layer.name);
            }
            for (entry, expected) in built.ztoc.entries.iter().zip(tar_contents(&tar)) {
                assert!(corpus::content(&built.ztoc, &spans, entry) == expected);
            }
        }
    }
}

/// The contents of all members, by another reader.
fn tar_contents(tar: &[u8]) -> Vec<Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry.unwrap(), &mut content).unwrap();
            content
        })
        .collect()
}
