//! Ways to containerd and to the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::PluginsRequest;
use soci_proto::daemon::daemon_client::DaemonClient;
use soci_store::{Containerd, Namespace, connect};
use tonic::transport::Channel;

use crate::error::Error;

/// Where the daemon listens when nobody says otherwise.
const DEFAULT_DAEMON_ADDRESS: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
/// The daemon's own environment variable for its address.
const DAEMON_ADDRESS_VARIABLE: &str = "SOCI_SNAPSHOTTER_ADDRESS";

/// Time for one attempt to connect, where none was given.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A handle on containerd; connects with the first call.
pub(crate) fn containerd(
    address: &Path,
    namespace: Namespace,
    timeout: Duration,
) -> Result<Containerd, Error> {
    let timeout = if timeout.is_zero() { CONNECT_TIMEOUT } else { timeout };
    Ok(Containerd::new(connect(address, timeout)?, namespace))
}

/// The daemon behind the proxy plugin `snapshotter`, at the address that [`daemon_address`] finds.
pub(crate) async fn daemon(
    containerd: &Containerd,
    snapshotter: &str,
) -> Result<DaemonClient<Channel>, Error> {
    let address = daemon_address(containerd, snapshotter).await;
    Ok(DaemonClient::new(connect(&address, CONNECT_TIMEOUT)?))
}

/// The daemon's socket: the environment's word, else what containerd's proxy plugin exports, else the default.
async fn daemon_address(containerd: &Containerd, snapshotter: &str) -> PathBuf {
    if let Some(address) = std::env::var_os(DAEMON_ADDRESS_VARIABLE).filter(|address| !address.is_empty()) {
        return PathBuf::from(address);
    }
    match exported_address(containerd, snapshotter).await {
        Some(address) => PathBuf::from(address),
        None => PathBuf::from(DEFAULT_DAEMON_ADDRESS),
    }
}

async fn exported_address(containerd: &Containerd, snapshotter: &str) -> Option<String> {
    let filters = vec![format!("type==io.containerd.snapshotter.v1,id=={snapshotter}")];
    let request = containerd.request(PluginsRequest { filters });
    let mut client = containerd.introspection_client();
    let plugins = containerd.call("plugins", snapshotter, client.plugins(request)).await.ok()?;
    plugins.plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("address"))
}
