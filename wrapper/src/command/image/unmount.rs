//! `soci image unmount`.

use std::path::PathBuf;

use super::mount::remove;
use crate::context::Context;
use crate::error::Error;
use crate::mount::unmount_all;
use crate::terminal;

/// Arguments of `soci image unmount`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci image unmount /mnt\n  soci image unmount --snapshotter soci --rm /mnt"
)]
pub(crate) struct Args {
    /// Snapshotter name.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "overlayfs")]
    snapshotter: String,
    /// Remove the snapshot after a successful unmount.
    #[arg(long)]
    rm: bool,
    /// Directory that the image is mounted at.
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

/// Runs `soci image unmount` and prints the target.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let target = std::fs::canonicalize(&args.target)
        .map_err(|source| Error::Io { what: format!("unmount {}", args.target.display()), source })?;
    let place = target.clone();
    let unmounted = tokio::task::spawn_blocking(move || unmount_all(&place)).await;
    unmounted.map_err(Error::command)?.map_err(Error::command)?;
    if args.rm
        && let Some(key) = target.to_str()
    {
        let containerd = context.containerd();
        containerd.leases().delete_named(key).await?;
        remove(containerd, &args.snapshotter, key).await?;
    }
    terminal::line(&args.target.display().to_string())
}
