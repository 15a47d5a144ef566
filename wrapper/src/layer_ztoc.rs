//! The zTOC of one layer, built in one pass over its blob in containerd's content store.

use bytes::Bytes;
use futures_util::StreamExt as _;
use oci_spec::image::{Descriptor, Digest};
use soci_index::{LayerCompression, digest_from};
use soci_store::{Containerd, StoreError};
use thiserror::Error;
use tokio::sync::mpsc;
use ztoc::{BuildError, BuildOptions, Builder, Built, Compression, Ztoc};

use crate::image::Layer;
use crate::terminal::Transfer;

/// Pieces of a blob (containerd sends at most 4 MiB each) that wait for the builder.
const QUEUE: usize = 4;

/// Larger zTOCs than this are not read back, bytes.
pub(crate) const MAX_ZTOC: u64 = 1 << 30;

/// No zTOC can be built of a layer.
#[derive(Debug, Error)]
pub(crate) enum LayerZtocError {
    #[error("layer {digest}")]
    Build { digest: Digest, source: BuildError },
    #[error("layer {digest} is not what its digest says: its content is {found}")]
    Blob { digest: Digest, found: Digest },
    #[error("layer {digest} unpacks to {found}, the image config says {expected}")]
    DiffId { digest: Digest, found: Digest, expected: Digest },
    #[error("layer {digest}: the builder ended early")]
    Ended { digest: Digest },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LayerZtocError {
    /// Why the layer is sound but cannot be indexed, if that is it.
    pub(crate) fn unindexable(&self) -> Option<&BuildError> {
        match self {
            Self::Build { source: source @ BuildError::Unindexable { .. }, .. } => Some(source),
            _ => None,
        }
    }
}

/// Reads the layer once and builds its zTOC on a blocking thread; the bytes must match the blob's digest and the config's diff ID.
///
/// # Errors
/// The layer is not there, is damaged, or cannot have a zTOC.
pub(crate) async fn build(
    containerd: &Containerd,
    layer: &Layer,
    compression: LayerCompression,
    span_size: u64,
    transfer: Transfer,
) -> Result<Ztoc, LayerZtocError> {
    let digest = layer.blob.digest();
    let compression = match compression {
        LayerCompression::Gzip => Compression::Gzip,
        LayerCompression::Tar => Compression::Uncompressed,
    };
    let options = BuildOptions { span_size, ..BuildOptions::default() };
    let (sender, mut pieces) = mpsc::channel::<Bytes>(QUEUE);
    let building = tokio::task::spawn_blocking(move || -> Result<Built, BuildError> {
        let mut builder = Builder::new(compression, options)?;
        while let Some(piece) = pieces.blocking_recv() {
            builder.write(&piece)?;
            transfer.advance(piece.len() as u64);
        }
        builder.finish()
    });
    let read = feed(containerd, &layer.blob, sender).await;
    let built = building.await.map_err(|_| LayerZtocError::Ended { digest: digest.clone() })?;
    // What ended the reading may be that the builder had enough: then its reason counts.
    let built = match (built, read) {
        (Err(source), Ok(())) => return Err(LayerZtocError::Build { digest: digest.clone(), source }),
        (_, Err(error)) => return Err(error.into()),
        (Ok(built), Ok(())) => built,
    };
    let found = digest_from(built.layer_digest);
    if found != *digest {
        return Err(LayerZtocError::Blob { digest: digest.clone(), found });
    }
    let found = digest_from(built.diff_id);
    if found != layer.diff_id {
        let expected = layer.diff_id.clone();
        return Err(LayerZtocError::DiffId { digest: digest.clone(), found, expected });
    }
    Ok(built.ztoc)
}

/// Hands the blob to the builder, until its end or until the builder has gone.
async fn feed(
    containerd: &Containerd,
    blob: &Descriptor,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), StoreError> {
    let stream = containerd.content().read(blob.digest(), 0..blob.size()).await?;
    let mut stream = std::pin::pin!(stream);
    while let Some(piece) = stream.next().await {
        if sender.send(piece?).await.is_err() {
            break;
        }
    }
    Ok(())
}
