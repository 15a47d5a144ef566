//! `soci image push`.

use std::collections::HashSet;

use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_registry::platform::Platform;
use oci_registry::{Client, PushOutcome, Reference, RegistryError};
use oci_spec::image::{Descriptor, Digest, MediaType};
use soci_store::ContentStore;

use crate::context::Context;
use crate::error::Error;
use crate::image::{Document, is_foreign};
use crate::interrupt::Interrupts;
use crate::registry::RegistryArgs;
use crate::terminal::Progress;
use crate::upload::upload;

/// Uploads at a time, where the command line does not say.
const DEFAULT_UPLOADS: usize = 3;
/// Lists of lists of manifests are not made by any tool; deeper than this is an attack.
const MAX_DEPTH: usize = 4;

/// Arguments of `soci image push`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci image push reg.example.com/app:1\n  soci image push --user bob:pw reg.example.com/app:2 reg.example.com/app:1"
)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Digest of the manifest to push, instead of the image's own.
    #[arg(long, value_name = "DIGEST")]
    manifest: Option<String>,
    /// Media type of that manifest.
    #[arg(long, value_name = "TYPE", default_value = "application/vnd.oci.image.manifest.v1+json")]
    manifest_type: String,
    /// Push the content of this platform only.
    #[arg(long)]
    platform: Vec<String>,
    /// Set the max concurrent uploaded layers for each push.
    #[arg(long, visible_alias = "max-concurrent-uploads", default_value_t = 0, hide_default_value = true)]
    max_concurrent_uploaded_layers: usize,
    /// Allow pushing blobs that are marked as non-distributable.
    #[arg(long)]
    allow_non_distributable_blobs: bool,
    /// Accepted for compatibility: the image is always pushed by this program.
    #[arg(long, hide = true)]
    local: bool,
    /// Name in the registry.
    #[arg(value_name = "REMOTE")]
    remote: String,
    /// Local name, if it is another.
    #[arg(value_name = "LOCAL")]
    local_name: Option<String>,
}

/// Why an image cannot be pushed.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("one platform at a time can be pushed")]
    SeveralPlatforms,
    #[error("{0:?} is no digest")]
    Digest(String),
    #[error("the lists of manifests are nested too deep")]
    TooDeep,
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Runs `soci image push`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let reference = Reference::parse(&args.remote).map_err(Error::command)?;
    let credentials = args.registry.credentials()?;
    let client = args.registry.client(&reference, credentials.as_ref())?;
    let content = context.containerd().content();
    let pusher = Pusher { client, content, reference, progress: Progress::new(), args: &args };
    let push = async {
        let target = target(&args, context, &pusher).await?;
        pusher.push(&target).await
    };
    Interrupts::listen(context)?.unless(push).await
}

/// What is to be pushed: a manifest or list.
async fn target(args: &Args, context: &Context, pusher: &Pusher<'_>) -> Result<Descriptor, Error> {
    if let Some(text) = &args.manifest {
        let digest =
            soci_store::parse_digest(text).ok_or_else(|| Error::command(PushError::Digest(text.clone())))?;
        let bytes = pusher.content.read_all(&digest, oci_registry::MAX_MANIFEST_SIZE).await?;
        return Ok(Descriptor::new(MediaType::from(args.manifest_type.as_str()), bytes.len() as u64, digest));
    }
    let name = args.local_name.as_deref().unwrap_or(&args.remote);
    let images = context.containerd().images();
    // As written, else in full: `ctr` only knows the former.
    let image = match images.get(name).await {
        Err(error) if error.is_not_found() => {
            let full = Reference::parse(name).map_err(Error::command)?.to_string();
            if full == name {
                return Err(error.into());
            }
            images.get(&full).await?
        }
        other => other?,
    };
    let platform = match args.platform.as_slice() {
        [] => return Ok(image.target),
        [one] => Platform::parse(one).map_err(Error::command)?,
        _ => return Err(Error::command(PushError::SeveralPlatforms)),
    };
    match pusher.document(&image.target).await? {
        (_, Document::Manifest(_)) => Ok(image.target),
        (_, Document::Index(manifests)) => {
            let chosen = oci_registry::platform::choose(&manifests, &platform).ok_or_else(|| {
                Error::command(RegistryError::NoPlatform {
                    reference: image.name.clone(),
                    platform: platform.to_string(),
                })
            })?;
            Ok(chosen.clone())
        }
    }
}

/// One push on its way.
struct Pusher<'a> {
    client: Client,
    content: ContentStore,
    reference: Reference,
    progress: Progress,
    args: &'a Args,
}

/// Everything below a target, children first.
#[derive(Default)]
struct Contents {
    blobs: Vec<Descriptor>,
    /// With their bytes; the last one is the target.
    manifests: Vec<(Descriptor, bytes::Bytes)>,
    seen: HashSet<Digest>,
}

impl Pusher<'_> {
    async fn push(&self, target: &Descriptor) -> Result<(), Error> {
        let mut contents = Contents::default();
        self.collect(target, &mut contents, 0).await?;
        let limit = match self.args.max_concurrent_uploaded_layers {
            0 => DEFAULT_UPLOADS,
            limit => limit,
        };
        futures_util::stream::iter(contents.blobs.iter().map(|blob| self.blob(blob)))
            .buffer_unordered(limit)
            .try_collect::<()>()
            .await?;
        let Some(((last, bytes), before)) = contents.manifests.split_last() else { return Ok(()) };
        for (descriptor, bytes) in before {
            let reference = self.reference.repository().with_digest(descriptor.digest().clone());
            self.manifest(&reference, descriptor, bytes).await?;
        }
        self.manifest(&self.reference, last, bytes).await
    }

    /// Reads manifests and notes what they name, depth first.
    async fn collect(
        &self,
        descriptor: &Descriptor,
        contents: &mut Contents,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::command(PushError::TooDeep));
        }
        if !contents.seen.insert(descriptor.digest().clone()) {
            return Ok(());
        }
        let (bytes, document) = self.document(descriptor).await?;
        match document {
            Document::Index(manifests) => {
                for manifest in &manifests {
                    Box::pin(self.collect(manifest, contents, depth.saturating_add(1))).await?;
                }
            }
            Document::Manifest(manifest) => {
                for blob in manifest.blobs() {
                    let skipped = is_foreign(blob.media_type()) && !self.args.allow_non_distributable_blobs;
                    if !skipped && contents.seen.insert(blob.digest().clone()) {
                        contents.blobs.push(blob.clone());
                    }
                }
            }
        }
        contents.manifests.push((descriptor.clone(), bytes));
        Ok(())
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<(bytes::Bytes, Document), Error> {
        let bytes = self.content.read_all(descriptor.digest(), oci_registry::MAX_MANIFEST_SIZE).await?;
        let document = Document::parse(descriptor.digest(), &bytes).map_err(Error::command)?;
        Ok((bytes, document))
    }

    async fn blob(&self, blob: &Descriptor) -> Result<(), Error> {
        let upload = upload(&self.content, blob, &self.progress);
        let outcome = self
            .client
            .push_blob(self.reference.repository(), blob, upload)
            .await
            .map_err(|error| Error::command(PushError::from(error)))?;
        self.say(outcome, blob)
    }

    async fn manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<(), Error> {
        self.client
            .push_manifest(reference, descriptor.media_type().as_ref(), bytes)
            .await
            .map_err(|error| Error::command(PushError::from(error)))?;
        self.say(PushOutcome::Pushed, descriptor)
    }

    fn say(&self, outcome: PushOutcome, descriptor: &Descriptor) -> Result<(), Error> {
        let verb = match outcome {
            PushOutcome::Pushed => "pushed",
            PushOutcome::Exists => "exists",
        };
        let digits: String = descriptor.digest().to_string().chars().take(15).collect();
        self.progress.line(&format!("{verb} {digits}... {}", descriptor.media_type()))
    }
}
