//! zTOC and zinfo: decode, encode, build from a layer stream, extract a span.
//!
//! A zTOC makes one gzip (or plain tar) layer readable at any place: it lists the tar's members ([`Entry`]) and cuts the blob into
//! [`Spans`] that can each be fetched, checked against a digest and decoded without what comes before.
//!
//! * [`Ztoc::decode`] and [`Ztoc::encode`]: the wire format, byte for byte what the Go tools write; [`ZtocView`]: it is read where it is;
//! * [`Builder`]: push a layer's bytes in, get its zTOC, digest and diff ID out, in one pass;
//! * [`SpanInflater`], [`extract_gzip_into`], [`extract_gzip`]: one span's tar bytes from its compressed bytes, in safe code;
//! * [`TarScanner`]: the one reader of tar headers, with the rules of Go's archive/tar;
//! * [`header_ranges`], [`Fingerprint`], [`verify_header`]: that what the TOC says about a file is what the layer says.
//!
//! Nothing here touches a file, a socket or a clock. Every input may be hostile: it ends in an error, never in a panic, and takes
//! memory in proportion to its own size. The one module with unsafe code is `build::inflate`.

mod build;
mod decode;
mod encode;
mod entry;
mod extract;
mod fingerprint;
mod gzip;
mod header;
mod offset;
mod spans;
mod tar;
mod time;
mod toc;
mod zinfo;

pub use build::{BUILD_TOOL, BuildError, BuildOptions, Builder, Built, DEFAULT_SPAN_SIZE, Unindexable};
pub use decode::{DecodeError, Entries, ZtocView};
pub use entry::{Entry, EntryKind, PaxRecord};
pub use extract::{CheckpointRef, ExtractError, Pushed, SpanInflater, Want, extract_gzip, extract_gzip_into};
pub use fingerprint::Fingerprint;
pub use header::{HeaderMismatch, HeaderRange, InvalidToc, Place, header_ranges, verify_header};
pub use offset::{CompressedOffset, SpanDigest, SpanId, UncompressedOffset};
pub use spans::{Checkpoint, Compression, Span, Spans};
pub use tar::{ScannedEntry, TarError, TarScanner};
pub use toc::Ztoc;
pub use zinfo::{WINDOW_LEN, ZinfoError};

/// Layers smaller than this, in compressed bytes, get no zTOC by default: 10 MiB, as upstream.
pub const DEFAULT_MIN_LAYER_SIZE: u64 = 10 << 20;
