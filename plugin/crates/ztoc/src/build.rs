//! Building a zTOC: a layer's bytes are pushed in, in one pass.

mod digests;
mod gzip;
mod inflate;
mod members;
mod plain;

use std::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::encode::DIGEST_LEN;
use crate::zinfo::Zinfo;
use crate::{
    Compression, Entry, EntryKind, SpanDigest, Spans, TarError, UncompressedOffset, ZinfoError, Ztoc,
};

use self::gzip::GzipEngine;
use self::plain::PlainEngine;

/// The only version there has been.
const VERSION: &[u8] = b"0.9";

/// The largest zTOC that is built, in bytes: more than 30000 spans or millions of files. A flatbuffer ends at 2 GiB.
const MAX_ZTOC_LEN: usize = 1 << 30;

/// Span size by default, in uncompressed bytes: 4 MiB, as upstream.
pub const DEFAULT_SPAN_SIZE: u64 = 4 << 20;

/// What the Go CLI writes as build tool since 0.10, and so do we: the name is part of the digest.
pub const BUILD_TOOL: &str = "AWS SOCI CLI v0.2";

/// What a zTOC is built with.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Span size in uncompressed bytes, at most `i64::MAX`. In gzip a threshold: a span ends with the first block that exceeds it, and 0
    /// makes a span of every block. For a plain tar the exact size, which must not be 0.
    pub span_size: u64,
    /// Free text, recorded as it is.
    pub build_tool: String,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { span_size: DEFAULT_SPAN_SIZE, build_tool: BUILD_TOOL.to_owned() }
    }
}

/// Why a layer is left without a zTOC although its tar is sound: every zTOC of it would be unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unindexable {
    /// A sparse file, in any of GNU's formats: its data are not where offset and size say.
    #[error("a sparse file")]
    Sparse,
    /// A member without data whose size field is not zero, a hard link most likely. Upstream refuses the whole zTOC when it loads it.
    #[error("a {} with a size", .0.as_str())]
    SizeWithoutBody(EntryKind),
    /// A plain tar of no bytes has no spans.
    #[error("nothing in it")]
    Empty,
}

/// Why no zTOC was built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The layer is sound but cannot be indexed; it gets no zTOC and is pulled as a whole.
    #[error("layer cannot be indexed: it has {reason} at {offset}")]
    Unindexable {
        /// Where the member's data would begin.
        offset: UncompressedOffset,
        /// What stands in the way.
        reason: Unindexable,
    },
    /// A member of a type that no TOC can have. Upstream fails the whole image.
    #[error("unsupported tar entry of type {typeflag:#04x} at {offset}")]
    UnsupportedEntry {
        /// The type flag: `g`, `7`, …
        typeflag: u8,
        /// Where its header begins.
        offset: UncompressedOffset,
    },
    /// The layer is no tar.
    #[error("layer is no valid tar")]
    Tar(#[source] TarError),
    /// The gzip stream is damaged.
    #[error("gzip stream is damaged near byte {offset}")]
    Gzip {
        /// Where, in the blob.
        offset: u64,
    },
    /// There is no gzip member where one must begin: the layer is no gzip, or has something else behind its last member.
    #[error("no gzip member near byte {offset}")]
    NotGzip {
        /// Where, in the blob.
        offset: u64,
    },
    /// The blob ends inside a gzip member.
    #[error("layer ends inside a gzip member, after {len} bytes")]
    Truncated {
        /// Its length.
        len: u64,
    },
    /// The span size is more than the wire can hold, or zero for a plain tar.
    #[error("span size {0} cannot be used")]
    SpanSize(u64),
    /// The zTOC would exceed what a flatbuffer can hold.
    #[error("zTOC would exceed {limit} bytes")]
    TooLarge {
        /// The most there may be.
        limit: usize,
    },
    /// The span table cannot be made.
    #[error("span table cannot be made")]
    Zinfo(#[from] ZinfoError),
    /// There is no memory for the decoder.
    #[error("no memory for the decoder")]
    OutOfMemory,
    /// An earlier write has failed.
    #[error("an earlier write has failed")]
    Failed,
}

/// What a layer yields.
#[derive(Clone, Debug)]
pub struct Built {
    /// Its zTOC.
    pub ztoc: Ztoc,
    /// SHA-256 of the blob.
    pub layer_digest: [u8; 32],
    /// SHA-256 of the whole uncompressed stream, padding included.
    pub diff_id: [u8; 32],
}

/// Builds the zTOC of a layer whose bytes are pushed in. It keeps the TOC, the checkpoints and about 1 MiB of output.
pub struct Builder {
    engine: Engine,
    build_tool: String,
    layer_digest: Sha256,
    compressed_size: u64,
    has_failed: bool,
}

enum Engine {
    Gzip(Box<GzipEngine>),
    Plain(Box<PlainEngine>),
}

/// What an engine has found out.
struct Scanned {
    entries: Vec<Entry>,
    uncompressed_size: u64,
    zinfo: Zinfo,
    digests: Vec<SpanDigest>,
    /// `None` where it is the layer digest.
    diff_id: Option<[u8; 32]>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("compressed_size", &self.compressed_size).finish_non_exhaustive()
    }
}

impl Builder {
    /// Begins a layer.
    ///
    /// # Errors
    ///
    /// When the span size cannot be used.
    pub fn new(compression: Compression, options: BuildOptions) -> Result<Self, BuildError> {
        let BuildOptions { span_size, build_tool } = options;
        if i64::try_from(span_size).is_err() || (span_size == 0 && compression == Compression::Uncompressed) {
            return Err(BuildError::SpanSize(span_size));
        }
        let engine = match compression {
            Compression::Gzip => Engine::Gzip(Box::new(GzipEngine::new(span_size)?)),
            Compression::Uncompressed => Engine::Plain(Box::new(PlainEngine::new(span_size))),
        };
        Ok(Self { engine, build_tool, layer_digest: Sha256::new(), compressed_size: 0, has_failed: false })
    }

    /// Takes the next bytes of the blob, any number of them.
    ///
    /// # Errors
    ///
    /// When the layer is damaged or cannot have a zTOC; nothing more can be written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        if self.has_failed {
            return Err(BuildError::Failed);
        }
        let result = self.push(bytes);
        self.has_failed = result.is_err();
        result
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.layer_digest.update(bytes);
        self.compressed_size = self.compressed_size.saturating_add(bytes.len() as u64);
        let encoded_len = match &mut self.engine {
            Engine::Gzip(engine) => {
                engine.write(bytes)?;
                engine.encoded_len()
            }
            Engine::Plain(engine) => {
                engine.write(bytes)?;
                engine.encoded_len()
            }
        };
        if encoded_len > MAX_ZTOC_LEN {
            return Err(BuildError::TooLarge { limit: MAX_ZTOC_LEN });
        }
        Ok(())
    }

    /// The blob ends here.
    ///
    /// # Errors
    ///
    /// When it should not, or a write has failed.
    pub fn finish(self) -> Result<Built, BuildError> {
        if self.has_failed {
            return Err(BuildError::Failed);
        }
        let layer_digest: [u8; 32] = self.layer_digest.finalize().into();
        let Scanned { entries, uncompressed_size, zinfo, digests, diff_id } = match self.engine {
            Engine::Gzip(engine) => engine.finish()?,
            Engine::Plain(engine) => engine.finish()?,
        };
        let spans = Spans::new(zinfo, self.compressed_size, uncompressed_size, digests)?;
        let ztoc = Ztoc {
            version: VERSION.to_vec(),
            build_tool: self.build_tool.into_bytes(),
            compressed_size: self.compressed_size,
            uncompressed_size,
            entries,
            spans,
        };
        Ok(Built { ztoc, layer_digest, diff_id: diff_id.unwrap_or(layer_digest) })
    }
}

/// What the digests of so many spans take in the zTOC, at most.
fn digests_len(spans: usize) -> usize {
    spans.saturating_mul(DIGEST_LEN)
}
