//! `soci image mount`.

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use oci_registry::platform::Platform;
use oci_spec::image::Digest;
use soci_store::labels::{self, Labels};
use soci_store::{Containerd, StoreError};

use crate::context::Context;
use crate::error::Error;
use crate::local_image;
use crate::mount::mount_all;
use crate::terminal;
use crate::unpack::{Prepared, Unpacker};

/// How long the snapshot stays, should nobody unmount it.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// Arguments of `soci image mount`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Snapshotter name.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "overlayfs")]
    snapshotter: String,
    /// Enable write support on the mount.
    #[arg(long)]
    rw: bool,
    /// Mount the image for the specified platform.
    #[arg(long)]
    platform: Option<String>,
    /// Image to mount.
    #[arg(value_name = "REF")]
    reference: String,
    /// Directory to mount it at.
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

/// Runs `soci image mount` and prints the target.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let platform = match &args.platform {
        Some(text) => Platform::parse(text).map_err(Error::command)?,
        None => Platform::host(),
    };
    let target = std::fs::canonicalize(&args.target)
        .map_err(|source| Error::Io { what: format!("mount at {}", args.target.display()), source })?;
    let key = target
        .to_str()
        .filter(|text| text.is_ascii())
        .ok_or_else(|| Error::Usage(format!("{} cannot be the name of a snapshot", target.display())))?;
    let containerd = context.containerd();
    let image = local_image::find(containerd, &args.reference).await?;
    let local = local_image::for_platform(containerd, &image, &platform).await.map_err(Error::command)?;

    // As in `ctr`, the lease has the name of the target and stays: it is what holds the snapshot.
    let reference = Labels::from([(labels::gc_ref_snapshot(&args.snapshotter), key.to_owned())]);
    let lease = containerd.leases().create_named(key, EXPIRY, reference).await?;
    let leased = containerd.with_lease(&lease);
    let made = async {
        let unpacker = Unpacker::new(leased.clone(), &args.snapshotter);
        let mut parent: Option<&Digest> = None;
        for layer in &local.layers {
            if let Prepared::Active { key, mounts } = unpacker.prepare(layer, parent, Labels::new()).await?
                && let Err(error) = unpacker.fill(layer, key, mounts).await
            {
                unpacker.abandon().await;
                return Err(error);
            }
            parent = Some(&layer.chain_id);
        }
        let parent = parent.map(Digest::to_string).unwrap_or_default();
        let mounts = snapshot(&leased, &args, key, parent).await?;
        let place = target.clone();
        let mounted = tokio::task::spawn_blocking(move || mount_all(&mounts, &place)).await;
        if let Err(error) = mounted.map_err(Error::command)?.map_err(Error::command) {
            remove(&leased, &args.snapshotter, key).await?;
            return Err(error);
        }
        Ok(())
    };
    if let Err(error) = made.await {
        containerd.leases().delete(&lease).await?;
        return Err(error);
    }
    terminal::line(&args.target.display().to_string())
}

/// The snapshot that is mounted, by the name of its target.
async fn snapshot(
    containerd: &Containerd,
    args: &Args,
    key: &str,
    parent: String,
) -> Result<Vec<containerd_client::types::Mount>, Error> {
    let (snapshotter, key, labels) = (args.snapshotter.clone(), key.to_owned(), Labels::new());
    let mut client = containerd.snapshots_client();
    Ok(if args.rw {
        let request = PrepareSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        containerd.call("prepare snapshot", &key, client.prepare(containerd.request(request))).await?.mounts
    } else {
        let request = ViewSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        containerd.call("view snapshot", &key, client.view(containerd.request(request))).await?.mounts
    })
}

/// Removes a snapshot; one that is gone is no error.
pub(super) async fn remove(containerd: &Containerd, snapshotter: &str, key: &str) -> Result<(), Error> {
    let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    let mut client = containerd.snapshots_client();
    match containerd.call("remove snapshot", key, client.remove(containerd.request(request))).await {
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
