//! From an image's layer to a layer file: the index, the zTOC in it, and the file made from that.
//!
//! Nobody asks twice at the same time ([`flights`]), nothing is remembered for long, and "there is no index" is an outcome, not an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazy_layer::{Attachment, BlobSource, CreateError, Layer, LayerKey, LayerStore, Pin};
use oci_registry::{Reference, Repository};
use oci_spec::image::Digest;
use soci_store::Containerd;
use tokio::sync::Semaphore;

mod ahead;
mod coming;
mod command;
mod content;
mod diff_id;
mod flights;
mod index;
mod registries;
mod source;
mod twins;
mod ztocs;

pub use content::ArtifactError;
pub use registries::{GreetOptions, Reach, Registries};

use crate::snapshot::LazyRecord;
use crate::snapshot::labels::LayerRequest;
use content::{Origin, What, fetch};
use flights::Flights;
use index::{FoundIndex, ImageKey, IndexOutcome};
use source::RegistryBlob;
use ztocs::{Fetched, Ztocs};

/// How to look.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Looks for v1 indices among the referrers.
    pub v1: bool,
    /// Looks for v2 indices in the manifest's annotations.
    pub v2: bool,
    /// How long an index may take.
    pub resolve_deadline: Duration,
    /// How long looking for an index goes on when nobody waits for it any more. Long enough for a slow registry's answer to be there for the next who asks.
    pub find_deadline: Duration,
    /// How long the registry may take to say where a layer is before anybody reads. Whoever reads then asks again, with a patience of his own.
    pub locate_deadline: Duration,
    /// How long the layer may take after that.
    pub mount_deadline: Duration,
    /// How long containerd may take.
    pub containerd_deadline: Duration,
    /// How long putting an index into its store may wait for another who does, and is protected from garbage collection.
    pub store_deadline: Duration,
    /// How long after an index it is put there: the zTOCs that its layers need arrive meanwhile.
    pub keep_after: Duration,
    /// How long "no index" and failures are believed.
    pub negative_ttl: Duration,
    /// How long a found index is believed to be the newest.
    pub found_ttl: Duration,
    /// Images remembered.
    pub images: usize,
    /// Layers that are being made at the same time, before the oldest one's waiters are told to look for themselves. Each is a few hundred bytes.
    pub layers: usize,
    /// Referrers that are looked at, newest first, before the image counts as one without an index. Each costs a round trip of the time that
    /// [`Self::resolve_deadline`] allows for all.
    pub referrers: usize,
    /// Largest zTOC, bytes.
    pub max_ztoc_bytes: u64,
    /// Bytes of all zTOCs in memory, at least one of the largest.
    pub ztocs_bytes: u64,
    /// Layers of an image that are located, and files made, at the same time before their Prepare comes; at 0 no files are made.
    pub layers_ahead: usize,
    /// Containers whose command lines are looked up at the same time; another one starts without.
    pub commands: usize,
}

/// Finds what a layer is made of.
#[derive(Debug)]
pub struct Resolver {
    options: Options,
    registries: Arc<Registries>,
    /// Any namespace's; `None` where containerd is not used.
    containerd: Option<Containerd>,
    layers: Arc<LayerStore>,
    images: Flights<ImageKey, IndexOutcome>,
    making: Flights<LayerQuestion, Made>,
    ztocs: Ztocs,
    /// One permit for each layer file that is made before its Prepare comes.
    ahead: Semaphore,
    /// One permit for each container whose command line is looked up.
    commands: Arc<Semaphore>,
}

/// Asked by namespace too, because that says which content store has the zTOC.
type LayerQuestion = (Option<String>, LayerKey);
/// A layer file, or in words why there is none.
type Made = Result<Arc<Layer>, Arc<str>>;

/// What a layer can become.
#[derive(Debug)]
pub enum Resolution {
    /// A layer file with its source.
    Lazy(ResolvedLayer),
    /// The index has nothing for it.
    NoZtoc(String),
    /// The image has no index.
    NoIndex(String),
    /// Whether it has one could not be found out in time.
    NoAnswer(String),
    /// The index is there, but its zTOC is not, or is of no use.
    Unusable(String),
}

/// A layer file that can be mounted.
#[derive(Debug)]
pub struct ResolvedLayer {
    /// The file.
    pub layer: Arc<Layer>,
    /// Keeps the registry attached to it.
    pub source: Attachment,
    /// What to keep, so that it can be mounted again.
    pub record: LazyRecord,
    /// How long it took to have the file, with all that it is made of.
    pub took: Duration,
}

// === impl Resolver ===

impl Resolver {
    /// Over these stores.
    #[must_use]
    pub fn new(
        options: Options,
        registries: Arc<Registries>,
        containerd: Option<Containerd>,
        layers: Arc<LayerStore>,
    ) -> Arc<Resolver> {
        Arc::new(Resolver {
            options,
            registries,
            containerd: containerd.map(|containerd| {
                containerd.with_deadline(options.containerd_deadline).with_patience(options.store_deadline)
            }),
            layers,
            images: Flights::new(options.images),
            making: Flights::new(options.layers),
            ztocs: Ztocs::new(options.ztocs_bytes, options.layers),
            ahead: Semaphore::new(options.layers_ahead),
            commands: Arc::new(Semaphore::new(options.commands)),
        })
    }

    /// Finds a layer's file, making it where need be. Within the resolve deadline for the index and the mount deadline for the rest. `below` are its lazy ancestors, nearest
    /// first.
    pub async fn resolve(
        self: &Arc<Self>,
        namespace: Option<&str>,
        request: &LayerRequest,
        below: &[Arc<Layer>],
    ) -> Resolution {
        let reference = match Reference::parse(&request.image) {
            Ok(reference) => reference,
            Err(error) => {
                return Resolution::NoIndex(format!(
                    "unable to fetch SOCI artifacts: image reference: {}",
                    crate::telemetry::chain(&error)
                ));
            }
        };
        let key = ImageKey {
            namespace: namespace.map(str::to_owned),
            repository: reference.repository().clone(),
            manifest: request.manifest.clone(),
            explicit: request.index.clone(),
        };
        let found = match self.index_of(key).await {
            Some(IndexOutcome::Found(found)) => found,
            Some(IndexOutcome::Absent(reason)) => {
                return Resolution::NoIndex(format!("unable to fetch SOCI artifacts: {reason}"));
            }
            Some(IndexOutcome::Failed(reason)) => {
                return Resolution::NoAnswer(format!("unable to fetch SOCI artifacts: {reason}"));
            }
            None => {
                return Resolution::NoAnswer(format!(
                    "unable to fetch SOCI artifacts: no answer within {:?}",
                    self.options.resolve_deadline
                ));
            }
        };
        let failed = |reason: &str| {
            format!(
                "failed to resolve layer {:?} from {:?}: {reason}",
                request.layer.to_string(),
                request.image
            )
        };
        let Some(ztoc) = found.index.ztoc_for_layer(&request.layer) else {
            let reason =
                format!("skipping mounting layer {} as FUSE mount: no ztoc for layer", request.layer);
            return Resolution::NoZtoc(failed(&reason));
        };
        if !soci_index::is_sha256(ztoc.digest()) {
            return Resolution::Unusable(failed("the ztoc's digest is not SHA-256"));
        }
        let layer = LayerKey { layer: request.layer.clone(), ztoc: ztoc.digest().clone() };
        let held = found.coming.take(&request.layer);
        let record = LazyRecord {
            image: request.image.clone(),
            manifest: request.manifest.to_string(),
            layer: layer.layer.to_string(),
            ztoc: layer.ztoc.to_string(),
            namespace: namespace.unwrap_or_default().to_owned(),
            own_ztoc: None,
        };
        self.begin(reference.repository(), &found, &record, &request.rest, below);
        let began = Instant::now();
        let layer = self.layer_or_twin(reference.repository(), layer, &record, &found).await;
        let took = began.elapsed();
        match layer {
            Ok(layer) => {
                let record = record.with_file(layer.key());
                match self.agrees(&layer, &record).await {
                    Some(false) => {
                        Resolution::Unusable(failed("the index describes another layer than the image's"))
                    }
                    known => {
                        // What is on its way because of the source that it has had goes on.
                        let source = held.filter(|(held, _)| Arc::ptr_eq(held, &layer));
                        let source = source.map(|(_, source)| source);
                        let source = source.unwrap_or_else(|| self.attach(&layer, reference.repository()));
                        if known.is_none() {
                            self.expect_later(&layer, &record);
                        }
                        found.coming.ready(&layer);
                        self.start_when_whole(&found);
                        Resolution::Lazy(ResolvedLayer { layer, source, record, took })
                    }
                }
            }
            Err(reason) => Resolution::Unusable(failed(&reason)),
        }
    }

    /// The layer file of an earlier life: from disk, else made again from its zTOC.
    ///
    /// # Errors
    /// In words.
    pub async fn restore(self: &Arc<Self>, record: &LazyRecord) -> Result<ResolvedLayer, String> {
        let reference = Reference::parse(&record.image).map_err(|error| crate::telemetry::chain(&error))?;
        let digest = |text: &str| text.parse::<Digest>().map_err(|error| format!("{text:?}: {error}"));
        let key = LayerKey { layer: digest(&record.layer)?, ztoc: digest(&record.ztoc)? };
        let namespace = Some(record.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let began = Instant::now();
        let layer = match &record.own_ztoc {
            None => self.layer(namespace, reference.repository(), key, None).await?,
            Some(own) => match self.open(&key).await {
                Ok(Some(layer)) => layer,
                // Whoever had the zTOC of that file may be gone, too.
                Ok(None) | Err(_) => {
                    let own = LayerKey { ztoc: digest(own)?, ..key };
                    self.layer(namespace, reference.repository(), own, None).await?
                }
            },
        };
        let took = began.elapsed();
        // Whether it is what the image says is found out later.
        self.expect_later(&layer, record);
        let source = self.attach(&layer, reference.repository());
        Ok(ResolvedLayer { layer, source, record: record.clone(), took })
    }

    /// Keeps a layer's file where it is until the pins are dropped.
    pub fn pin(&self, record: &LazyRecord) -> Vec<Pin> {
        keys_of(record).map(|key| self.layers.pin(key)).collect()
    }

    /// Removes layer files that are neither in `keep` nor pinned nor in use. Blocking.
    pub fn sweep(&self, keep: &[LazyRecord]) {
        match self.layers.remove_unused(&keep.iter().flat_map(keys_of).collect()) {
            Ok(0) => {}
            Ok(bytes) => tracing::debug!(bytes, "layer files removed"),
            Err(error) => {
                tracing::warn!(error = crate::telemetry::chain(&error), "failed to remove layer files");
            }
        }
    }

    /// A container is about to start on these layers, the uppermost first: what it will read is fetched ahead.
    pub fn starts(&self, from_above: &[Arc<Layer>]) {
        self.layers.starts(from_above);
    }

    /// containerd's namespace, where there is one to ask.
    pub(crate) fn containerd(&self, namespace: Option<&str>) -> Option<Containerd> {
        let namespace = namespace?.parse().ok()?;
        self.containerd.as_ref().map(|containerd| containerd.with_namespace(namespace))
    }

    /// The registry clients.
    pub(crate) fn registries(&self) -> &Arc<Registries> {
        &self.registries
    }

    /// An image manifest.
    pub(crate) async fn manifest(
        &self,
        namespace: Option<&str>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Bytes, ArtifactError> {
        self.small(namespace, repository, digest, What::Manifest).await
    }

    /// A small blob: an image's configuration.
    pub(crate) async fn blob(
        &self,
        namespace: Option<&str>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Bytes, ArtifactError> {
        self.small(namespace, repository, digest, What::Blob).await
    }

    async fn small(
        &self,
        namespace: Option<&str>,
        repository: &Repository,
        digest: &Digest,
        what: What,
    ) -> Result<Bytes, ArtifactError> {
        let containerd = self.containerd(namespace);
        let limit = oci_registry::MAX_MANIFEST_SIZE;
        let fetched = fetch(containerd.as_ref(), &self.registries, repository, digest, what, limit).await;
        fetched.map(|(bytes, _)| bytes)
    }

    async fn index_of(self: &Arc<Self>, key: ImageKey) -> Option<IndexOutcome> {
        let Options { negative_ttl: negative, found_ttl: found, .. } = self.options;
        let ttl = move |outcome: &IndexOutcome| match outcome {
            IndexOutcome::Found(_) => found,
            IndexOutcome::Absent(_) | IndexOutcome::Failed(_) => negative,
        };
        let this = Arc::clone(self);
        let (asked, limit) = (key.clone(), self.options.find_deadline);
        self.images
            .ask(key, self.options.resolve_deadline, ttl, move || async move {
                tokio::time::timeout(limit, this.find_index(asked))
                    .await
                    .unwrap_or_else(|_| IndexOutcome::Failed(format!("no answer within {limit:?}")))
            })
            .await
    }

    async fn layer(
        self: &Arc<Self>,
        namespace: Option<&str>,
        repository: &Repository,
        key: LayerKey,
        found: Option<Arc<FoundIndex>>,
    ) -> Result<Arc<Layer>, String> {
        let deadline = self.options.mount_deadline;
        let this = Arc::clone(self);
        let (namespace, repository) = (namespace.map(str::to_owned), repository.clone());
        let digest = key.layer.clone();
        let asked = (namespace.clone(), key.clone());
        let made = self
            .making
            .ask(
                asked,
                deadline,
                |_| Duration::ZERO,
                move || async move {
                    let made = this.make(namespace, repository, key, found);
                    match tokio::time::timeout(deadline, made).await {
                        Ok(made) => made.map_err(Arc::from),
                        Err(_) => Err(Arc::from(format!("no layer within {deadline:?}"))),
                    }
                },
            )
            .await;
        match made {
            Some(Ok(layer)) => Ok(layer),
            Some(Err(reason)) => Err(reason.to_string()),
            None => Err(format!("timeout waiting for layer {digest} to resolve")),
        }
    }

    /// The layer, if its file is on disk.
    async fn open(&self, key: &LayerKey) -> Result<Option<Arc<Layer>>, String> {
        let (layers, key) = (Arc::clone(&self.layers), key.clone());
        let open = tokio::task::spawn_blocking(move || layers.open_layer(&key)).await;
        open.map_err(|_| "the daemon is stopping".to_owned())?
            .map_err(|error| crate::telemetry::chain(&error))
    }

    async fn make(
        self: Arc<Self>,
        namespace: Option<String>,
        repository: Repository,
        key: LayerKey,
        found: Option<Arc<FoundIndex>>,
    ) -> Result<Arc<Layer>, String> {
        if let Some(layer) = self.open(&key).await? {
            return Ok(layer);
        }
        let described = found.as_ref().and_then(|found| found.index.ztoc_for_layer(&key.layer));
        let size = described.map(oci_spec::image::Descriptor::size);
        let ztoc = self.ztoc(namespace.as_deref(), &repository, &key.ztoc, size).await?;
        let kept = ztoc.origin == Origin::Containerd;
        let mut made = self.make_from(&key, ztoc, found.as_deref()).await?;
        if let (Err(error @ CreateError::Digest { .. }), true) = (&made, kept) {
            tracing::warn!(%error, "containerd's copy of a ztoc is damaged, the registry is asked");
            let ztoc = self.ztoc(None, &repository, &key.ztoc, size).await?;
            made = self.make_from(&key, ztoc, None).await?;
        }
        made.map_err(|error| crate::telemetry::chain(&error))
    }

    async fn make_from(
        &self,
        key: &LayerKey,
        ztoc: Arc<Fetched>,
        found: Option<&FoundIndex>,
    ) -> Result<Result<Arc<Layer>, CreateError>, String> {
        if let (Some(found), Origin::Registry) = (found, ztoc.origin) {
            found.fetched(&key.ztoc, || self.ztocs.waiting(&ztoc));
        }
        let (layers, key) = (Arc::clone(&self.layers), key.clone());
        let made = tokio::task::spawn_blocking(move || layers.create_layer(&key, &ztoc.bytes)).await;
        made.map_err(|_| "the daemon is stopping".to_owned())
    }

    /// Has a layer read from a repository.
    fn attach(&self, layer: &Arc<Layer>, repository: &Repository) -> Attachment {
        let blob: Arc<dyn BlobSource> = Arc::new(RegistryBlob {
            registries: Arc::clone(&self.registries),
            repository: repository.clone(),
            digest: layer.key().layer.clone(),
        });
        layer.attach(blob)
    }

    /// As soon as all layers of an image can be read, what a container reads first is fetched, though they are still to be mounted one after the other.
    fn start_when_whole(&self, found: &FoundIndex) {
        if let Some(from_above) = found.coming.whole() {
            self.starts(&from_above);
        }
    }
}

/// The files that a record names: the one that is mounted, and the one that may be in its place after a restart.
fn keys_of(record: &LazyRecord) -> impl Iterator<Item = LayerKey> {
    let key = |ztoc: &String| Some(LayerKey { layer: record.layer.parse().ok()?, ztoc: ztoc.parse().ok()? });
    std::iter::once(&record.ztoc).chain(&record.own_ztoc).filter_map(key)
}
