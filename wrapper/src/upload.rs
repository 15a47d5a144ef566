//! From containerd's content store to a registry.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_registry::{BlobUpload, UploadBody};
use oci_spec::image::Descriptor;
use soci_store::ContentStore;

use crate::image::short;
use crate::terminal::Progress;

/// A blob that is read when the registry turns out to lack it, and again from its beginning where a try fails. What was pulled lazily need not
/// be here to be pushed back.
pub(crate) fn upload(content: &ContentStore, blob: &Descriptor, progress: &Progress) -> BlobUpload {
    let (content, digest, size) = (content.clone(), blob.digest().clone(), blob.size());
    let body = UploadBody::stream(move || {
        let (content, digest) = (content.clone(), digest.clone());
        futures_util::stream::once(async move {
            let stream = content.read(&digest, 0..size).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(stream.map_err(std::io::Error::other))
        })
        .try_flatten()
        .boxed()
    });
    let transfer = progress.transfer(&short(blob), blob.size());
    BlobUpload { body, progress: Some(Arc::new(move |bytes| transfer.shift(bytes))) }
}
