//! `soci rebuild-db`: upstream keeps records of artifacts in a database; here they are labels on the content, and this sets them anew.

use std::collections::HashMap;

use bytes::Bytes;
use jiff::Timestamp;
use oci_registry::platform::Platform;
use oci_spec::image::Digest;
use soci_index::{
    ANNOTATION_INDEX_DIGEST, ANNOTATION_LAYER_DIGEST, ANNOTATION_SPAN_SIZE, MAX_INDEX_SIZE, SociIndex,
    Version,
};
use soci_store::labels::{self, Labels};
use soci_store::{Artifacts, Containerd, ContentInfo, IndexTarget};

use crate::context::Context;
use crate::error::{Error, one_line};
use crate::image::{Config, Document};
use crate::pull::under_lease;
use crate::terminal::Progress;

/// Larger configs than this are not read, bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// Arguments of `soci rebuild-db`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci rebuild-db")]
pub(crate) struct Args {}

/// Runs `soci rebuild-db`.
pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), Error> {
    under_lease(context, |containerd| {
        let work = async move {
            let progress = Progress::new();
            let work = progress.work("reading the content store");
            let found = scan(&containerd).await?;
            drop(work);
            for index in &found.indices {
                if let Err(error) = record(&containerd, &found, index).await {
                    progress.notice(&format!("index {} is left out: {}", index.digest, one_line(&error)));
                }
            }
            Ok(())
        };
        (work, async || ())
    })
    .await
}

/// What is in the content store.
#[derive(Debug, Default)]
struct Found {
    indices: Vec<FoundIndex>,
    /// From v2 indices to the manifests that name them.
    named_by: HashMap<Digest, Digest>,
}

#[derive(Debug)]
struct FoundIndex {
    digest: Digest,
    bytes: Bytes,
    index: SociIndex,
    created_at: Timestamp,
}

/// Reads everything that is small enough to be a manifest; what goes meanwhile, or is none, is passed over.
async fn scan(containerd: &Containerd) -> Result<Found, Error> {
    let content = containerd.content();
    let mut found = Found::default();
    for info in content.list(&[]).await? {
        if info.size > MAX_INDEX_SIZE as u64 {
            continue;
        }
        match content.read_range(&info.digest, 0..info.size.min(1)).await {
            Ok(first) if *first == *b"{" => {}
            _ => continue,
        }
        let Ok(bytes) = content.read_all(&info.digest, MAX_INDEX_SIZE as u64).await else { continue };
        if let Ok(index) = SociIndex::parse(&bytes) {
            let created_at = created_at(&info);
            found.indices.push(FoundIndex { digest: info.digest, bytes, index, created_at });
        } else if let Ok(Document::Manifest(manifest)) = Document::parse(&info.digest, &bytes)
            && let Some(index) =
                manifest.annotation(ANNOTATION_INDEX_DIGEST).and_then(soci_store::parse_digest)
        {
            found.named_by.insert(index, info.digest);
        }
    }
    Ok(found)
}

/// The time that an earlier record has, else the one of its arrival.
fn created_at(info: &ContentInfo) -> Timestamp {
    let recorded = info.labels.get(labels::INDEX_CREATED_AT).and_then(|text| text.parse().ok());
    recorded.or(info.created_at).unwrap_or(Timestamp::UNIX_EPOCH)
}

async fn record(containerd: &Containerd, found: &Found, index: &FoundIndex) -> Result<(), Error> {
    let no_image = || Error::Usage("the image that it is for is not here".to_owned());
    let image = match index.index.version() {
        Version::V1 => index.index.subject().map(|subject| subject.digest().clone()),
        Version::V2 => found.named_by.get(&index.digest).cloned(),
    };
    let image_digest = image.ok_or_else(no_image)?;
    let content = containerd.content();
    if content.info(&image_digest).await?.is_none() {
        return Err(no_image());
    }
    for blob in index.index.blobs() {
        let annotation =
            |key: &str| blob.annotations().as_ref().and_then(|all| all.get(key)).map(String::as_str);
        let Some(layer) = annotation(ANNOTATION_LAYER_DIGEST).and_then(soci_store::parse_digest) else {
            continue;
        };
        let labels = if blob.media_type().as_ref() == soci_index::PREFETCH_MEDIA_TYPE {
            Labels::from([(labels::PREFETCH_LAYER_DIGEST.to_owned(), layer.to_string())])
        } else {
            Artifacts::ztoc_labels(
                &layer,
                annotation(ANNOTATION_SPAN_SIZE).and_then(|size| size.parse().ok()),
            )
        };
        match content.set_labels(blob.digest(), labels).await {
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
    }
    let platform = platform(containerd, &image_digest).await?.to_string();
    let target = IndexTarget { image_digest, platform, created_at: index.created_at };
    containerd.artifacts().store_index(None, index.bytes.clone(), &target).await?;
    Ok(())
}

async fn platform(containerd: &Containerd, image: &Digest) -> Result<Platform, Error> {
    let content = containerd.content();
    let bytes = content.read_all(image, MAX_CONFIG).await?;
    let Document::Manifest(manifest) = Document::parse(image, &bytes).map_err(Error::command)? else {
        return Err(Error::Usage("what it is for is no image".to_owned()));
    };
    let digest = manifest.config.digest();
    let bytes = content.read_all(digest, MAX_CONFIG).await?;
    Ok(Config::parse(digest, &bytes).map_err(Error::command)?.platform())
}
