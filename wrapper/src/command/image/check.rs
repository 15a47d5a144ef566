//! `soci image check`.

use containerd_client::services::v1::snapshots::StatSnapshotRequest;
use oci_registry::platform::Platform;
use soci_store::{Containerd, Image, StoreError};

use super::list::human;
use crate::context::Context;
use crate::error::{Error, one_line};
use crate::local_image::{self, LocalImage};
use crate::table;
use crate::terminal;

/// Arguments of `soci image check`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci image check --snapshotter soci\n  soci image check name==docker.io/library/redis:7"
)]
pub(crate) struct Args {
    /// Print only the ready image refs (fully downloaded and unpacked).
    #[arg(short, long)]
    quiet: bool,
    /// Snapshotter name.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "overlayfs")]
    snapshotter: String,
    /// Expressions of containerd's filter language.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// What of an image is here.
struct State {
    /// Config and layers, and how many of them are here.
    required: usize,
    present: usize,
    /// Their bytes.
    size: u64,
    size_present: u64,
    unpacked: bool,
}

/// Runs `soci image check`: a lazily pulled image is incomplete, and unpacked all the same.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let containerd = context.containerd();
    let mut images = containerd.images().list(&args.filters).await?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    let mut rows =
        vec![["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED", ""].map(str::to_owned).to_vec()];
    for image in &images {
        let state = match local_image::for_platform(containerd, image, &Platform::host()).await {
            Ok(local) => Some(state(containerd, &local, &args.snapshotter).await?),
            Err(error) => {
                tracing::debug!(image = image.name, error = one_line(&error), "it cannot be read");
                None
            }
        };
        if !args.quiet {
            rows.push(row(image, state.as_ref()));
        } else if state.is_some_and(|state| state.present == state.required && state.unpacked) {
            terminal::line(&image.name)?;
        }
    }
    if args.quiet {
        return Ok(());
    }
    let mut out = Vec::new();
    table::write(&mut out, table::CTR, &rows)
        .map_err(|source| Error::Io { what: "lay the table out".to_owned(), source })?;
    terminal::print(&out)
}

async fn state(containerd: &Containerd, local: &LocalImage, snapshotter: &str) -> Result<State, Error> {
    let mut state = State { required: 0, present: 0, size: 0, size_present: 0, unpacked: false };
    for blob in local.manifest.blobs() {
        state.required = state.required.saturating_add(1);
        state.size = state.size.saturating_add(blob.size());
        if containerd.content().info(blob.digest()).await?.is_some() {
            state.present = state.present.saturating_add(1);
            state.size_present = state.size_present.saturating_add(blob.size());
        }
    }
    if let Some(top) = local.layers.last() {
        let key = top.chain_id.to_string();
        let request =
            containerd.request(StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.clone() });
        let mut client = containerd.snapshots_client();
        state.unpacked = match containerd.call("snapshot", &key, client.stat(request)).await {
            Ok(_) => true,
            Err(StoreError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(state)
}

fn row(image: &Image, state: Option<&State>) -> Vec<String> {
    let (status, size, unpacked) = match state {
        Some(state) => {
            let word = if state.present == state.required { "complete" } else { "incomplete" };
            (
                format!("{word} ({}/{})", state.present, state.required),
                format!("{}/{}", human(state.size_present), human(state.size)),
                state.unpacked.to_string(),
            )
        }
        None => ("unavailable (0/?)".to_owned(), format!("{}/?", human(0)), "false".to_owned()),
    };
    vec![
        image.name.clone(),
        image.target.media_type().to_string(),
        image.target.digest().to_string(),
        status,
        size,
        unpacked,
        String::new(),
    ]
}
