//! Bringing a whole layer here: for layers that an image's index leaves out, when whoever pulls relies on us.
//!
//! A task downloads, a thread of its own inflates, checks and writes. Nothing counts until both digests are right: the blob's, and that of the
//! tar in it against the image's configuration.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_registry::{Reference, Repository};
use oci_spec::image::{Descriptor, Digest, ImageConfiguration, ImageManifest};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

mod apply;
mod root;
mod stream;

use crate::failpoint;
use crate::resolve::{ArtifactError, Resolver};
use crate::snapshot::Below;
use crate::snapshot::labels::LayerRequest;
use crate::telemetry::chain;
use stream::{Decompressed, Hashed, Piece, Pieces};

/// How to unpack.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Layers at the same time.
    pub at_once: usize,
    /// Pieces of the blob between the task and the thread, at least one: some hundred KiB bridge a pause of either.
    pub pieces: usize,
    /// How long it may go without a byte.
    pub stall: Duration,
    /// Which attribute marks an opaque directory.
    pub userxattr: bool,
}

/// Unpacks layers.
#[derive(Debug)]
pub struct Unpacker {
    options: Options,
    resolver: Arc<Resolver>,
    slots: Semaphore,
}

/// Why a layer could not be unpacked here. Its directory is empty again.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The image's name.
    #[error("image reference")]
    Reference(#[from] oci_registry::ReferenceError),
    /// Manifest or configuration cannot be had.
    #[error("fetch the image's {0}")]
    Artifact(&'static str, #[source] Box<ArtifactError>),
    /// They are there but make no sense.
    #[error("the image's {0} cannot be understood")]
    Malformed(&'static str),
    /// The manifest has no such layer.
    #[error("layer {0} is not in the image's manifest")]
    NoSuchLayer(Digest),
    /// The blob cannot be had.
    #[error("fetch layer {0}: {1}")]
    Fetch(Digest, String),
    /// Too many others, for too long.
    #[error("no slot to unpack layer {0} in time")]
    Busy(Digest),
    /// The tar is damaged, or the disk is full.
    #[error("unpack layer {layer}")]
    Apply {
        /// Which.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// It is not the blob, or not the tar, that it should be.
    #[error("{what} of layer {layer} is {actual}, not {expected}")]
    Digest {
        /// Digest or diff ID.
        what: &'static str,
        /// Which layer.
        layer: Box<Digest>,
        /// As it should be.
        expected: String,
        /// As it is.
        actual: String,
    },
    /// A fault of ours.
    #[error("unpacking layer {0} panicked")]
    Panicked(Digest),
    /// The daemon ends.
    #[error("the daemon is stopping")]
    Stopping,
}

// === impl Unpacker ===

impl Unpacker {
    /// Over the stores of `resolver`.
    #[must_use]
    pub fn new(options: Options, resolver: Arc<Resolver>) -> Unpacker {
        Unpacker { options, resolver, slots: Semaphore::new(options.at_once.max(1)) }
    }

    /// Unpacks a layer into the empty directory `at`.
    ///
    /// # Errors
    /// [`UnpackError`]; what was written is removed again.
    pub async fn unpack(
        &self,
        namespace: Option<&str>,
        request: &LayerRequest,
        lower: Vec<Below>,
        at: PathBuf,
    ) -> Result<(), UnpackError> {
        let layer = &request.layer;
        let slot = tokio::time::timeout(self.options.stall, self.slots.acquire()).await;
        let _slot = slot.map_err(|_| UnpackError::Busy(layer.clone()))?.map_err(|_| UnpackError::Stopping)?;
        let repository = Reference::parse(&request.image)?.repository().clone();
        let found = tokio::time::timeout(self.options.stall, self.layer(namespace, &repository, request));
        let (descriptor, diff_id) = found.await.map_err(|_| {
            UnpackError::Fetch(
                layer.clone(),
                format!("no manifest and configuration within {:?}", self.options.stall),
            )
        })??;
        let blob = self.blob(namespace, &repository, &descriptor).await?;

        let (sender, receiver) = mpsc::channel(self.options.pieces);
        let pump = tokio::spawn(pump(blob, sender, self.options.stall));
        let userxattr = self.options.userxattr;
        let (digest, target) = (layer.clone(), at.clone());
        let working = tokio::task::spawn_blocking(move || {
            write(receiver, &digest, &diff_id, &target, &lower, userxattr)
        });
        let result = all_or_nothing(working, layer, at).await;
        pump.abort();
        result
    }

    /// The layer's descriptor in the manifest, and the digest that its tar must have.
    async fn layer(
        &self,
        namespace: Option<&str>,
        repository: &Repository,
        request: &LayerRequest,
    ) -> Result<(Descriptor, String), UnpackError> {
        let manifest = self.resolver.manifest(namespace, repository, &request.manifest).await;
        let manifest = manifest.map_err(|error| UnpackError::Artifact("manifest", Box::new(error)))?;
        let manifest: ImageManifest =
            serde_json::from_slice(&manifest).map_err(|_| UnpackError::Malformed("manifest"))?;
        let config = self.resolver.blob(namespace, repository, manifest.config().digest()).await;
        let config = config.map_err(|error| UnpackError::Artifact("configuration", Box::new(error)))?;
        let config: ImageConfiguration =
            serde_json::from_slice(&config).map_err(|_| UnpackError::Malformed("configuration"))?;
        let position = manifest.layers().iter().position(|layer| *layer.digest() == request.layer);
        let position = position.ok_or_else(|| UnpackError::NoSuchLayer(request.layer.clone()))?;
        let descriptor =
            manifest.layers().get(position).cloned().ok_or(UnpackError::Malformed("manifest"))?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers().len() {
            return Err(UnpackError::Malformed("configuration"));
        }
        let diff_id = diff_ids.get(position).cloned().ok_or(UnpackError::Malformed("configuration"))?;
        Ok((descriptor, diff_id))
    }

    async fn blob(
        &self,
        namespace: Option<&str>,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, UnpackError> {
        let digest = descriptor.digest();
        if let Some(containerd) = self.resolver.containerd(namespace)
            && let Ok(Some(_)) = containerd.content().info(digest).await
            && let Ok(stream) = containerd.content().read(digest, 0..0).await
        {
            return Ok(stream.map_err(|error| chain(&error)).boxed());
        }
        let failed = |text| UnpackError::Fetch(digest.clone(), text);
        let client = self.resolver.registries().client(repository).map_err(|error| failed(chain(&error)))?;
        let blob = tokio::time::timeout(self.options.stall, client.blob(repository, descriptor)).await;
        let blob = blob.map_err(|_| failed(format!("no answer within {:?}", self.options.stall)))?;
        Ok(blob.map_err(|error| failed(chain(&error)))?.map_err(|error| chain(&error)).boxed())
    }
}

/// Nothing stays in `at` of a layer that could not be written there.
async fn all_or_nothing(
    working: JoinHandle<Result<(), UnpackError>>,
    layer: &Digest,
    at: PathBuf,
) -> Result<(), UnpackError> {
    let result = working.await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(_) => Err(UnpackError::Panicked(layer.clone())),
        Err(_) => Err(UnpackError::Stopping),
    });
    if result.is_err() {
        let emptied = tokio::task::spawn_blocking(move || root::empty_at(&at)).await;
        if let Ok(Err(error)) = emptied {
            tracing::warn!(error = %error, layerDigest = %layer, "a half unpacked layer could not be removed");
        }
    }
    result
}

/// Hands the blob on, as long as it goes on: neither the sender of it nor who writes it may take longer than `stall` for a piece.
async fn pump(
    mut blob: BoxStream<'static, Result<Bytes, String>>,
    sender: mpsc::Sender<Piece>,
    stall: Duration,
) {
    loop {
        let piece = match tokio::time::timeout(stall, blob.next()).await {
            Ok(Some(Ok(bytes))) => Piece::Bytes(bytes),
            Ok(Some(Err(reason))) => Piece::Failed(reason),
            Ok(None) => Piece::End,
            Err(_) => Piece::Failed(format!("no byte for {stall:?}")),
        };
        let last = !matches!(piece, Piece::Bytes(_));
        match tokio::time::timeout(stall, sender.send(piece)).await {
            Ok(Ok(())) if !last => {}
            // The receiver takes a channel that closes as a failure.
            _ => return,
        }
    }
}

fn write(
    pieces: mpsc::Receiver<Piece>,
    layer: &Digest,
    diff_id: &str,
    at: &std::path::Path,
    lower: &[Below],
    userxattr: bool,
) -> Result<(), UnpackError> {
    let failed = |source| UnpackError::Apply { layer: layer.clone(), source };
    let blob = Hashed::new(Pieces::new(pieces));
    let mut tar = Hashed::new(Decompressed::new(blob).map_err(failed)?);
    apply::apply(&mut tar, at, lower, userxattr).map_err(failed)?;
    failpoint::pass("prepare.applied");
    // What stands behind the end of the tar belongs to both digests.
    io::copy(&mut tar, &mut io::sink()).map_err(failed)?;
    let actual = tar.digest();
    let mut blob = tar.inner().into_blob();
    io::copy(&mut blob.by_ref(), &mut io::sink()).map_err(failed)?;
    let check = |what, expected: String, actual: String| {
        if expected == actual {
            return Ok(());
        }
        Err(UnpackError::Digest { what, layer: Box::new(layer.clone()), expected, actual })
    };
    check("the digest", layer.to_string(), blob.digest())?;
    check("the diff ID", diff_id.to_owned(), actual)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn nothing_stays_of_a_layer_that_could_not_be_written() {
        let layer = soci_index::digest_of(b"layer");
        let dir = tempfile::tempdir().unwrap();
        let write = |result: fn() -> Result<(), UnpackError>| {
            let at = dir.path().to_owned();
            let half = at.join("half");
            let working = tokio::task::spawn_blocking(move || {
                fs::write(half, "written").unwrap();
                result()
            });
            all_or_nothing(working, &layer, at)
        };
        let left = || fs::read_dir(dir.path()).unwrap().count();
        let panicked = write(|| panic!("as a fault of ours would")).await.unwrap_err();
        assert!(matches!(panicked, UnpackError::Panicked(_)), "{panicked}");
        assert_eq!(left(), 0);
        write(|| Err(UnpackError::Malformed("manifest"))).await.unwrap_err();
        assert_eq!(left(), 0);
        write(|| Ok(())).await.unwrap();
        assert_eq!(left(), 1);
    }
}
