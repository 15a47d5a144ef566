//! Small blobs of an image: containerd's content store first, then the registry.

use bytes::Bytes;
use oci_registry::{RegistryError, Repository};
use oci_spec::image::Digest;
use soci_store::{Containerd, StoreError};

use super::registries::Registries;

/// Where a blob was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// containerd has it.
    Containerd,
    /// It had to be fetched.
    Registry,
}

/// What kind of blob, which is where a registry keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Image manifests and SOCI indices.
    Manifest,
    /// A zTOC. Whoever makes a layer file of it compares its digest, beside other work; nobody waits for that here.
    Ztoc,
    /// Everything else.
    Blob,
}

/// A blob could not be had from anywhere.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The registry's answer.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no client to ask it with.
    #[error(transparent)]
    Client(#[from] oci_registry::ClientError),
}

// === impl ArtifactError ===

impl ArtifactError {
    /// Whether the registry says that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, ArtifactError::Registry(error) if error.is_not_found())
    }
}

/// A blob of at most `limit` bytes, its digest checked, unless it is a zTOC from containerd.
pub(super) async fn fetch(
    containerd: Option<&Containerd>,
    registries: &Registries,
    repository: &Repository,
    digest: &Digest,
    what: What,
    limit: u64,
) -> Result<(Bytes, Origin), ArtifactError> {
    if let Some(containerd) = containerd {
        let content = containerd.content();
        let read = match what {
            What::Ztoc => content.read_unchecked(digest, limit).await,
            What::Manifest | What::Blob => content.read_all(digest, limit).await,
        };
        match read {
            Ok(bytes) => return Ok((bytes, Origin::Containerd)),
            Err(StoreError::NotFound { .. }) => {}
            // The registry has it too; what is wrong with containerd shows elsewhere.
            Err(error) => {
                tracing::debug!(error = crate::telemetry::chain(&error), %digest, "content store gave no answer");
            }
        }
    }
    let client = registries.client(repository)?;
    let bytes = match what {
        What::Manifest => client.manifest(&repository.with_digest(digest.clone())).await?.bytes,
        What::Ztoc | What::Blob => client.blob_bytes(repository, digest, limit).await?,
    };
    Ok((bytes, Origin::Registry))
}
