//! `soci image pull`: the whole image, into any snapshotter, as `ctr` does it.

use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_registry::platform::Platform;
use oci_registry::{FetchedManifest, Reference};
use oci_spec::image::{Descriptor, Digest};
use soci_store::Image;
use soci_store::labels::{self, Labels};
use tokio_util::task::AbortOnDropHandle;

use crate::context::Context;
use crate::error::Error;
use crate::image::{Document, Manifest};
use crate::pull::{DEFAULT_DOWNLOADS, PlatformImage, Puller, under_lease};
use crate::registry::RegistryArgs;
use crate::terminal::Progress;
use crate::unpack::{Prepared, Unpacker};

/// Arguments of `soci image pull`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci image pull docker.io/library/redis:7\n  soci image pull --platform linux/arm64 docker.io/library/busybox:1"
)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Snapshotter name.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "overlayfs")]
    snapshotter: String,
    /// Labels to attach to the image.
    #[arg(long, value_name = "LABEL[=VALUE]")]
    label: Vec<String>,
    /// Pull content from a specific platform; may be given several times.
    #[arg(long)]
    platform: Vec<String>,
    /// Pull content and metadata from all platforms.
    #[arg(long)]
    all_platforms: bool,
    /// Pull metadata for all platforms.
    #[arg(long)]
    all_metadata: bool,
    /// Print the resulting image's chain ID.
    #[arg(long)]
    print_chainid: bool,
    /// Set the max concurrent downloads for each pull.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    max_concurrent_downloads: usize,
    /// Only fetch, make no snapshots.
    #[arg(long)]
    no_unpack: bool,
    /// Accepted for compatibility: the image is always pulled by this program.
    #[arg(long, hide = true)]
    local: bool,
    /// Image to pull.
    #[arg(value_name = "REF")]
    reference: String,
}

/// Runs `soci image pull`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let reference = Reference::parse(&args.reference).map_err(Error::command)?;
    let platforms = args
        .platform
        .iter()
        .map(|text| Platform::parse(text).map_err(Error::command))
        .collect::<Result<Vec<_>, _>>()?;
    let platforms = if platforms.is_empty() { vec![Platform::host()] } else { platforms };
    let credentials = args.registry.credentials()?;
    let client = args.registry.client(&reference, credentials.as_ref())?;
    under_lease(context, |containerd| {
        let unpacker = Unpacker::new(containerd.clone(), &args.snapshotter);
        let downloads = args.max_concurrent_downloads;
        let puller = Puller::new(containerd, client, reference, Progress::new(), downloads);
        let abandoned = (unpacker.clone(), puller.clone());
        let pull = Pull { args: &args, puller, unpacker };
        (async move { pull.run(&platforms).await }, async move || {
            abandoned.0.abandon().await;
            abandoned.1.abandon().await;
        })
    })
    .await
}

/// One pull on its way.
struct Pull<'a> {
    args: &'a Args,
    puller: Puller,
    unpacker: Unpacker,
}

impl Pull<'_> {
    async fn run(&self, platforms: &[Platform]) -> Result<(), Error> {
        let started = Instant::now();
        let (top, document) = self.puller.top().await?;
        self.puller.keep_top(&top, &document).await?;
        let target = top.descriptor.clone();
        let mut images = Vec::new();
        for (fetched, manifest) in self.wanted(top, document, platforms).await? {
            images.push(self.puller.image(fetched, manifest).await?);
        }
        self.fetch_layers(&images).await?;
        let labels = super::label::parse(&self.args.label);
        let record = Image::new(self.puller.reference().to_string(), target, labels);
        self.puller.containerd().images().create_or_update(&record).await?;
        if !self.args.no_unpack {
            for image in images.iter().filter(|image| !image.layers.is_empty()) {
                self.unpack(image).await?;
            }
            self.puller.progress().line(&format!("done: {:.3}s", started.elapsed().as_secs_f64()))?;
        }
        Ok(())
    }

    /// The manifests to pull; what `--all-metadata` asks for beside them is fetched here.
    async fn wanted(
        &self,
        top: FetchedManifest,
        document: Document,
        platforms: &[Platform],
    ) -> Result<Vec<(FetchedManifest, Manifest)>, Error> {
        let manifests = match document {
            Document::Manifest(manifest) => return Ok(vec![(top, *manifest)]),
            Document::Index(manifests) => manifests,
        };
        let mut wanted: Vec<(FetchedManifest, Manifest)> = Vec::new();
        if self.args.all_platforms {
            for descriptor in &manifests {
                wanted.push(self.puller.manifest(descriptor).await?);
            }
            return Ok(wanted);
        }
        for platform in platforms {
            let chosen = self.puller.manifest(self.puller.choose(&manifests, platform)?).await?;
            if !wanted.iter().any(|(fetched, _)| fetched.descriptor.digest() == chosen.0.descriptor.digest())
            {
                wanted.push(chosen);
            }
        }
        if self.args.all_metadata {
            for descriptor in &manifests {
                if !wanted.iter().any(|(fetched, _)| fetched.descriptor.digest() == descriptor.digest()) {
                    let (fetched, manifest) = self.puller.manifest(descriptor).await?;
                    self.puller.image(fetched, manifest).await?;
                }
            }
        }
        Ok(wanted)
    }

    async fn fetch_layers(&self, images: &[PlatformImage]) -> Result<(), Error> {
        let mut layers: Vec<&Descriptor> = Vec::new();
        for layer in images.iter().flat_map(|image| &image.manifest.layers) {
            if !layers.iter().any(|known| known.digest() == layer.digest()) {
                layers.push(layer);
            }
        }
        let tasks = layers.into_iter().map(|layer| {
            let (puller, layer) = (self.puller.clone(), layer.clone());
            async move {
                // In a task of its own, so that several digests are computed at a time.
                let task = tokio::spawn(async move { puller.layer(&layer).await });
                AbortOnDropHandle::new(task).await.map_err(Error::command)?
            }
        });
        let limit = match self.args.max_concurrent_downloads {
            0 => DEFAULT_DOWNLOADS,
            limit => limit,
        };
        futures_util::stream::iter(tasks).buffer_unordered(limit).try_collect::<()>().await
    }

    async fn unpack(&self, image: &PlatformImage) -> Result<(), Error> {
        let progress = self.puller.progress();
        progress.line(&format!("unpacking {} {}...", image.platform, image.descriptor.digest()))?;
        let mut parent: Option<&Digest> = None;
        for layer in &image.layers {
            if let Prepared::Active { key, mounts } =
                self.unpacker.prepare(layer, parent, Labels::new()).await?
            {
                let _working = progress.work(&format!("unpacking {}", layer.blob.digest()));
                self.unpacker.fill(layer, key, mounts).await?;
            }
            parent = Some(&layer.chain_id);
        }
        if let Some(chain_id) = parent {
            let label = labels::gc_ref_snapshot(&self.args.snapshotter);
            let labels = Labels::from([(label, chain_id.to_string())]);
            let config = image.manifest.config.digest();
            self.puller.containerd().content().set_labels(config, labels).await?;
            if self.args.print_chainid {
                progress.line(&format!("image chain ID: {chain_id}"))?;
            }
        }
        Ok(())
    }
}
