//! Ranges as tests want them.

use bytes::Bytes;
use futures_util::TryStreamExt;
use oci_registry::{Client, RegistryError, Repository};
use oci_spec::image::Digest;

/// A range as a whole, with the patience of a caller: a passing failure is tried again three times.
pub(crate) async fn range(
    client: &Client,
    repository: &Repository,
    digest: &Digest,
    range: std::ops::Range<u64>,
) -> Result<Bytes, RegistryError> {
    let mut left = 3;
    loop {
        let got = async {
            let pieces: Vec<Bytes> =
                client.blob_range(repository, digest, range.clone()).await?.try_collect().await?;
            Ok(Bytes::from(pieces.concat()))
        };
        match got.await {
            Err(error) if RegistryError::is_transient(&error) && left > 0 => left -= 1,
            got => return got,
        }
    }
}
