//! Where a layer's compressed bytes come from.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use ztoc::CompressedOffset;

/// Bytes on their way; ends after the last, or with an error.
pub type ByteStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// Ranged reads of one layer blob: a registry, a mirror, containerd's content store.
///
/// The bytes are not trusted: each span is compared with its digest before anything of it is used.
/// The engine bounds how long it waits for the stream and drops it when nobody needs it any more. It may leave a stream alone for a while in
/// favour of another.
pub trait BlobSource: fmt::Debug + Send + Sync {
    /// Reads the bytes of `range`, in pieces of any size; fewer count as a failed read, and more are not looked at. A failure is not retried here: the engine does
    /// that, and knows best when.
    fn read(&self, range: Range<CompressedOffset>) -> ByteStream;

    /// Whom the bytes are asked of. Sources with the same answer share one bound of connections, and one is slowed down for all.
    fn host(&self) -> Arc<str>;
}

/// Why a source could not deliver.
#[derive(Clone)]
pub struct SourceError {
    kind: Kind,
    error: Arc<dyn Error + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Transient,
    Busy(Option<Duration>),
    Permanent,
}

impl SourceError {
    /// A failure that another try may not meet: the engine goes on trying until the readers' deadline.
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: Kind::Transient, error: Arc::from(error.into()) }
    }

    /// The host asks for fewer requests, and for none before so much time has passed, if it says so. Transient.
    pub fn busy(error: impl Into<Box<dyn Error + Send + Sync>>, retry_after: Option<Duration>) -> Self {
        Self { kind: Kind::Busy(retry_after), error: Arc::from(error.into()) }
    }

    /// A failure that another try of this source would meet too (gone, forbidden): the other sources are asked, then the readers get it.
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: Kind::Permanent, error: Arc::from(error.into()) }
    }

    /// Whether another try may succeed.
    pub fn is_transient(&self) -> bool {
        self.kind != Kind::Permanent
    }

    /// Whether the host asks for fewer requests, and how long it wants none at all.
    pub(crate) fn busy_for(&self) -> Option<Option<Duration>> {
        match self.kind {
            Kind::Busy(retry_after) => Some(retry_after),
            Kind::Transient | Kind::Permanent => None,
        }
    }
}

// === impl SourceError ===

impl fmt::Debug for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceError").field("kind", &self.kind).field("error", &self.error).finish()
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl Error for SourceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}
