//! `soci create`.

mod prefetch;

use std::path::PathBuf;
use std::thread::available_parallelism;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use oci_registry::platform::Platform;
use oci_spec::image::{Descriptor, Digest};
use soci_index::{IndexBuilder, LayerCompression, LayerVerdict, SkipReason, ZtocRecord, classify};
use soci_store::{Containerd, IndexTarget};
use thiserror::Error;
use ztoc::Ztoc;

use crate::context::Context;
use crate::error::{Error, one_line};
use crate::image::{Layer, short};
use crate::layer_ztoc::{self, MAX_ZTOC};
use crate::local_image::{self, LocalImage};
use crate::pull::under_lease;
use crate::terminal::Progress;

/// The one `--optimizations` that there is.
const XATTR: &str = "xattr";

/// Arguments of `soci create`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci create docker.io/library/redis:7\n  soci create --min-layer-size 0 --span-size 1048576 docker.io/library/redis:7"
)]
pub(crate) struct Args {
    /// Image to index, as `soci image ls` names it.
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// Index all platforms of the image.
    #[arg(long)]
    all_platforms: bool,
    /// Index content for a specific platform (the host's by default).
    #[arg(long, short, value_parser = Platform::parse)]
    platform: Vec<Platform>,
    /// Span size, in bytes of uncompressed data.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, allow_negative_numbers = true)]
    span_size: i64,
    /// Minimum layer size to build a zTOC for, in bytes; smaller layers get none.
    #[arg(long, value_name = "BYTES", default_value_t = 10 << 20, allow_negative_numbers = true)]
    min_layer_size: i64,
    /// Enable an optimization; only `xattr` is known: marks layers that have no extended attributes.
    #[arg(long, value_name = "NAME")]
    optimizations: Vec<String>,
    /// Build zTOCs even where there are matching ones.
    #[arg(long, short)]
    force: bool,
    /// Path inside the image to record for prefetching.
    #[arg(long, value_name = "PATH")]
    prefetch_file: Vec<String>,
    /// File with a JSON array of paths inside the image to record for prefetching.
    #[arg(long, value_name = "FILE")]
    prefetch_files_json: Option<PathBuf>,
}

/// Why there is no index.
#[derive(Debug, Error)]
enum CreateError {
    #[error("no ztocs created, all layers either skipped or produced errors")]
    Nothing,
    #[error("{0:?} in SOURCE_DATE_EPOCH is not a number of seconds")]
    SourceDate(String),
}

/// What a run is asked for.
#[derive(Debug)]
struct Job {
    containerd: Containerd,
    progress: Progress,
    span_size: u64,
    min_layer_size: u64,
    mark_xattrs: bool,
    force: bool,
    prefetch: Vec<String>,
    created_at: Timestamp,
}

/// A layer's zTOC in the content store.
#[derive(Debug)]
struct Indexed {
    record: ZtocRecord,
    /// Kept only where files are looked up in it.
    ztoc: Option<Ztoc>,
}

/// Runs `soci create`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let usage = |text: &str| Error::Usage(text.to_owned());
    let name = args.image.as_deref().ok_or_else(|| usage("source image needs to be specified"))?;
    let min_layer_size =
        u64::try_from(args.min_layer_size).map_err(|_| usage("min layer size must be >= 0"))?;
    let span_size = u64::try_from(args.span_size).map_err(|_| usage("span size must be >= 0"))?;
    if let Some(unknown) = args.optimizations.iter().find(|name| *name != XATTR) {
        return Err(Error::Usage(format!("optimization {unknown} is not a valid optimization [{XATTR}]")));
    }
    let prefetch =
        prefetch::paths(&args.prefetch_file, args.prefetch_files_json.as_deref()).map_err(Error::command)?;
    let image = local_image::find(context.containerd(), name).await?;
    under_lease(context, |containerd| {
        let work = async {
            let job = Job {
                progress: Progress::new(),
                span_size,
                min_layer_size,
                mark_xattrs: !args.optimizations.is_empty(),
                force: args.force,
                prefetch,
                created_at: created_at()?,
                containerd,
            };
            let platforms =
                local_image::wanted_platforms(&job.containerd, &image, args.all_platforms, &args.platform)
                    .await
                    .map_err(Error::command)?;
            let mut any = false;
            for local in &platforms {
                let indexed = job.index(local).await?;
                if !indexed && platforms.len() > 1 {
                    job.progress.notice(&format!("no layer of {} gets a zTOC", local.platform));
                }
                any |= indexed;
            }
            if any { Ok(()) } else { Err(Error::command(CreateError::Nothing)) }
        };
        (work, async || ())
    })
    .await
}

impl Job {
    /// Makes and stores the index of one platform; false where no layer got a zTOC.
    async fn index(&self, local: &LocalImage) -> Result<bool, Error> {
        let width = available_parallelism().map_or(1, usize::from);
        // In the order of the layers, whichever is ready first.
        let layers: Vec<Option<Indexed>> = futures_util::stream::iter(&local.layers)
            .map(|layer| self.layer(layer))
            .buffered(width)
            .map(|indexed| {
                let (line, indexed) = indexed?;
                self.progress.line(&line)?;
                Ok::<_, Error>(indexed)
            })
            .try_collect()
            .await?;
        let indexed: Vec<Indexed> = layers.into_iter().flatten().collect();
        if indexed.is_empty() {
            return Ok(false);
        }
        let mut builder = IndexBuilder::v1(local.descriptor.clone());
        for layer in &indexed {
            builder.add_ztoc(layer.record.clone());
        }
        let tocs: Vec<(&Digest, &Ztoc)> = indexed
            .iter()
            .filter_map(|layer| Some((&layer.record.layer_digest, layer.ztoc.as_ref()?)))
            .collect();
        let found = prefetch::find(&self.prefetch, &tocs);
        for path in &found.missing {
            self.progress.notice(&format!("{path} is in no layer that has a zTOC"));
        }
        for (layer, spans) in found.spans {
            let bytes = Bytes::from(spans.to_json());
            let stored = self.containerd.artifacts().store_prefetch(None, bytes, &layer).await?;
            self.progress
                .line(&format!("Created prefetch artifact for layer {layer}: {}", stored.digest()))?;
            builder.add_prefetch(&layer, stored.digest().clone(), stored.size());
        }
        let target = IndexTarget {
            image_digest: local.descriptor.digest().clone(),
            platform: local.platform.to_string(),
            created_at: self.created_at,
        };
        let json = Bytes::from(builder.build().to_json());
        self.containerd.artifacts().store_index(None, json, &target).await?;
        Ok(true)
    }

    /// The line to print for a layer, and its zTOC if it gets one.
    async fn layer(&self, layer: &Layer) -> Result<(String, Option<Indexed>), Error> {
        let digest = layer.blob.digest();
        let media_type = layer.blob.media_type().to_string();
        let skipped = |why: &str| (format!("layer {digest} -> ztoc skipped: {media_type}, {why}"), None);
        let compression =
            match classify(&media_type, layer.blob.size(), self.min_layer_size).map_err(Error::command)? {
                LayerVerdict::Index(compression) => compression,
                LayerVerdict::Skip(reason) => {
                    let why = reason_in_words(reason, layer.blob.size(), self.min_layer_size);
                    return Ok(skipped(&why));
                }
            };
        if !self.force
            && let Some(found) = self.existing(layer).await?
        {
            return Ok((
                format!("layer {digest} -> ztoc {} (already exists)", found.record.digest),
                Some(found),
            ));
        }
        match self.build(layer, compression).await? {
            Some(built) => Ok((format!("layer {digest} -> ztoc {}", built.record.digest), Some(built))),
            None => Ok(skipped("cannot be indexed")),
        }
    }

    /// The zTOC that is there for this layer and span size, now held by our lease.
    async fn existing(&self, layer: &Layer) -> Result<Option<Indexed>, Error> {
        let artifacts = self.containerd.artifacts();
        let Some(record) = artifacts.find_ztoc(layer.blob.digest(), self.span_size).await? else {
            return Ok(None);
        };
        let bytes = match self.containerd.content().read_all(&record.digest, MAX_ZTOC).await {
            Ok(bytes) => bytes,
            // Collected between the look-up and now.
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Labels can be set by anybody: a zTOC that is none, or of another blob, is made anew.
        let ztoc = match Ztoc::decode(&bytes) {
            Ok(ztoc) if ztoc.compressed_size == layer.blob.size() => ztoc,
            _ => return Ok(None),
        };
        self.store(layer, ztoc, bytes).await.map(Some)
    }

    async fn build(&self, layer: &Layer, compression: LayerCompression) -> Result<Option<Indexed>, Error> {
        let transfer = self.progress.transfer(&short(&layer.blob), layer.blob.size());
        let ztoc =
            match layer_ztoc::build(&self.containerd, layer, compression, self.span_size, transfer).await {
                Ok(ztoc) => ztoc,
                Err(error) => {
                    let Some(reason) = error.unindexable() else { return Err(Error::command(error)) };
                    self.progress.notice(&format!("{}: {}", layer.blob.digest(), one_line(reason)));
                    return Ok(None);
                }
            };
        let bytes = Bytes::from(ztoc.encode());
        self.store(layer, ztoc, bytes).await.map(Some)
    }

    async fn store(&self, layer: &Layer, ztoc: Ztoc, bytes: Bytes) -> Result<Indexed, Error> {
        let digest = layer.blob.digest();
        let stored: Descriptor =
            self.containerd.artifacts().store_ztoc(None, bytes, digest, Some(self.span_size)).await?;
        let record = ZtocRecord {
            digest: stored.digest().clone(),
            size: stored.size(),
            layer_digest: digest.clone(),
            layer_media_type: layer.blob.media_type().to_string(),
            span_size: self.span_size,
            disable_xattrs: self.mark_xattrs && has_no_xattrs(&ztoc),
        };
        Ok(Indexed { record, ztoc: (!self.prefetch.is_empty()).then_some(ztoc) })
    }
}

/// Why a layer gets no zTOC, as the Go project says it.
fn reason_in_words(reason: SkipReason, size: u64, min_layer_size: u64) -> String {
    let unsupported = "compressed in an unsupported format. expect: [tar, gzip, unknown] but got";
    match reason {
        SkipReason::TooSmall => format!("size {size} is less than min-layer-size {min_layer_size}"),
        SkipReason::Zstd => format!("{unsupported} \"zstd\""),
        SkipReason::Unsupported => format!("{unsupported} another"),
        SkipReason::PrefetchArtifact => "is a prefetch artifact".to_owned(),
    }
}

/// Upstream's rule: no extended attribute, and no opaque directory, which is one in the end.
fn has_no_xattrs(ztoc: &Ztoc) -> bool {
    ztoc.entries.iter().all(|entry| entry.xattrs().next().is_none() && !entry.name.ends_with(b".wh..wh..opq"))
}

/// Now, or what `SOURCE_DATE_EPOCH` says: artifacts made twice are then the same.
fn created_at() -> Result<Timestamp, Error> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(Timestamp::now());
    };
    let text = text.to_string_lossy();
    text.parse()
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .ok_or_else(|| Error::command(CreateError::SourceDate(text.into_owned())))
}
