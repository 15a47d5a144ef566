//! stub
use crate::{Compression, EntryKind, TarError, UncompressedOffset, ZinfoError, Ztoc};
use thiserror::Error;

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
    /// The layer is no gzip, is damaged, or has something else behind its last member.
    #[error("layer is no valid gzip stream: {reason} at byte {offset}")]
    Gzip {
        /// Where, in the blob.
        offset: u64,
        /// What zlib says.
        reason: &'static str,
    },
    /// The blob ends inside a gzip member.
    #[error("layer ends inside a gzip member, after {0} bytes")]
    Truncated(u64),
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

/// Builds the zTOC of a layer whose bytes are pushed in.
#[derive(Debug)]
pub struct Builder {}

impl Builder {
    /// Begins a layer.
    ///
    /// # Errors
    ///
    /// When the span size cannot be used.
    pub fn new(_compression: Compression, _options: BuildOptions) -> Result<Self, BuildError> {
        Err(BuildError::Failed)
    }

    /// Takes the next bytes of the blob, any number of them.
    ///
    /// # Errors
    ///
    /// When the layer is damaged or cannot have a zTOC; nothing more can be written then.
    pub fn write(&mut self, _bytes: &[u8]) -> Result<(), BuildError> {
        Err(BuildError::Failed)
    }

    /// The blob ends here.
    ///
    /// # Errors
    ///
    /// When it should not.
    pub fn finish(self) -> Result<Built, BuildError> {
        Err(BuildError::Failed)
    }
}
