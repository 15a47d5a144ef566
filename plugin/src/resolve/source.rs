//! A layer's bytes, read from its registry.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lazy_layer::{BlobSource, SourceError};
use oci_registry::Repository;
use oci_spec::image::Digest;
use ztoc::CompressedOffset;

use super::registries::Registries;

/// One blob of one repository.
#[derive(Clone, Debug)]
pub(super) struct RegistryBlob {
    pub(super) registries: Arc<Registries>,
    pub(super) repository: Repository,
    pub(super) digest: Digest,
}

impl BlobSource for RegistryBlob {
    fn read(&self, range: Range<CompressedOffset>) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        let this = self.clone();
        Box::pin(async move {
            // Asked for each time: credentials and the way of talking may have been handed over anew.
            let client = this.registries.client(&this.repository).map_err(SourceError::permanent)?;
            client.blob_range(&this.repository, &this.digest, range.start.0..range.end.0).await.map_err(
                |error| {
                    if error.is_transient() {
                        SourceError::transient(error)
                    } else {
                        SourceError::permanent(error)
                    }
                },
            )
        })
    }
}
