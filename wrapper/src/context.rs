//! What every command starts from.

use std::time::Duration;

use soci_proto::daemon::daemon_client::DaemonClient;
use soci_store::{Containerd, Namespace};
use tonic::transport::Channel;

use crate::args::{ContentStoreKind, GlobalArgs};
use crate::connection;
use crate::error::Error;

/// containerd, the namespace in it, and the rest of the global flags.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    containerd: Containerd,
    timeout: Option<Duration>,
}

impl Context {
    /// Must be called within a tokio runtime; connects with the first call to containerd.
    pub(crate) fn new(args: &GlobalArgs) -> Result<Context, Error> {
        if args.content_store == ContentStoreKind::Soci {
            tracing::debug!(root = %args.root.display(), "indices live in containerd's content store all the same");
        }
        let containerd = connection::containerd(&args.address, args.namespace.clone(), args.connect_timeout)?;
        Ok(Context { containerd, timeout: (!args.timeout.is_zero()).then_some(args.timeout) })
    }

    /// containerd, in the namespace of the command line.
    pub(crate) fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// The namespace of the command line.
    pub(crate) fn namespace(&self) -> &Namespace {
        self.containerd.namespace()
    }

    /// `--timeout`; applied to the whole command by `main`.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Our daemon's own service, behind the snapshotter with this name; `None` where that is one of containerd's own.
    pub(crate) async fn daemon(&self, snapshotter: &str) -> Result<Option<DaemonClient<Channel>>, Error> {
        connection::daemon(&self.containerd, snapshotter).await
    }
}
