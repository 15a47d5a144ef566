//! Blobs as streams.

use crate::error::RegistryError;
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A blob on its way. Its last item is an error where length or digest are not the descriptor's, so what was read may be
/// used only after the stream ended without one.
pub struct BlobStream {
    pub(crate) size: u64,
    pub(crate) inner: BoxStream<'static, Result<Bytes, RegistryError>>,
}

impl BlobStream {
    /// Number of bytes to come in all.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.poll_next_unpin(cx)
    }
}

/// A part of a blob on its way: exactly its bytes, or an error. Nothing is tried again, and nothing but their number is checked. One that is not read
/// holds its connection.
pub struct RangeStream {
    pub(crate) size: u64,
    pub(crate) inner: BoxStream<'static, Result<Bytes, RegistryError>>,
}

impl Stream for RangeStream {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.poll_next_unpin(cx)
    }
}

impl fmt::Debug for RangeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeStream").field("size", &self.size).finish_non_exhaustive()
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream").field("size", &self.size).finish_non_exhaustive()
    }
}
