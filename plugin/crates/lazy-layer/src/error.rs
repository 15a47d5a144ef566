//! What can go wrong, one type for each operation.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use erofs_image::Nid;

use crate::key::{LayerKey, UnsupportedDigest};
use crate::source::SourceError;

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub operation: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Adds operation and path to an I/O error; for `map_err`.
    pub(crate) fn of(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { operation, path, source }
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The root could not be made or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// No thread for the inflate pool.
    #[error("start an inflate thread")]
    Thread {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why a layer that is on disk could not be opened. Files that are merely damaged are no error: they are thrown away and the layer counts as absent.
#[derive(Debug, thiserror::Error)]
pub enum OpenLayerError {
    /// The key does not name SHA-256 digests.
    #[error(transparent)]
    Key(#[from] UnsupportedDigest),
    /// The system refused to read or remove a file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Written by a version of this program that this one does not know.
    #[error("{key} is on disk in format {found}, known are formats up to {known}")]
    Format {
        /// The layer.
        key: LayerKey,
        /// The format number found.
        found: u64,
        /// The newest format this program reads.
        known: u64,
    },
    /// Somebody else worked on the same layer all the time.
    #[error("{key} was in use for {waited:?}")]
    Busy {
        /// The layer.
        key: LayerKey,
        /// How long this call waited.
        waited: Duration,
    },
}

/// Why a zTOC could not become a layer file. The layer can still be pulled whole.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The key does not name SHA-256 digests.
    #[error(transparent)]
    Key(#[from] UnsupportedDigest),
    /// The bytes are not those of the key's zTOC.
    #[error("ztoc {expected} has digest sha256:{actual}")]
    Digest {
        /// The digest in the key.
        expected: String,
        /// The digest of the bytes, hexadecimal.
        actual: String,
    },
    /// The bytes are no zTOC.
    #[error("decode the ztoc")]
    Decode {
        /// What is wrong with them.
        #[source]
        source: ztoc::DecodeError,
    },
    /// Entries overlap or have no room for their tar header.
    #[error("locate the tar headers of the ztoc")]
    Toc {
        /// Which entry.
        #[source]
        source: ztoc::InvalidToc,
    },
    /// The numbers of a span contradict each other, or are more than this program accepts.
    #[error("span {span} of the ztoc: {reason}")]
    Span {
        /// The span's number.
        span: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// An entry's numbers contradict the layer, or cannot be shown to the kernel.
    #[error("entry {name:?} of the ztoc: {reason}")]
    Entry {
        /// The entry's name, lossy.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The entries do not form a tree.
    #[error("place {name:?} in the tree")]
    Tree {
        /// The entry's name, lossy.
        name: String,
        /// Why not.
        #[source]
        source: erofs_image::TreeError,
    },
    /// The tree does not fit into an EROFS image.
    #[error("write the layer's metadata")]
    Image {
        /// Why not.
        #[source]
        source: erofs_image::WriteError,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// What was just written could not be opened.
    #[error("open the new layer")]
    Open {
        /// Why not.
        #[source]
        source: Box<OpenLayerError>,
    },
    /// What was just written does not read back.
    #[error("the new layer of {key} does not read back")]
    ReadBack {
        /// The layer.
        key: LayerKey,
    },
}

/// Why a read was not answered with bytes. Cheap to clone: every reader that waited for a span gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The inode is no regular file.
    #[error("nid {} is no regular file", nid.0)]
    NotAFile {
        /// The inode.
        nid: Nid,
    },
    /// The metadata region is damaged, or the nid is none of this layer's.
    #[error("read inode {}", nid.0)]
    Metadata {
        /// The inode.
        nid: Nid,
        /// What the image reader said.
        #[source]
        source: Arc<erofs_image::ReadError>,
    },
    /// The data did not come in time.
    #[error("no data within {after:?}")]
    Deadline {
        /// The deadline, [`crate::StoreOptions::read_deadline`].
        after: Duration,
    },
    /// No source delivered the span, and trying again is of no use.
    #[error("fetch span {span}")]
    Source {
        /// The span's number.
        span: u32,
        /// What the last source said.
        #[source]
        source: SourceError,
    },
    /// Nothing is attached that could deliver the span.
    #[error("no source for span {span}")]
    NoSource {
        /// The span's number.
        span: u32,
    },
    /// The span's compressed bytes do not have the zTOC's digest, in every attempt.
    #[error("span {span} has a wrong digest")]
    Digest {
        /// The span's number.
        span: u32,
    },
    /// The span's bytes have the right digest and yet do not inflate to what the zTOC promises.
    #[error("inflate span {span}")]
    Inflate {
        /// The span's number.
        span: u32,
        /// What the decoder said.
        #[source]
        source: Arc<ztoc::ExtractError>,
    },
    /// The file's tar header in the layer is not what the zTOC says.
    #[error("the tar header of nid {} differs from the ztoc", nid.0)]
    Header {
        /// The inode.
        nid: Nid,
    },
    /// The layer is complete, and is not what the image says.
    #[error("the layer is not what its image says")]
    Refused,
    /// The layer's local files could not be read or written.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Too many reads wait for the same span.
    #[error("too many reads wait for span {span}")]
    Busy {
        /// The span's number.
        span: u32,
    },
    /// The engine was shut down, or lost the work, before the data came.
    #[error("the fetch of span {span} was given up")]
    GivenUp {
        /// The span's number.
        span: u32,
    },
}

impl ReadError {
    /// Adds what was tried to an I/O error; for `map_err`.
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source: Arc::new(source) }
    }
}
