//! `soci image rpull`: layers with a zTOC stay where they are, the others are downloaded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use oci_registry::platform::Platform;
use oci_registry::{Credentials, FetchedManifest, Reference};
use oci_spec::image::{Descriptor, Digest};
use soci_proto::daemon::{AddCredentialsRequest, AddCredentialsResponse, Reach};
use soci_store::labels::{self, Labels};
use soci_store::{Image, StoreError};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::Code;

use crate::connection::SNAPSHOTTER;
use crate::context::Context;
use crate::error::{Error, one_line};
use crate::image::{Document, Layer, Manifest};
use crate::pull::{Candidates, FoundIndex, IndexOutcome, PlatformImage, Puller, under_lease};
use crate::registry::RegistryArgs;
use crate::terminal::Progress;
use crate::unpack::{Prepared, Unpacker};

/// Arguments of `soci image rpull`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci image rpull docker.io/library/redis:7\n  soci image rpull --user alice:secret --plain-http reg.example.com:5000/app:1\n  soci image rpull --soci-index-digest $(soci index ls -q) reg.example.com/a:1"
)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Labels to attach to the image.
    #[arg(long, value_name = "LABEL[=VALUE]")]
    label: Vec<String>,
    /// Snapshotter name.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = SNAPSHOTTER)]
    snapshotter: String,
    /// Accepted for compatibility: what is read is always verified.
    #[arg(long, hide = true)]
    skip_content_verify: bool,
    /// Digest of the SOCI index to use; without it, the index is found through the registry.
    #[arg(long, value_name = "DIGEST")]
    soci_index_digest: Option<String>,
    /// Platform to pull; this machine's, where none is given.
    #[arg(short, long)]
    platform: Option<String>,
    /// Set the max concurrent downloads for each pull.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    max_concurrent_downloads: usize,
    /// Image to pull.
    #[arg(value_name = "REF")]
    reference: String,
}

/// Runs `soci image rpull`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let reference = Reference::parse(&args.reference).map_err(Error::command)?;
    let platform = match &args.platform {
        Some(text) => Platform::parse(text).map_err(Error::command)?,
        None => Platform::host(),
    };
    let credentials = args.registry.credentials()?;
    let client = args.registry.client(&reference, credentials.as_ref())?;
    under_lease(context, |containerd| {
        let unpacker = Unpacker::new(containerd.clone(), &args.snapshotter);
        let downloads = args.max_concurrent_downloads;
        let puller = Puller::new(containerd, client, reference, Progress::new(), downloads);
        let abandoned = (unpacker.clone(), puller.clone());
        let pull = Pull { args: &args, context, puller, unpacker, credentials };
        (async move { pull.run(&platform).await }, async move || {
            abandoned.0.abandon().await;
            abandoned.1.abandon().await;
        })
    })
    .await
}

/// One rpull on its way.
struct Pull<'a> {
    args: &'a Args,
    context: &'a Context,
    puller: Puller,
    unpacker: Unpacker,
    credentials: Option<Credentials>,
}

/// An image on its way.
struct Pulled {
    image: PlatformImage,
    /// The index, stored; and the layers whose zTOCs are, too.
    index: Option<(Arc<FoundIndex>, HashSet<Digest>)>,
    downloads: Downloads,
}

/// Which layers the snapshotter is asked to mount from afar.
enum Lazy {
    /// Those whose zTOC is in containerd's store, by this index.
    Indexed {
        /// The index.
        index: Digest,
        /// Layers with a zTOC.
        layers: HashSet<Digest>,
    },
    /// We have found no index. The snapshotter is asked all the same, with the first layer alone: it has the last word, and says in its log
    /// what users look for there. Everything is downloaded meanwhile.
    Unknown {
        /// The index that the user asked for.
        index: Option<Digest>,
    },
    /// None.
    Nothing,
}

impl Pull<'_> {
    /// Whatever does not need another's answer goes on beside it: a pull takes as long as its longest chain of round trips.
    async fn run(&self, platform: &Platform) -> Result<(), Error> {
        let asked = self.args.soci_index_digest.as_deref().filter(|text| !text.is_empty());
        let asked = asked.map(|text| soci_store::parse_digest(text).ok_or(text));
        let (top, asked_bytes) = tokio::join!(self.puller.top(), async {
            match &asked {
                Some(Ok(digest)) => Some(self.puller.index_bytes(digest).await),
                Some(Err(text)) => Some(Err(format!("{text:?} is no digest"))),
                None => None,
            }
        });
        let (top, document) = top?;
        // Not earlier: credentials that the registry does not take must not replace those that the daemon has.
        let (reached, pulled) = tokio::join!(
            self.introduce(top.descriptor.digest()),
            self.fetch(&top, &document, platform, asked_bytes)
        );
        let Pulled { image, index, mut downloads } = pulled?;
        if let Some((index, _)) = &index {
            self.puller.link_index(index, &image).await?;
        }
        let lazy = match index {
            _ if !reached => {
                self.download(&image.layers, &mut downloads).await?;
                Lazy::Nothing
            }
            Some((index, layers)) => Lazy::Indexed { index: index.digest().clone(), layers },
            None => match asked {
                Some(Ok(digest)) => Lazy::Unknown { index: Some(digest) },
                Some(Err(_)) => Lazy::Nothing,
                None => Lazy::Unknown { index: None },
            },
        };
        self.unpack(&image, &lazy, &mut downloads).await?;

        let labels = super::label::parse(&self.args.label);
        let record = Image::new(self.puller.reference().to_string(), top.descriptor, labels);
        let images = self.puller.containerd().images();
        let (held, recorded) = tokio::join!(self.hold_snapshots(&image), images.create_or_update(&record));
        held?;
        recorded?;
        Ok(())
    }

    /// Brings everything here but the layers; the downloads of those that will be needed are on their way.
    async fn fetch(
        &self,
        top: &FetchedManifest,
        document: &Document,
        platform: &Platform,
        asked: Option<Result<Bytes, String>>,
    ) -> Result<Pulled, Error> {
        // A digest is enough to look for its indices.
        let look = async |subject: &Digest| match asked {
            Some(_) => Candidates::default(),
            None => self.puller.candidates(subject).await,
        };
        let (fetched, manifest, candidates) = match document {
            Document::Manifest(manifest) => (top.clone(), Manifest::clone(manifest), None),
            Document::Index(manifests) => {
                let chosen = self.puller.choose(manifests, platform)?;
                let (read, candidates) = tokio::join!(self.puller.manifest(chosen), look(chosen.digest()));
                let (fetched, manifest) = read?;
                (fetched, manifest, Some(candidates))
            }
        };
        let index = async {
            let outcome = match &asked {
                Some(Ok(bytes)) => match FoundIndex::read(bytes.clone(), &manifest) {
                    Ok(found) => IndexOutcome::Found(Box::new(found)),
                    Err(reason) => IndexOutcome::Unusable { reason },
                },
                Some(Err(reason)) => IndexOutcome::Unusable { reason: reason.clone() },
                None => {
                    let candidates = match candidates {
                        Some(candidates) => candidates,
                        None => look(fetched.descriptor.digest()).await,
                    };
                    self.puller.find_index(&manifest, candidates).await
                }
            };
            self.usable(outcome)
        };
        let index = index.map(|index| index.map(Arc::new)).shared();
        // From here on the zTOCs wait for nothing but the index.
        let ztocs = async {
            let Some(index) = index.clone().await else { return Ok(HashSet::new()) };
            Ok::<_, Error>(self.puller.fetch_ztocs(&index, &manifest).await)
        };
        let rest = async {
            let (image, index) =
                tokio::join!(self.puller.read_image(fetched.clone(), manifest.clone()), index.clone());
            let image = image?;
            let mut downloads = Downloads::default();
            let stays =
                |layer: &&Layer| index.as_ref().is_some_and(|index| index.has_ztoc(layer.blob.digest()));
            self.download(image.layers.iter().filter(|layer| !stays(layer)), &mut downloads).await?;
            let stored = async {
                match &index {
                    Some(index) => self.puller.store_index(index, &image).await,
                    None => Ok(()),
                }
            };
            tokio::try_join!(self.puller.keep_top(top, document), self.puller.keep_image(&image), stored)?;
            Ok((image, index, downloads))
        };
        let (layers, (image, index, downloads)) = tokio::try_join!(ztocs, rest)?;
        Ok(Pulled { index: index.map(|index| (index, layers)), image, downloads })
    }

    /// The index, or a line about why there is none to use and what follows: the image is pulled all the same.
    fn usable(&self, outcome: IndexOutcome) -> Option<FoundIndex> {
        let reason = match outcome {
            IndexOutcome::Found(found) => {
                tracing::debug!(index = %found.digest(), "index found");
                return Some(*found);
            }
            IndexOutcome::None => "the image has none".to_owned(),
            IndexOutcome::Unusable { reason } => reason,
        };
        self.puller.progress().notice(&format!("no SOCI index, all layers are downloaded: {reason}"));
        None
    }

    /// Starts to download those of these layers whose snapshots are not there.
    async fn download<'l>(
        &self,
        layers: impl IntoIterator<Item = &'l Layer>,
        downloads: &mut Downloads,
    ) -> Result<(), Error> {
        let looked = layers.into_iter().map(async |layer| (layer, self.unpacker.has(&layer.chain_id).await));
        for (layer, here) in futures_util::future::join_all(looked).await {
            if !here? {
                downloads.start(&self.puller, &layer.blob);
            }
        }
        Ok(())
    }

    /// Has the image's config hold the top snapshot.
    async fn hold_snapshots(&self, image: &PlatformImage) -> Result<(), Error> {
        let Some(top_layer) = image.layers.last() else { return Ok(()) };
        let label = labels::gc_ref_snapshot(&self.args.snapshotter);
        let labels = Labels::from([(label, top_layer.chain_id.to_string())]);
        let content = self.puller.containerd().content();
        Ok(content.set_labels(image.manifest.config.digest(), labels).await?)
    }

    /// Tells the daemon which registry it will talk to and how, before it has to. False where it cannot read the image from there: what it
    /// mounted could not be read.
    async fn introduce(&self, manifest: &Digest) -> bool {
        let registry = &self.args.registry;
        let reference = self.puller.reference();
        let handed_over = async {
            // containerd's own snapshotters have no use for it.
            let Some(mut daemon) = self.context.daemon(&self.args.snapshotter).await? else {
                return Ok(AddCredentialsResponse::default());
            };
            let (credentials, found) = match &self.credentials {
                Some(given) => (Some(given.clone()), false),
                None => (RegistryArgs::found_credentials(reference).await, true),
            };
            let (username, secret) = credentials.map(|pair| (pair.username, pair.secret)).unwrap_or_default();
            let request = AddCredentialsRequest {
                host: reference.host().to_owned(),
                repository: reference.repository().name().to_owned(),
                username,
                secret,
                found,
                plain_http: registry.plain_http,
                skip_verify: registry.skip_verify,
                manifest: manifest.to_string(),
            };
            let call = daemon.add_credentials(request);
            let containerd = self.puller.containerd();
            Ok::<_, Error>(containerd.call("hand credentials to", "the snapshotter", call).await?)
        };
        let reason = match handed_over.await {
            Ok(answer) if answer.reach() != Reach::Unreadable => return true,
            Ok(answer) => answer.reason,
            // Nobody is there: the first Prepare fails of it, and one line is enough.
            Err(Error::Store(StoreError::Unavailable { .. })) => return true,
            // Another program, which has ways of its own.
            Err(Error::Store(StoreError::Refused { code: Code::Unimplemented, .. })) => {
                if self.credentials.is_some() {
                    self.puller.progress().notice("the snapshotter takes no credentials, it needs its own");
                }
                return true;
            }
            Err(error) => one_line(&error),
        };
        let host = reference.host();
        self.puller.progress().notice(&format!(
            "the snapshotter cannot read the image from {host}, all layers are downloaded: {reason}"
        ));
        false
    }

    /// Makes the snapshots, lowest layer first, while the layers that are needed arrive side by side.
    async fn unpack(
        &self,
        image: &PlatformImage,
        lazy: &Lazy,
        downloads: &mut Downloads,
    ) -> Result<(), Error> {
        let mut parent: Option<&Digest> = None;
        for (n, layer) in image.layers.iter().enumerate() {
            let rest = image.layers.get(n..).unwrap_or_default();
            let labels = match &lazy {
                Lazy::Indexed { index, .. } if lazy.stays(layer) => {
                    lazy_labels(self.puller.reference(), &image.descriptor, layer, rest, Some(index))
                }
                Lazy::Unknown { index } if n == 0 => {
                    lazy_labels(self.puller.reference(), &image.descriptor, layer, rest, index.as_ref())
                }
                Lazy::Indexed { .. } | Lazy::Unknown { .. } | Lazy::Nothing => Labels::new(),
            };
            if let Prepared::Active { key, mounts } = self.unpacker.prepare(layer, parent, labels).await? {
                // For a lazy layer this is the snapshotter's way to say that it cannot.
                downloads.start(&self.puller, &layer.blob);
                downloads.wait(&layer.blob).await?;
                let _working = self.puller.progress().work(&format!("unpacking {}", layer.blob.digest()));
                self.unpacker.fill(layer, key, mounts).await?;
            }
            parent = Some(&layer.chain_id);
        }
        Ok(())
    }
}

impl Lazy {
    /// Whether the layer is left where it is, as far as we know.
    fn stays(&self, layer: &Layer) -> bool {
        matches!(self, Lazy::Indexed { layers, .. } if layers.contains(layer.blob.digest()))
    }
}

/// Downloads side by side; all end when this is dropped.
#[derive(Default)]
struct Downloads {
    tasks: JoinSet<()>,
    arrivals: HashMap<Digest, oneshot::Receiver<Result<(), Error>>>,
    done: HashSet<Digest>,
}

impl Downloads {
    /// Starts a download, once for each blob.
    fn start(&mut self, puller: &Puller, blob: &Descriptor) {
        if self.done.contains(blob.digest()) || self.arrivals.contains_key(blob.digest()) {
            return;
        }
        let (sender, receiver) = oneshot::channel();
        let (puller, wanted) = (puller.clone(), blob.clone());
        self.tasks.spawn(async move {
            // Nobody waits any more where the pull failed elsewhere.
            let _ = sender.send(puller.layer(&wanted).await);
        });
        self.arrivals.insert(blob.digest().clone(), receiver);
    }

    /// Waits for a download that was started.
    async fn wait(&mut self, blob: &Descriptor) -> Result<(), Error> {
        if let Some(arrival) = self.arrivals.remove(blob.digest()) {
            let lost = |_| Err(Error::command(format!("the download of {} broke off", blob.digest())));
            arrival.await.unwrap_or_else(lost)?;
            self.done.insert(blob.digest().clone());
        }
        Ok(())
    }
}

/// What a remote snapshotter is told with Prepare, by the names that containerd and the Go project have for it: which layer of which image this is.
fn lazy_labels(
    reference: &Reference,
    manifest: &Descriptor,
    layer: &Layer,
    rest: &[Layer],
    index: Option<&Digest>,
) -> Labels {
    const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
    const LAYER_SIZES: &str = "containerd.io/snapshot/remote/image.layers.size";
    let digests = joined(IMAGE_LAYERS, rest.iter().map(|layer| layer.blob.digest().to_string()));
    let sizes = joined(LAYER_SIZES, rest.iter().map(|layer| layer.blob.size().to_string()));
    let labels = [
        (labels::SNAPSHOT_REF, layer.chain_id.to_string()),
        ("containerd.io/snapshot/cri.image-ref", reference.to_string()),
        ("containerd.io/snapshot/cri.layer-digest", layer.blob.digest().to_string()),
        ("containerd.io/snapshot/cri.manifest-digest", manifest.digest().to_string()),
        (IMAGE_LAYERS, digests),
        ("containerd.io/snapshot/remote/soci.size", layer.blob.size().to_string()),
        (LAYER_SIZES, sizes),
    ];
    labels
        .into_iter()
        .chain(index.map(|index| ("containerd.io/snapshot/remote/soci.index.digest", index.to_string())))
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// A comma list as long as containerd's limit on labels allows.
fn joined(key: &str, items: impl Iterator<Item = String>) -> String {
    let mut list = String::new();
    for item in items {
        let longer = if list.is_empty() { item } else { format!("{list},{item}") };
        if !labels::fits(key, &longer) {
            break;
        }
        list = longer;
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::MediaType;
    use soci_index::digest_of;

    fn layer(n: usize) -> Layer {
        let digest = digest_of(n.to_string().as_bytes());
        Layer {
            blob: Descriptor::new(MediaType::ImageLayerGzip, 1000 + n as u64, digest.clone()),
            diff_id: digest.clone(),
            chain_id: digest,
        }
    }

    #[test]
    fn labels_name_this_layer_and_the_later_ones() {
        let layers: Vec<Layer> = (0..200).map(layer).collect();
        let reference = Reference::parse("localhost:5000/a:1").unwrap();
        let manifest = layers[7].blob.clone();
        let labels = lazy_labels(&reference, &manifest, &layers[3], &layers[3..], Some(&digest_of(b"index")));
        assert!(labels.iter().all(|(key, value)| labels::fits(key, value)));
        let list = &labels["containerd.io/snapshot/cri.image-layers"];
        assert!(list.starts_with(&format!("{},{}", layers[3].blob.digest(), layers[4].blob.digest())));
        assert!(list.len() > 3900 && !list.ends_with(','));
        assert_eq!(labels["containerd.io/snapshot/remote/soci.size"], "1003");
        assert!(labels["containerd.io/snapshot/remote/image.layers.size"].starts_with("1003,1004"));
        assert_eq!(labels["containerd.io/snapshot.ref"], layers[3].chain_id.to_string());
        assert_eq!(labels["containerd.io/snapshot/cri.image-ref"], "localhost:5000/a:1");
        let last = lazy_labels(&reference, &manifest, &layers[199], &layers[199..], None);
        assert_eq!(last["containerd.io/snapshot/cri.image-layers"], layers[199].blob.digest().to_string());
        assert!(!last.contains_key("containerd.io/snapshot/remote/soci.index.digest"));
    }
}
