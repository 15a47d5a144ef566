//! `soci image status`: how far lazily mounted layers are, in the daemon's own words.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_registry::Reference;
use oci_registry::platform::Platform;
use serde::Serialize;
use soci_proto::daemon::{Completeness, LayerStatus, StatusRequest, Waits};
use soci_store::StoreError;

use super::list::human;
use crate::connection::{self, SNAPSHOTTER};
use crate::context::Context;
use crate::error::Error;
use crate::{local_image, table, terminal};

/// Pause between two looks of `--watch`.
const PAUSE: Duration = Duration::from_secs(1);
/// Cursor to the top left, everything below it erased.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Arguments of `soci image status`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci image status docker.io/library/redis:7\n  soci image status --json | jq '.[] | select(.state != \"complete\")'"
)]
pub(crate) struct Args {
    /// Snapshotter name.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = SNAPSHOTTER)]
    snapshotter: String,
    /// Print JSON: bytes, and microseconds.
    #[arg(long)]
    json: bool,
    /// Look again every second, until interrupted.
    #[arg(short, long)]
    watch: bool,
    /// Only the layers of this image.
    #[arg(value_name = "REF")]
    reference: Option<String>,
}

/// Why there is nothing to be told.
#[derive(Debug, thiserror::Error)]
enum StatusError {
    /// A snapshotter of containerd's own.
    #[error("{0} is no proxy snapshotter: it has no layers that come when they are read")]
    NotOurs(String),
    /// Nobody there.
    #[error("soci-snapshotter-grpc does not answer on {}: {message}", address.display())]
    NoDaemon {
        /// Its socket.
        address: PathBuf,
        /// What the system said.
        message: String,
    },
    /// Unpacked the ordinary way, or not pulled at all.
    #[error("no layer of {0} is mounted lazily in this namespace")]
    NoLayers(String),
}

/// One layer as it is printed.
#[derive(Debug, Serialize)]
struct Layer {
    image: String,
    namespace: String,
    layer: String,
    state: &'static str,
    /// Bytes of the uncompressed layer, and how many of them are here.
    size: u64,
    present: u64,
    spans: u64,
    spans_present: u64,
    fetched: Fetched,
    reads_that_waited: u64,
    waits: Waited,
    headers_refused: u64,
    front_end: String,
    mount_point: String,
}

/// Compressed bytes, by the reason why they were fetched.
#[derive(Debug, Serialize)]
struct Fetched {
    on_demand: u64,
    read_ahead: u64,
    trace: u64,
    fill: u64,
}

/// How long reads waited, microseconds.
#[derive(Debug, Default, Serialize)]
struct Waited {
    count: u64,
    p50_us: u64,
    p99_us: u64,
    longest_us: u64,
}

/// Runs `soci image status`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let Some(address) = connection::daemon_address(context.containerd(), &args.snapshotter).await else {
        return Err(Error::command(StatusError::NotOurs(args.snapshotter)));
    };
    let image = args.reference.as_deref().map(|text| match Reference::parse(text) {
        Ok(reference) => reference.to_string(),
        Err(_) => text.to_owned(),
    });
    loop {
        let layers = layers(context, &address, image.as_deref()).await?;
        if let Some(image) = image.as_ref().filter(|_| layers.is_empty() && !args.watch) {
            return Err(Error::command(StatusError::NoLayers(image.clone())));
        }
        if args.watch && !args.json && std::io::stdout().is_terminal() {
            terminal::print(CLEAR.as_bytes())?;
        }
        print(&layers, args.json)?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn layers(context: &Context, address: &Path, image: Option<&str>) -> Result<Vec<Layer>, Error> {
    let mut daemon = connection::daemon_at(address)?;
    let manifest_digest = match image {
        Some(image) => manifest_of(context, image).await.unwrap_or_default(),
        None => String::new(),
    };
    let request = StatusRequest { image_ref: image.unwrap_or_default().to_owned(), manifest_digest };
    let answer = context.containerd().call("status of", "the snapshotter", daemon.status(request)).await;
    let answer = answer.map_err(|error| match error {
        StoreError::Unavailable { message, .. } => {
            Error::command(StatusError::NoDaemon { address: address.to_owned(), message })
        }
        error => error.into(),
    })?;
    let namespace = context.namespace().as_str();
    // A layer whose namespace the daemon could not know may be anybody's.
    let ours = |layer: &LayerStatus| layer.namespace.is_empty() || layer.namespace == namespace;
    let mut layers: Vec<Layer> = answer.layers.into_iter().filter(ours).map(Layer::from).collect();
    // The lowest layer of an image comes first already.
    layers.sort_by(|a, b| a.image.cmp(&b.image));
    Ok(layers)
}

/// Its layers may have been mounted when it had another name. None where containerd does not know it by this one.
async fn manifest_of(context: &Context, image: &str) -> Option<String> {
    let containerd = context.containerd();
    let image = local_image::find(containerd, image).await.ok()?;
    let found = local_image::for_platform(containerd, &image, &Platform::host()).await.ok()?;
    Some(found.descriptor.digest().to_string())
}

fn print(layers: &[Layer], json: bool) -> Result<(), Error> {
    if json {
        return terminal::line(&serde_json::to_string_pretty(layers).map_err(Error::command)?);
    }
    let mut out = Vec::new();
    table::write(&mut out, table::CTR, &cells(layers))
        .map_err(|source| Error::Io { what: "lay the table out".to_owned(), source })?;
    terminal::print(&out)
}

fn cells(layers: &[Layer]) -> Vec<Vec<String>> {
    const HEAD: [&str; 16] = [
        "REF",
        "LAYER",
        "STATE",
        "PRESENT",
        "SIZE",
        "SPANS",
        "ON-DEMAND",
        "READ-AHEAD",
        "TRACE",
        "FILL",
        "WAITED",
        "P50",
        "P99",
        "LONGEST",
        "FRONT-END",
        "MOUNT-POINT",
    ];
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(layers.iter().map(|layer| {
        let fetched = &layer.fetched;
        vec![
            layer.image.clone(),
            layer.layer.chars().take("sha256:".len().saturating_add(12)).collect(),
            layer.state.to_owned(),
            // Without blanks, so that columns stay columns to other programs.
            short(layer.present),
            short(layer.size),
            format!("{}/{}", layer.spans_present, layer.spans),
            short(fetched.on_demand),
            short(fetched.read_ahead),
            short(fetched.trace),
            short(fetched.fill),
            layer.reads_that_waited.to_string(),
            time(layer.waits.count, layer.waits.p50_us),
            time(layer.waits.count, layer.waits.p99_us),
            time(layer.waits.count, layer.waits.longest_us),
            if layer.front_end.is_empty() { "-".to_owned() } else { layer.front_end.replace(' ', "-") },
            layer.mount_point.clone(),
        ]
    }));
    rows
}

fn short(bytes: u64) -> String {
    human(bytes).replace(' ', "")
}

fn time(count: u64, micros: u64) -> String {
    if count == 0 { "-".to_owned() } else { format!("{:.1?}", Duration::from_micros(micros)) }
}

// === impl Layer ===

impl From<LayerStatus> for Layer {
    fn from(layer: LayerStatus) -> Layer {
        let state = match layer.completeness() {
            Completeness::Incomplete => "incomplete",
            Completeness::Unchecked => "unchecked",
            Completeness::Complete => "complete",
            Completeness::Refused => "refused",
        };
        Layer {
            state,
            size: layer.size,
            present: layer.present,
            spans: layer.spans,
            spans_present: layer.spans_present,
            fetched: Fetched {
                on_demand: layer.fetched_on_demand,
                read_ahead: layer.fetched_by_read_ahead,
                trace: layer.fetched_by_trace,
                fill: layer.fetched_by_fill,
            },
            reads_that_waited: layer.reads_that_waited,
            waits: layer.waits.map(Waited::from).unwrap_or_default(),
            headers_refused: layer.headers_refused,
            front_end: layer.front_end,
            image: layer.image_ref,
            namespace: layer.namespace,
            layer: layer.layer_digest,
            mount_point: layer.mount_point,
        }
    }
}

impl From<Waits> for Waited {
    fn from(waits: Waits) -> Waited {
        let micros = |duration: Option<prost_types::Duration>| {
            let duration =
                duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default();
            u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
        };
        Waited {
            count: waits.count,
            p50_us: micros(waits.p50),
            p99_us: micros(waits.p99),
            longest_us: micros(waits.longest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_one_row_without_blanks_in_its_cells() {
        let duration = |nanos| Some(prost_types::Duration { seconds: 1, nanos });
        let layer = Layer::from(LayerStatus {
            image_ref: "docker.io/library/x:1".into(),
            layer_digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            size: 10 << 20,
            present: 1536,
            completeness: Completeness::Refused.into(),
            front_end: "kernel over fuse".into(),
            waits: Some(Waits { count: 2, p50: duration(500_000), p99: duration(0), longest: None }),
            ..LayerStatus::default()
        });
        let rows = cells(&[layer]);
        assert_eq!(rows[0].len(), rows[1].len());
        let row = rows[1].join(" ");
        assert!(
            row.starts_with("docker.io/library/x:1 sha256:0123456789ab refused 1.5KiB 10.0MiB 0/0 "),
            "{row}"
        );
        assert!(row.contains(" 1.0s 1.0s 0.0ns kernel-over-fuse "), "{row}");
        assert!(rows[1].iter().all(|cell| !cell.contains(' ')), "{row}");
    }

    #[test]
    fn json_counts_in_bytes_and_microseconds() {
        let waits = Waits {
            count: 3,
            p50: Some(prost_types::Duration { seconds: 0, nanos: 2_500_000 }),
            ..Waits::default()
        };
        let layer =
            Layer::from(LayerStatus { fetched_by_fill: 7, waits: Some(waits), ..LayerStatus::default() });
        let json = serde_json::to_value(&layer).unwrap();
        assert_eq!(json["fetched"]["fill"], 7);
        assert_eq!(json["waits"]["p50_us"], 2500);
        assert_eq!(json["state"], "incomplete");
        let unchecked =
            LayerStatus { completeness: Completeness::Unchecked.into(), ..LayerStatus::default() };
        assert_eq!(Layer::from(unchecked).state, "unchecked");
    }
}
