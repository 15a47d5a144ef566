//! What an image's configuration says that a layer is, uncompressed: its diff ID.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use lazy_layer::Layer;
use oci_registry::Reference;
use oci_spec::image::Digest;
use serde::Deserialize;

use super::Resolver;
use crate::snapshot::LazyRecord;
use crate::telemetry::chain;

/// Seconds before it is looked for, time after time; the last pause holds for all further ones. Not at once: the first reads of a container come
/// first, and it is needed only when all of the layer is here.
const PAUSES: [u64; 3] = [2, 10, 60];
const LAST_PAUSE: u64 = 600;

/// Where an image's configuration is looked for.
#[derive(Clone, Copy, Debug)]
enum Places {
    Containerd,
    /// There, then in the registry.
    All,
}

/// The part of an image manifest that matters.
#[derive(Deserialize)]
struct Manifest {
    config: Blob,
    layers: Vec<Blob>,
}

#[derive(Deserialize)]
struct Blob {
    digest: Digest,
}

/// The part of an image's configuration that matters.
#[derive(Deserialize)]
struct Configuration {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl Resolver {
    /// Tells a layer what it should be, some time after it was mounted.
    ///
    /// It is looked for as long as the layer is open and nobody has said what it is: until then it stays with FUSE and the daemon.
    pub(super) fn expect_later(self: &Arc<Self>, layer: &Arc<Layer>, record: &LazyRecord) {
        let (this, layer, record) = (Arc::downgrade(self), Arc::downgrade(layer), record.clone());
        tokio::spawn(async move {
            let pauses = PAUSES.into_iter().chain(std::iter::repeat(LAST_PAUSE));
            for (attempt, seconds) in pauses.enumerate() {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                let Some(this) = Weak::upgrade(&this) else { return };
                match layer.upgrade() {
                    Some(layer) if attempt <= PAUSES.len() || !layer.is_expected() => {}
                    Some(_) | None => return,
                }
                let found = this.diff_id(&record, Places::All).await;
                drop(this);
                let Some(layer) = layer.upgrade() else { return };
                match found {
                    Ok(diff_id) => {
                        if layer.expect(&diff_id) == Some(false) && layer.is_complete() {
                            refused(&record, &diff_id);
                        }
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(error, image = %record.image, layer = %record.layer, "diff ID not found");
                    }
                }
            }
        });
    }

    /// Whether a layer that is all here and was looked at is what the image says, as far as containerd can tell now; `None` if not. A Prepare waits for this, which is to need no
    /// network.
    pub(super) async fn agrees(&self, layer: &Arc<Layer>, record: &LazyRecord) -> Option<bool> {
        if !layer.is_checked() {
            return None;
        }
        let diff_id = self.diff_id_here(record).await?;
        let agrees = layer.expect(&diff_id);
        if agrees == Some(false) && layer.is_complete() {
            refused(record, &diff_id);
        }
        agrees
    }

    /// What the image says that its layer is, if containerd can tell now.
    pub(super) async fn diff_id_here(&self, record: &LazyRecord) -> Option<Digest> {
        let limit = self.options.containerd_deadline;
        tokio::time::timeout(limit, self.diff_id(record, Places::Containerd)).await.ok()?.ok()
    }

    async fn diff_id(&self, record: &LazyRecord, places: Places) -> Result<Digest, String> {
        let reference = Reference::parse(&record.image).map_err(|error| chain(&error))?;
        let digest = |text: &str| text.parse::<Digest>().map_err(|error| format!("{text:?}: {error}"));
        let (manifest, layer) = (digest(&record.manifest)?, digest(&record.layer)?);
        let namespace = Some(record.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let repository = reference.repository();
        let bytes = match places {
            Places::Containerd => self.local(namespace, &manifest).await?,
            Places::All => {
                self.manifest(namespace, repository, &manifest).await.map_err(|error| chain(&error))?
            }
        };
        let manifest: Manifest = parse(&bytes)?;
        let config = &manifest.config.digest;
        let bytes = match places {
            Places::Containerd => self.local(namespace, config).await?,
            Places::All => self.blob(namespace, repository, config).await.map_err(|error| chain(&error))?,
        };
        of_layer(&manifest, &parse(&bytes)?, &layer)
    }

    /// What containerd has.
    async fn local(&self, namespace: Option<&str>, digest: &Digest) -> Result<Bytes, String> {
        let containerd = self.containerd(namespace).ok_or("containerd is not asked")?;
        let limit = oci_registry::MAX_MANIFEST_SIZE;
        containerd.content().read_all(digest, limit).await.map_err(|error| chain(&error))
    }
}

fn parse<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

fn of_layer(manifest: &Manifest, configuration: &Configuration, layer: &Digest) -> Result<Digest, String> {
    let Configuration { rootfs: RootFs { diff_ids } } = configuration;
    if diff_ids.len() != manifest.layers.len() {
        return Err("manifest and configuration name different numbers of layers".into());
    }
    let mut both = manifest.layers.iter().zip(diff_ids);
    let found = both.find(|(blob, _)| blob.digest == *layer).map(|(_, diff_id)| diff_id.clone());
    found.ok_or_else(|| "the image has no such layer".into())
}

/// The layer is what another image says. A layer that no image agrees with says so itself.
fn refused(record: &LazyRecord, diff_id: &Digest) {
    tracing::error!(image = %record.image, layer = %record.layer, ztoc = %record.ztoc, %diff_id, "the layer that this image's index describes is not the one of its configuration");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: char) -> String {
        format!("sha256:{}", String::from(digit).repeat(64))
    }

    #[test]
    fn a_layers_diff_id_has_its_place() {
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":1}},"layers":[{{"digest":"{}"}},{{"digest":"{}"}}]}}"#,
            digest('0'),
            digest('1'),
            digest('2')
        );
        let manifest: Manifest = parse(manifest.as_bytes()).unwrap();
        let configuration = |ids: &[char]| -> Configuration {
            let ids: Vec<String> = ids.iter().map(|digit| format!("{:?}", digest(*digit))).collect();
            let text =
                format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#, ids.join(","));
            parse(text.as_bytes()).unwrap()
        };
        let wanted: Digest = digest('2').parse().unwrap();
        assert_eq!(
            of_layer(&manifest, &configuration(&['a', 'b']), &wanted).unwrap().to_string(),
            digest('b')
        );
        assert!(of_layer(&manifest, &configuration(&['a']), &wanted).is_err());
        let other: Digest = digest('3').parse().unwrap();
        assert!(of_layer(&manifest, &configuration(&['a', 'b']), &other).is_err());
        assert!(parse::<Manifest>(b"{}").is_err());
    }
}
