//! What is to be pushed.

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use std::fmt;
use std::io;
use std::sync::Arc;

/// Opens a blob's bytes from the start, as often as it is called (a push that is retried starts again).
type Open = Arc<dyn Fn() -> BoxStream<'static, io::Result<Bytes>> + Send + Sync>;

/// The content of a blob to push.
#[derive(Clone)]
pub struct UploadBody(Source);

#[derive(Clone)]
enum Source {
    Bytes(Bytes),
    Stream(Open),
}

/// Called with the number of bytes that were handed to the connection since the last call. A retry starts again: it is
/// then called with what was sent before, as a negative number.
pub type Progress = Arc<dyn Fn(i64) + Send + Sync>;

/// A blob to push.
#[derive(Clone)]
pub struct BlobUpload {
    /// The content.
    pub body: UploadBody,
    /// Told about progress.
    pub progress: Option<Progress>,
}

/// What a push had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// It was sent.
    Pushed,
    /// The repository had it already.
    Exists,
}

impl UploadBody {
    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self(Source::Bytes(bytes.into()))
    }

    /// A stream that can be opened again, since a retry (or a renewed token) starts from the first byte.
    pub fn stream(open: impl Fn() -> BoxStream<'static, io::Result<Bytes>> + Send + Sync + 'static) -> Self {
        Self(Source::Stream(Arc::new(open)))
    }

    /// The bytes from the first one on.
    pub(crate) fn open(&self) -> BoxStream<'static, io::Result<Bytes>> {
        match &self.0 {
            Source::Bytes(bytes) => {
                // In pieces, so that progress is seen and a stalled connection is noticed in mid-blob.
                const PIECE: usize = 256 << 10;
                let mut rest = bytes.clone();
                let pieces = std::iter::from_fn(move || {
                    (!rest.is_empty()).then(|| Ok(rest.split_to(rest.len().min(PIECE))))
                });
                futures_util::stream::iter(pieces).boxed()
            }
            Source::Stream(open) => open(),
        }
    }
}

impl fmt::Debug for UploadBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Bytes(bytes) => write!(f, "UploadBody({} bytes)", bytes.len()),
            Source::Stream(_) => f.write_str("UploadBody(stream)"),
        }
    }
}

impl From<UploadBody> for BlobUpload {
    fn from(body: UploadBody) -> Self {
        Self { body, progress: None }
    }
}

impl From<Bytes> for BlobUpload {
    fn from(bytes: Bytes) -> Self {
        UploadBody::bytes(bytes).into()
    }
}

impl From<Vec<u8>> for BlobUpload {
    fn from(bytes: Vec<u8>) -> Self {
        UploadBody::bytes(bytes).into()
    }
}

impl fmt::Debug for BlobUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobUpload").field("body", &self.body).finish_non_exhaustive()
    }
}
