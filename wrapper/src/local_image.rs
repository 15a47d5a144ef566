//! An image as containerd has it: its manifests and configs, read from the content store.

use bytes::Bytes;
use oci_registry::Reference;
use oci_registry::platform::{self, Platform};
use oci_spec::image::{Descriptor, Digest, ImageConfiguration};
use soci_store::{Containerd, Image, StoreError};
use thiserror::Error;

use crate::image::{Config, Document, ImageError, Layer, Manifest};

/// Larger manifests and configs than this are not read, bytes.
const MAX_SIZE: u64 = 16 << 20;

/// An image index inside an index inside an index is still read, more is not.
const MAX_DEPTH: usize = 3;

/// One platform of an image.
#[derive(Debug)]
pub(crate) struct LocalImage {
    /// The platform that its index or its config names.
    pub(crate) platform: Platform,
    /// The manifest's descriptor.
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
    /// The config's JSON.
    config: Bytes,
    /// Layers with their chain IDs, lowest first.
    pub(crate) layers: Vec<Layer>,
}

impl LocalImage {
    /// The whole config, for who wants to run it.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn configuration(&self) -> Result<ImageConfiguration, LocalImageError> {
        ImageConfiguration::from_reader(&*self.config).map_err(|source| LocalImageError::Config {
            digest: self.manifest.config.digest().clone(),
            source,
        })
    }
}

/// Why an image in containerd cannot be used.
#[derive(Debug, Error)]
pub(crate) enum LocalImageError {
    #[error("image manifest for {platform}: not found")]
    NoPlatform { platform: Platform },
    #[error("{digest} is no image config")]
    Config { digest: Digest, source: oci_spec::OciSpecError },
    #[error("image indices are nested too deep")]
    TooDeep,
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The image with that very name, else with the name that it is short for.
///
/// # Errors
/// There is none, under the name that was given.
pub(crate) async fn find(containerd: &Containerd, name: &str) -> Result<Image, StoreError> {
    let error = match containerd.images().get(name).await {
        Err(error) if error.is_not_found() => error,
        other => return other,
    };
    match Reference::parse(name).map(|reference| reference.to_string()) {
        Ok(full) if full != name => containerd.images().get(&full).await.map_err(|_| error),
        _ => Err(error),
    }
}

/// The image for this platform.
///
/// # Errors
/// The image has no such platform, its content is not there, or it is no image.
pub(crate) async fn for_platform(
    containerd: &Containerd,
    image: &Image,
    wanted: &Platform,
) -> Result<LocalImage, LocalImageError> {
    let mut descriptor = image.target.clone();
    for _ in 0..MAX_DEPTH {
        match document(containerd, &descriptor).await? {
            Document::Index(manifests) => {
                descriptor = platform::choose(&manifests, wanted)
                    .cloned()
                    .ok_or_else(|| LocalImageError::NoPlatform { platform: wanted.clone() })?;
            }
            Document::Manifest(manifest) => {
                let found = load(containerd, descriptor, *manifest).await?;
                return if wanted.rank(&found.platform).is_some() {
                    Ok(found)
                } else {
                    Err(LocalImageError::NoPlatform { platform: wanted.clone() })
                };
            }
        }
    }
    Err(LocalImageError::TooDeep)
}

/// Every platform of the image, in the order of its index. Entries that are no images (attestations, SOCI indices) are left out.
///
/// # Errors
/// As [`for_platform`].
pub(crate) async fn all_platforms(
    containerd: &Containerd,
    image: &Image,
) -> Result<Vec<LocalImage>, LocalImageError> {
    let manifests = match document(containerd, &image.target).await? {
        Document::Manifest(manifest) => {
            return Ok(vec![load(containerd, image.target.clone(), *manifest).await?]);
        }
        Document::Index(manifests) => manifests,
    };
    let mut found = Vec::new();
    for descriptor in manifests {
        let attestation =
            descriptor.platform().as_ref().is_some_and(|platform| platform.os().to_string() == "unknown");
        if attestation || descriptor.artifact_type().is_some() {
            continue;
        }
        if let Document::Manifest(manifest) = document(containerd, &descriptor).await?
            && manifest.is_image()
        {
            found.push(load(containerd, descriptor, *manifest).await?);
        }
    }
    Ok(found)
}

/// The platforms of the image that a command line asks for: all, the given ones, or the host's. Each manifest once.
///
/// # Errors
/// As [`for_platform`].
pub(crate) async fn wanted_platforms(
    containerd: &Containerd,
    image: &Image,
    all: bool,
    given: &[Platform],
) -> Result<Vec<LocalImage>, LocalImageError> {
    if all {
        return all_platforms(containerd, image).await;
    }
    let host = [Platform::host()];
    let mut found: Vec<LocalImage> = Vec::new();
    for platform in if given.is_empty() { &host } else { given } {
        let local = for_platform(containerd, image, platform).await?;
        if found.iter().all(|other| other.descriptor.digest() != local.descriptor.digest()) {
            found.push(local);
        }
    }
    Ok(found)
}

/// Digests of the image's manifests, and of its target: what an index may say that it is for. Nothing below what is not here.
pub(crate) async fn manifest_digests(containerd: &Containerd, image: &Image) -> Vec<Digest> {
    let mut digests = vec![image.target.digest().clone()];
    match document(containerd, &image.target).await {
        Ok(Document::Index(manifests)) => {
            digests.extend(manifests.iter().map(|manifest| manifest.digest().clone()));
        }
        Ok(Document::Manifest(_)) => {}
        Err(error) => tracing::debug!(image = image.name, %error, "its manifests are unknown"),
    }
    digests
}

async fn document(containerd: &Containerd, descriptor: &Descriptor) -> Result<Document, LocalImageError> {
    let bytes = containerd.content().read_all(descriptor.digest(), MAX_SIZE).await?;
    Ok(Document::parse(descriptor.digest(), &bytes)?)
}

async fn load(
    containerd: &Containerd,
    descriptor: Descriptor,
    manifest: Manifest,
) -> Result<LocalImage, LocalImageError> {
    let config = containerd.content().read_all(manifest.config.digest(), MAX_SIZE).await?;
    let parsed = Config::parse(manifest.config.digest(), &config)?;
    let platform = descriptor.platform().as_ref().map_or_else(|| parsed.platform(), Platform::from);
    let layers = manifest.chain(descriptor.digest(), &parsed)?;
    Ok(LocalImage { platform, descriptor, manifest, config, layers })
}
