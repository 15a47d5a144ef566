//! Where a layer's compressed bytes come from.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use ztoc::CompressedOffset;

/// Ranged reads of one layer blob: a registry, a mirror, containerd's content store.
///
/// The bytes are not trusted: each span is compared with its digest before anything of it is used.
/// The engine bounds how long it waits for the future and drops it when nobody needs it any more.
pub trait BlobSource: fmt::Debug + Send + Sync {
    /// Reads exactly the bytes of `range`; fewer or more count as a failed read.
    fn read(&self, range: Range<CompressedOffset>) -> BoxFuture<'static, Result<Bytes, SourceError>>;
}

/// Why a source could not deliver.
#[derive(Clone)]
pub struct SourceError {
    transient: bool,
    error: Arc<dyn Error + Send + Sync>,
}

impl SourceError {
    /// A failure that another try may not meet: the engine goes on trying until the readers' deadline.
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { transient: true, error: Arc::from(error.into()) }
    }

    /// A failure that another try of this source would meet too (gone, forbidden): the other sources are asked, then the readers get it.
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { transient: false, error: Arc::from(error.into()) }
    }

    /// Whether another try may succeed.
    pub fn is_transient(&self) -> bool {
        self.transient
    }
}

// === impl SourceError ===

impl fmt::Debug for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceError").field("transient", &self.transient).field("error", &self.error).finish()
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
