//! `soci image mount`.

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::types::Mount;
use oci_registry::platform::Platform;
use oci_spec::image::Digest;
use soci_store::labels::{self, Labels};
use soci_store::{Containerd, StoreError};

use crate::context::Context;
use crate::error::{Error, one_line};
use crate::interrupt::Interrupts;
use crate::local_image::{self, LocalImage};
use crate::mount::mount_all;
use crate::terminal::{self, Progress};
use crate::unpack::{Prepared, Unpacker};

/// How long the snapshot stays, should nobody unmount it.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// Arguments of `soci image mount`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci image mount docker.io/library/redis:7 /mnt\n  soci image mount --snapshotter soci --rw docker.io/library/redis:7 /mnt"
)]
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

    let mut interrupts = Interrupts::listen(context)?;
    // As in `ctr`, the lease has the name of the target and stays: it is what holds the snapshot. One that is there may hold a live mount's.
    let reference = Labels::from([(labels::gc_ref_snapshot(&args.snapshotter), key.to_owned())]);
    let leases = containerd.leases();
    let (lease, made) = match leases.create_new(key, EXPIRY, reference.clone()).await {
        Err(StoreError::AlreadyExists { .. }) => (leases.create_named(key, EXPIRY, reference).await?, false),
        lease => (lease?, true),
    };
    let leased = containerd.with_lease(&lease);
    let unpacker = Unpacker::new(leased.clone(), &args.snapshotter);
    let prepared = interrupts.unless(async {
        let parent = unpack(&unpacker, &local).await?;
        snapshot(&leased, &args, key, parent).await
    });
    let mounted = match prepared.await {
        Ok(mounts) => mount(&leased, &args, key, mounts, target.clone()).await,
        Err(error) => Err(error),
    };
    if let Err(error) = mounted {
        let cleaned = async {
            unpacker.abandon().await;
            // Collected at once: a snapshot may have been made by a call that we did not wait for.
            if made && let Err(error) = leases.delete_and_collect(&lease).await {
                tracing::warn!(
                    lease = lease.id(),
                    error = one_line(&error),
                    "the lease stays until it expires"
                );
            }
        };
        interrupts.clean_up(cleaned).await;
        return Err(error);
    }
    terminal::line(&args.target.display().to_string())
}

/// Unpacks what is not unpacked, and gives the name of the top snapshot.
async fn unpack(unpacker: &Unpacker, local: &LocalImage) -> Result<String, Error> {
    let progress = Progress::new();
    let mut parent: Option<&Digest> = None;
    for layer in &local.layers {
        let _working = progress.work(&format!("unpacking {}", layer.blob.digest()));
        if let Prepared::Active { key, mounts } = unpacker.prepare(layer, parent, Labels::new()).await? {
            unpacker.fill(layer, key, mounts).await?;
        }
        parent = Some(&layer.chain_id);
    }
    Ok(parent.map(Digest::to_string).unwrap_or_default())
}

/// Mounts the snapshot, or removes it. Not cut short: nobody would know what is mounted.
async fn mount(
    containerd: &Containerd,
    args: &Args,
    key: &str,
    mounts: Vec<Mount>,
    target: PathBuf,
) -> Result<(), Error> {
    let mounted = tokio::task::spawn_blocking(move || mount_all(&mounts, &target)).await;
    let outcome = mounted.map_err(Error::command).and_then(|outcome| outcome.map_err(Error::command));
    if outcome.is_err()
        && let Err(error) = remove(containerd, &args.snapshotter, key).await
    {
        tracing::warn!(key, error = one_line(&error), "the snapshot stays until its lease expires");
    }
    outcome
}

/// The snapshot that is mounted, by the name of its target.
async fn snapshot(
    containerd: &Containerd,
    args: &Args,
    key: &str,
    parent: String,
) -> Result<Vec<Mount>, Error> {
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
