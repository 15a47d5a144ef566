//! A layer's bytes, read from its registry.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use lazy_layer::{BlobSource, ByteStream, SourceError};
use oci_registry::{RegistryError, Repository};
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
    fn read(&self, range: Range<CompressedOffset>) -> ByteStream {
        let this = self.clone();
        let opened = async move {
            // Asked for each time: credentials and the way of talking may have been handed over anew.
            let client = this.registries.client(&this.repository).map_err(SourceError::permanent)?;
            let range = range.start.0..range.end.0;
            let stream = client.blob_range(&this.repository, &this.digest, range).await.map_err(failed)?;
            Ok(stream.map_err(failed))
        };
        stream::once(opened).try_flatten().boxed()
    }

    fn host(&self) -> Arc<str> {
        self.repository.host().into()
    }
}

fn failed(error: RegistryError) -> SourceError {
    if error.is_overload() {
        let retry_after = error.retry_after();
        SourceError::busy(error, retry_after)
    } else if error.is_transient() {
        SourceError::transient(error)
    } else {
        SourceError::permanent(error)
    }
}
