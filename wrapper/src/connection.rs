//! Ways to containerd and to the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::PluginsRequest;
use soci_proto::daemon::daemon_client::DaemonClient;
use soci_store::{Containerd, MAX_MESSAGE_SIZE, Namespace, StoreError, connect};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::error::Error;

/// Our snapshotter's usual name among containerd's proxy plugins.
pub(crate) const SNAPSHOTTER: &str = "soci";
/// Where the daemon listens when nobody says otherwise.
const DEFAULT_DAEMON_ADDRESS: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
/// The daemon's own environment variable for its address.
const DAEMON_ADDRESS_VARIABLE: &str = "SOCI_SNAPSHOTTER_ADDRESS";

/// Time for one attempt to connect, where none was given.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for containerd to find a snapshotter that was restarted; its pauses between two attempts grow to several seconds.
const REJOIN: Duration = Duration::from_secs(15);
/// How long one that nobody listens for may be absent: a service manager starts it again within that.
const ABSENCE: Duration = Duration::from_secs(3);
/// Pause before it is asked again.
const REJOIN_PAUSE: Duration = Duration::from_millis(300);
/// While containerd is restarted under a container that runs, it is asked again, this often and so many times.
const RECONNECT: (Duration, u32) = (Duration::from_secs(1), 60);

/// A handle on containerd; connects with the first call.
pub(crate) fn containerd(
    address: &Path,
    namespace: Namespace,
    timeout: Duration,
) -> Result<Containerd, Error> {
    let timeout = if timeout.is_zero() { CONNECT_TIMEOUT } else { timeout };
    Ok(Containerd::new(connect(address, timeout)?, namespace))
}

/// The daemon behind the snapshotter with this name; `None` where that is one of containerd's own.
pub(crate) async fn daemon(
    containerd: &Containerd,
    snapshotter: &str,
) -> Result<Option<DaemonClient<Channel>>, Error> {
    match daemon_address(containerd, snapshotter).await {
        Some(address) => daemon_at(&address).map(Some),
        None => Ok(None),
    }
}

/// The daemon that listens there; connects with the first call.
pub(crate) fn daemon_at(address: &Path) -> Result<DaemonClient<Channel>, Error> {
    let client = DaemonClient::new(connect(address, CONNECT_TIMEOUT)?);
    // The status of many layers is long.
    Ok(client.max_decoding_message_size(MAX_MESSAGE_SIZE))
}

/// Repeats a call while containerd itself is not there. The answer to an earlier try may be lost: `call` has to bear being made twice.
pub(crate) async fn over_restarts<T>(
    mut call: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let (pause, attempts) = RECONNECT;
    let mut failures = 0_u32;
    loop {
        match call().await {
            Err(error @ StoreError::Unavailable { .. }) if failures < attempts => {
                failures = failures.saturating_add(1);
                tracing::debug!(%error, "containerd does not answer, asking again");
                tokio::time::sleep(pause).await;
            }
            answer => return answer,
        }
    }
}

/// Repeats a call that containerd passes on to the snapshotter while containerd cannot reach it, although it listens: it was restarted a
/// moment ago, or is mounting its layers again. A snapshotter that is not there within [`ABSENCE`] is an error. The answer to an earlier try may be
/// lost: `call` has to bear being made twice.
pub(crate) async fn rejoined<T>(
    containerd: &Containerd,
    snapshotter: &str,
    mut call: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let now = Instant::now();
    let (patience, absence) = (now + REJOIN, now + ABSENCE);
    let mut was_there = false;
    loop {
        match call().await {
            Err(error) if cut_off(&error) && Instant::now() < patience => {
                was_there |= listens(containerd, snapshotter).await;
                // One that was killed a moment ago is being started again.
                if !was_there && Instant::now() >= absence {
                    return Err(error);
                }
                tokio::time::sleep(REJOIN_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Whether containerd could not reach the snapshotter, or lost it while it was answering. Before containerd 2 the latter has no status of its own.
fn cut_off(error: &StoreError) -> bool {
    match error {
        StoreError::Unavailable { .. } => true,
        StoreError::Refused { message, .. } => [
            "code = Unavailable",
            "error reading from server",
            "connection reset by peer",
            "transport is closing",
        ]
        .iter()
        .any(|text| message.contains(text)),
        _ => false,
    }
}

async fn listens(containerd: &Containerd, snapshotter: &str) -> bool {
    match daemon_address(containerd, snapshotter).await {
        Some(address) => UnixStream::connect(address).await.is_ok(),
        None => false,
    }
}

/// The daemon's socket: the environment's word, else what containerd's proxy plugin exports, else the default; `None` where the snapshotter is
/// one of containerd's own.
pub(crate) async fn daemon_address(containerd: &Containerd, snapshotter: &str) -> Option<PathBuf> {
    let exported = exported_address(containerd, snapshotter).await.map(PathBuf::from);
    if exported.is_none() && snapshotter != SNAPSHOTTER {
        return None;
    }
    let environment = std::env::var_os(DAEMON_ADDRESS_VARIABLE).filter(|address| !address.is_empty());
    environment.map(PathBuf::from).or(exported).or_else(|| Some(PathBuf::from(DEFAULT_DAEMON_ADDRESS)))
}

async fn exported_address(containerd: &Containerd, snapshotter: &str) -> Option<String> {
    let filters = vec![format!("type==io.containerd.snapshotter.v1,id=={snapshotter}")];
    let request = containerd.request(PluginsRequest { filters });
    let mut client = containerd.introspection_client();
    let plugins = containerd.call("plugins", snapshotter, client.plugins(request)).await.ok()?;
    plugins.plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("address"))
}
