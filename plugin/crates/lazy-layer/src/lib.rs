//! One layer of a container image, readable before it is here.
//!
//! A [`LayerStore`] keeps a directory for every pair of layer and zTOC. The layer file in it is an EROFS image: metadata made from the
//! zTOC, then the layer's uncompressed tar bytes, which arrive span by span when somebody reads them. The crate knows neither FUSE nor gRPC.
//!
//! # A read
//!
//! [`Layer::read`] turns inode and offset into a range of the tar, and that into spans. [`Layer::read_file`] does so for the layer file as a whole, which a
//! kernel can mount.
//! * All here: `pread` into a pooled buffer, and the reply, on the caller's thread. Span and header states are atomics; no lock is
//!   taken and the async runtime is not touched.
//! * Something is missing: the reply joins the waiters of each missing span, and the call returns. The spans, and those that are likely to be read next, are
//!   wished for on the board, which decides what is asked of the [`BlobSource`]s next and what gives way. A transfer hands its bytes
//!   to the spans that they belong to; the pool's threads hash, inflate and write them as they come. When a span's SHA-256 matched, the
//!   tar headers in it count, it is recorded, and its waiters are answered.
//! * A failure goes to those who wait and is not remembered, but for a short pause before the next try. A deadline ends every wait.
//!
//! What nobody asks for is fetched in the background. What a program needs that starts is fetched ahead of it: [`LayerStore::starts`].
//!
//! # What holds
//!
//! * No byte is served before its whole span matched its digest, and none of a file whose tar header was not compared with the zTOC's entry.
//!   A file whose header differs cannot be read, until another zTOC describes it.
//! * A complete layer is scanned as a whole: its members are those of the zTOC, its SHA-256 is the diff ID that the image gives, or nothing of it is served any more.
//! * A span is recorded after its data, with a checksum; after an unclean boot it is compared with that before use.
//! * An incomplete layer file is never shared between different zTOCs; a complete one only with who knows its diff ID.
//! * Every number of waiters, fetches, bytes and buffers is bounded by [`StoreOptions`].
//!
//! # On disk
//!
//! `<root>/layers/<layer hex>-<ztoc hex>/`, made under a temporary name (`.new-…`), synced and renamed; removed by way of `.old-…`.
//!
//! | file | content |
//! |---|---|
//! | `manifest.json` | format number, key, sizes, checksums of the metadata, `spans` and `headers` |
//! | `layer.erofs` | EROFS metadata, and from a multiple of 4096 the tar's own bytes, sparse |
//! | `spans` | ranges, SHA-256 and checkpoint bits of each span |
//! | `headers` | place and fingerprint of each tar header |
//! | `windows` | 32 KiB of inflate window for each span |
//! | `checked` | what a complete layer turned out to be |
//! | `states` | state and checksum of each span, the boot in which they were written, the mark of an orderly end |
//!
//! The bytes of each are described in the module that reads and writes it, below `disk`. Damage makes the layer absent (it is made
//! anew from the zTOC); in `states` it costs only the spans that it hit, in `checked` one more check. A directory in a newer format is refused and left alone.

mod ahead;
mod aside;
mod backlog;
mod board;
mod budget;
mod buffers;
mod check;
mod demand;
mod disk;
mod elf;
mod engine;
mod error;
mod fill;
mod key;
mod landing;
mod layer;
mod link;
mod mapping;
mod options;
mod pool;
mod python;
mod shelf;
mod source;
mod sources;
mod stack;
mod start;
mod store;
mod toc;
mod transfer;
mod waiting;
mod waits;

pub use error::{CreateError, FileError, OpenError, OpenLayerError, ReadError};
pub use key::{LayerKey, UnsupportedDigest};
pub use layer::{Attachment, Completeness, Layer, LayerStatus, MAX_READ, Reply};
pub use mapping::Mapping;
pub use options::{DropPolicy, FillOptions, StoreOptions};
pub use shelf::Pin;
pub use source::{BlobSource, ByteStream, SourceError};
pub use start::Command;
pub use store::LayerStore;
pub use waits::Waits;
