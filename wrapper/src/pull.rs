//! From a registry into containerd's content store, under a lease, with the labels that hold an image together.

mod index;
mod lease;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_registry::platform::Platform;
use oci_registry::{BlobStream, Client, FetchedManifest, Reference, RegistryError};
use oci_spec::image::{Descriptor, Digest};
use parking_lot::Mutex;
use soci_store::labels::{self, Labels};
use soci_store::{Containerd, OpenedWriter, StoreError};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::index::{Candidates, FoundIndex, IndexOutcome};
pub(crate) use self::lease::under_lease;
use crate::error::{Error, one_line};
use crate::image::{Config, Document, ImageError, Layer, Manifest, short};
use crate::terminal::Progress;

/// Largest image config that is read, bytes.
const MAX_CONFIG_SIZE: u64 = 16 << 20;
/// Downloads at a time, where the command line does not say.
pub(crate) const DEFAULT_DOWNLOADS: usize = 8;

/// Brings one image reference's content here. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Puller {
    containerd: Containerd,
    client: Client,
    reference: Reference,
    progress: Progress,
    downloads: Arc<Semaphore>,
    /// Blobs that are being written.
    arriving: Arc<Mutex<HashSet<Digest>>>,
}

/// An image for one platform.
#[derive(Debug)]
pub(crate) struct PlatformImage {
    /// The manifest's descriptor.
    pub(crate) descriptor: Descriptor,
    /// The manifest.
    pub(crate) manifest: Manifest,
    /// What the config says it runs on.
    pub(crate) platform: Platform,
    /// Layers, lowest first; empty for what is no image (attestations and other artifacts).
    pub(crate) layers: Vec<Layer>,
    /// The manifest's bytes.
    bytes: Bytes,
    /// The config's bytes.
    config: Bytes,
}

impl Puller {
    /// A puller that writes through `containerd`, which should be under a lease.
    pub(crate) fn new(
        containerd: Containerd,
        client: Client,
        reference: Reference,
        progress: Progress,
        downloads: usize,
    ) -> Puller {
        let downloads = if downloads == 0 { DEFAULT_DOWNLOADS } else { downloads };
        let downloads = Arc::new(Semaphore::new(downloads));
        Puller { containerd, client, reference, progress, downloads, arriving: Arc::default() }
    }

    /// The reference that is pulled.
    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// containerd, under the lease.
    pub(crate) fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// Where lines go.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What the reference names: a manifest or a list of them.
    pub(crate) async fn top(&self) -> Result<(FetchedManifest, Document), Error> {
        let top = self.client.manifest(&self.reference).await.map_err(Error::command)?;
        let document = Document::parse(top.descriptor.digest(), &top.bytes).map_err(Error::command)?;
        if let Document::Index(_) = &document {
            self.announce(&top.descriptor)?;
        }
        Ok((top, document))
    }

    /// Stores a list of manifests; a manifest itself is stored with its image.
    pub(crate) async fn keep_top(&self, top: &FetchedManifest, document: &Document) -> Result<(), Error> {
        let Document::Index(manifests) = document else { return Ok(()) };
        let mut labels = Labels::new();
        for (n, manifest) in manifests.iter().enumerate() {
            labels.insert(labels::gc_ref_manifest(n), manifest.digest().to_string());
        }
        self.store(&top.descriptor, labels, top.bytes.clone()).await
    }

    /// The entry of a list for one platform.
    pub(crate) fn choose<'a>(
        &self,
        manifests: &'a [Descriptor],
        platform: &Platform,
    ) -> Result<&'a Descriptor, Error> {
        oci_registry::platform::choose(manifests, platform).ok_or_else(|| {
            Error::command(RegistryError::NoPlatform {
                reference: self.reference.to_string(),
                platform: platform.to_string(),
            })
        })
    }

    /// A manifest of a list, from containerd's store or the registry.
    pub(crate) async fn manifest(
        &self,
        descriptor: &Descriptor,
    ) -> Result<(FetchedManifest, Manifest), Error> {
        let digest = descriptor.digest();
        let fetched = match self.containerd.content().read_all(digest, oci_registry::MAX_MANIFEST_SIZE).await
        {
            Ok(bytes) => FetchedManifest { descriptor: descriptor.clone(), bytes },
            Err(StoreError::NotFound { .. }) => {
                let reference = self.reference.repository().with_digest(digest.clone());
                self.client.manifest(&reference).await.map_err(Error::command)?
            }
            Err(error) => return Err(error.into()),
        };
        match Document::parse(digest, &fetched.bytes).map_err(Error::command)? {
            Document::Manifest(manifest) => Ok((fetched, *manifest)),
            Document::Index(_) => Err(Error::command(ImageError::Shape {
                digest: digest.clone(),
                what: "it is a list within a list",
            })),
        }
    }

    /// Fetches the config of a manifest and stores both.
    pub(crate) async fn image(
        &self,
        fetched: FetchedManifest,
        manifest: Manifest,
    ) -> Result<PlatformImage, Error> {
        let image = self.read_image(fetched, manifest).await?;
        self.keep_image(&image).await?;
        Ok(image)
    }

    /// Fetches the config of a manifest.
    pub(crate) async fn read_image(
        &self,
        fetched: FetchedManifest,
        manifest: Manifest,
    ) -> Result<PlatformImage, Error> {
        self.announce(&fetched.descriptor)?;
        self.announce(&manifest.config)?;
        let FetchedManifest { descriptor, bytes } = fetched;
        let digest = manifest.config.digest();
        let config = match self.containerd.content().read_all(digest, MAX_CONFIG_SIZE).await {
            Err(StoreError::NotFound { .. }) => {
                let repository = self.reference.repository();
                let fetched = self.client.blob_bytes(repository, digest, MAX_CONFIG_SIZE).await;
                fetched.map_err(Error::command)?
            }
            here => here?,
        };
        let (platform, layers) = if manifest.is_image() {
            let config = Config::parse(digest, &config).map_err(Error::command)?;
            (config.platform(), manifest.chain(descriptor.digest(), &config).map_err(Error::command)?)
        } else {
            (Platform::host(), Vec::new())
        };
        Ok(PlatformImage { descriptor, manifest, platform, layers, bytes, config })
    }

    /// Stores manifest and config.
    pub(crate) async fn keep_image(&self, image: &PlatformImage) -> Result<(), Error> {
        let config = &image.manifest.config;
        let mut labels = Labels::from([(labels::GC_REF_CONFIG.to_owned(), config.digest().to_string())]);
        for (n, layer) in image.manifest.layers.iter().enumerate() {
            labels.insert(labels::gc_ref_layer(n), layer.digest().to_string());
        }
        let (manifest_kept, config_kept) = tokio::join!(
            self.store(&image.descriptor, labels, image.bytes.clone()),
            self.store(config, Labels::new(), image.config.clone())
        );
        manifest_kept?;
        config_kept
    }

    /// Downloads a layer unless it is here, with its line when the download starts.
    pub(crate) async fn layer(&self, blob: &Descriptor) -> Result<(), Error> {
        let _permit = self.downloads.acquire().await;
        self.blob(blob, Labels::new(), true).await
    }

    /// Downloads a blob unless it is here. The registry is asked while containerd opens the ingest.
    pub(crate) async fn blob(&self, blob: &Descriptor, labels: Labels, announce: bool) -> Result<(), Error> {
        let (here, labels) = self.with_source(blob.digest(), labels).await?;
        let asked = (!here).then(|| {
            if announce {
                // A stdout that is closed does not end a download.
                let _ = self.announce(blob);
            }
            let (puller, blob) = (self.clone(), blob.clone());
            AbortOnDropHandle::new(tokio::spawn(async move { puller.ask(&blob).await }))
        });
        // Nobody polls this where the blob is here already.
        let body = futures_util::stream::once(async {
            let stream = match asked {
                Some(asked) => match asked.await {
                    Ok(answer) => answer?,
                    Err(_) => self.ask(blob).await?,
                },
                // It was here a moment ago.
                None => self.ask(blob).await?,
            };
            let transfer = self.progress.transfer(&short(blob), blob.size());
            Ok::<_, RegistryError>(
                stream.inspect_ok(move |bytes: &Bytes| transfer.advance(bytes.len() as u64)),
            )
        })
        .try_flatten()
        .boxed();
        let content = self.containerd.content();
        let writer = match content.open_writer(None, blob).await? {
            OpenedWriter::Present => return Ok(content.set_labels(blob.digest(), labels).await?),
            OpenedWriter::Writer(writer) => writer,
        };
        // Not earlier: it may have been another's until now, and is not ours to abort then.
        self.arriving.lock().insert(blob.digest().clone());
        let outcome = content.write_through(writer, blob, labels, body).await;
        // Not reached where the pull is interrupted: that is what it is for.
        self.arriving.lock().remove(blob.digest());
        Ok(outcome?)
    }

    async fn ask(&self, blob: &Descriptor) -> Result<BlobStream, RegistryError> {
        let started = Instant::now();
        let stream = self.client.blob(self.reference.repository(), blob).await?;
        tracing::debug!(digest = %blob.digest(), size = stream.size(), waited = ?started.elapsed(), "download");
        Ok(stream)
    }

    /// Drops what an interrupted pull has half written.
    pub(crate) async fn abandon(&self) {
        let digests: Vec<Digest> = self.arriving.lock().iter().cloned().collect();
        for digest in digests {
            if let Err(error) = self.containerd.content().abort(&digest).await {
                tracing::warn!(%digest, error = one_line(&error), "half a download stays until it expires");
            }
        }
    }

    /// Stores bytes that are here already.
    async fn store(&self, descriptor: &Descriptor, labels: Labels, bytes: Bytes) -> Result<(), Error> {
        let (_, labels) = self.with_source(descriptor.digest(), labels).await?;
        self.containerd.content().write_bytes(None, descriptor, labels, bytes).await?;
        Ok(())
    }

    /// Adds the label that says where the content came from, and keeps where else it came from. Also tells whether the content is here.
    async fn with_source(&self, digest: &Digest, mut labels: Labels) -> Result<(bool, Labels), Error> {
        let repository = self.reference.repository();
        let key = format!("{}.{}", labels::DISTRIBUTION_SOURCE, repository.domain());
        let present = self.containerd.content().info(digest).await?;
        let before = present.as_ref().and_then(|info| info.labels.get(&key)).map(String::as_str);
        let value = add_source(before.unwrap_or_default(), repository.name());
        // As in containerd: a list that has grown too long is left as it was.
        if labels::fits(&key, &value) {
            labels.insert(key, value);
        }
        Ok((present.is_some(), labels))
    }

    /// The line for one piece of content.
    pub(crate) fn announce(&self, descriptor: &Descriptor) -> Result<(), Error> {
        let digits: String = descriptor.digest().to_string().chars().take(15).collect();
        self.progress.line(&format!("fetching {digits}... {}", descriptor.media_type()))
    }
}

/// Adds a repository to a comma list, sorted, each once.
fn add_source(before: &str, repository: &str) -> String {
    let mut all: Vec<&str> = before.split(',').filter(|name| !name.is_empty()).collect();
    all.push(repository);
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_a_set() {
        assert_eq!(add_source("", "library/x"), "library/x");
        assert_eq!(add_source("library/x", "library/x"), "library/x");
        assert_eq!(add_source("z,a", "m/n"), "a,m/n,z");
    }
}
