//! `soci push`.

use std::collections::HashSet;

use bytes::Bytes;
use clap::ValueEnum;
use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_registry::platform::Platform;
use oci_registry::{Client, PushOutcome, Reference, RegistryError};
use oci_spec::image::{Descriptor, Digest};
use soci_index::{ARTIFACT_TYPE_V1, EMPTY_CONFIG, EMPTY_CONFIG_DIGEST, SociIndex};
use soci_store::{Containerd, IndexRecord};
use thiserror::Error as ThisError;

use crate::context::Context;
use crate::error::Error;
use crate::interrupt::Interrupts;
use crate::local_image::{self, LocalImage};
use crate::registry::RegistryArgs;
use crate::terminal::Progress;
use crate::upload::upload;

/// Uploads at a time, where the command line says 0.
const DEFAULT_UPLOADS: usize = 3;

/// Arguments of `soci push`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci push reg.example.com/app:1\n  soci push --user alice:secret --existing-index skip reg.example.com/app:1"
)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Image whose indices to push, as `soci image ls` names it; its name says where to.
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// Push the indices of all platforms.
    #[arg(long)]
    all_platforms: bool,
    /// Push the index of a specific platform (the host's by default).
    #[arg(long, short, value_parser = Platform::parse)]
    platform: Vec<Platform>,
    /// What to do where the registry has an index for the image already.
    #[arg(long, value_name = "POLICY", default_value = "warn")]
    existing_index: String,
    /// Max concurrent uploads.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_UPLOADS)]
    max_concurrent_uploads: usize,
    /// Print the index digest only.
    #[arg(long, short)]
    quiet: bool,
    /// Accepted for compatibility: no snapshotter takes part.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", hide = true)]
    snapshotter: Option<String>,
}

/// What to do where there is an index already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Existing {
    /// Say so and push.
    Warn,
    /// Do not push.
    Skip,
    /// Do not even look.
    Allow,
}

#[derive(Debug, ThisError)]
enum PushError {
    #[error("could not find any soci index manifest v1 to push for platform {0}")]
    NoIndex(Platform),
    #[error("failed to fetch list of referrers")]
    Referrers(#[source] RegistryError),
    #[error("error pushing graph to remote")]
    Graph(#[source] RegistryError),
    #[error("soci index {digest} cannot be read")]
    Index { digest: Digest, source: soci_index::ParseError },
    #[error("soci index {digest} is not for image manifest {image}")]
    Subject { digest: Digest, image: Digest },
}

/// One push on its way.
struct Pusher<'a> {
    args: &'a Args,
    containerd: &'a Containerd,
    client: Client,
    reference: Reference,
    existing: Existing,
    progress: Progress,
}

/// Runs `soci push`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let name = args
        .image
        .as_deref()
        .ok_or_else(|| Error::Usage("please provide an image reference to push".to_owned()))?;
    let existing = Existing::from_str(&args.existing_index, false).map_err(|_| {
        Error::Usage(format!("unexpected value for flag existing-index: {}", args.existing_index))
    })?;
    let containerd = context.containerd();
    let image = local_image::find(containerd, name).await?;
    let reference = Reference::parse(&image.name).map_err(Error::command)?;
    let credentials = args.registry.credentials()?;
    let client = args.registry.client(&reference, credentials.as_ref())?;
    let progress = Progress::new();
    let pusher = Pusher { args: &args, containerd, client, reference, existing, progress };
    let mut interrupts = Interrupts::listen(context)?;
    let work = async {
        let platforms = local_image::wanted_platforms(containerd, &image, args.all_platforms, &args.platform)
            .await
            .map_err(Error::command)?;
        let records = containerd.artifacts().list_indices().await?;
        for local in &platforms {
            pusher.platform(local, &records).await?;
        }
        Ok(())
    };
    interrupts.unless(work).await
}

impl Pusher<'_> {
    async fn platform(&self, local: &LocalImage, records: &[IndexRecord]) -> Result<(), Error> {
        let image = local.descriptor.digest();
        let of_the_image = records.iter().filter(|record| record.image_digest == *image);
        // Newest first, as the records come.
        let mut newest = None;
        for record in of_the_image {
            if record.version == "v1" {
                newest = newest.or(Some(record));
            } else if newest.is_none() {
                self.say(&format!(
                    "[WARN] Skippping SOCI index manifest v2. Index digest: {}. A v2 index is pushed with its image",
                    record.digest
                ))?;
            }
        }
        let record = newest.ok_or_else(|| Error::command(PushError::NoIndex(local.platform.clone())))?;
        if !self.wanted(image).await? {
            return Ok(());
        }
        let bytes = self.containerd.artifacts().read_index(&record.digest).await?;
        let index = SociIndex::parse(&bytes)
            .map_err(|source| Error::command(PushError::Index { digest: record.digest.clone(), source }))?;
        if index.subject().is_none_or(|subject| subject.digest() != image) {
            let (digest, image) = (record.digest.clone(), image.clone());
            return Err(Error::command(PushError::Subject { digest, image }));
        }
        self.say(&format!("pushing soci index with digest: {}", record.digest))?;
        self.graph(&index, &bytes, image).await?;
        if self.args.quiet {
            self.progress.line(record.digest.as_ref())?;
        }
        Ok(())
    }

    /// Whether to push, with what the registry has already in view.
    async fn wanted(&self, image: &Digest) -> Result<bool, Error> {
        if self.existing == Existing::Allow {
            return Ok(true);
        }
        self.say("checking if a soci index already exists in remote repository...")?;
        let found = self
            .client
            .referrers(self.reference.repository(), image, ARTIFACT_TYPE_V1)
            .await
            .map_err(|error| Error::command(PushError::Referrers(error)))?;
        let found = match found.as_slice() {
            [] => return Ok(true),
            [one] => format!("soci index found in remote repository with digest: {}", one.digest()),
            _ => "multiple soci indices found in remote repository".to_owned(),
        };
        if self.existing == Existing::Warn {
            self.say(&format!("[WARN] {found}: pushing index anyway"))?;
            return Ok(true);
        }
        self.say(&format!("{found}: skipping pushing artifacts for image manifest: {image}"))?;
        Ok(false)
    }

    /// Config, zTOCs and the rest, then the index, then its place in the image's list of referrers.
    async fn graph(&self, index: &SociIndex, bytes: &Bytes, image: &Digest) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let blobs = index.blobs().iter().filter(|blob| seen.insert(blob.digest().clone()));
        let limit = match self.args.max_concurrent_uploads {
            0 => DEFAULT_UPLOADS,
            limit => limit,
        };
        let failed = |error| Error::command(PushError::Graph(error));
        let repository = self.reference.repository();
        if let Some(digest) = soci_store::parse_digest(EMPTY_CONFIG_DIGEST) {
            let media_type = index.version().artifact_type();
            let config = Descriptor::new(media_type.into(), EMPTY_CONFIG.len() as u64, digest);
            let outcome = self
                .client
                .push_blob(repository, &config, Bytes::from_static(EMPTY_CONFIG))
                .await
                .map_err(failed)?;
            self.outcome(outcome, config.digest())?;
        }
        futures_util::stream::iter(blobs.map(|blob| self.blob(blob)))
            .buffer_unordered(limit)
            .try_collect::<()>()
            .await?;
        let descriptor = index.referrer_descriptor(bytes);
        self.say(&format!("pushing artifact with digest: {}", descriptor.digest()))?;
        self.client.push_referrer(repository, &descriptor, bytes, image).await.map_err(failed)?;
        self.say(&format!("successfully pushed artifact with digest: {}", descriptor.digest()))
    }

    async fn blob(&self, blob: &Descriptor) -> Result<(), Error> {
        let upload = upload(&self.containerd.content(), blob, &self.progress);
        let outcome = self
            .client
            .push_blob(self.reference.repository(), blob, upload)
            .await
            .map_err(|error| Error::command(PushError::Graph(error)))?;
        self.outcome(outcome, blob.digest())
    }

    fn outcome(&self, outcome: PushOutcome, digest: &Digest) -> Result<(), Error> {
        match outcome {
            PushOutcome::Exists => self.say(&format!("skipped artifact with digest: {digest}")),
            PushOutcome::Pushed => {
                self.say(&format!("pushing artifact with digest: {digest}"))?;
                self.say(&format!("successfully pushed artifact with digest: {digest}"))
            }
        }
    }

    fn say(&self, text: &str) -> Result<(), Error> {
        if self.args.quiet { Ok(()) } else { self.progress.line(text) }
    }
}
