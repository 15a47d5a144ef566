//! What every command starts from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use soci_proto::daemon::daemon_client::DaemonClient;
use soci_store::{Containerd, Namespace};
use tonic::transport::Channel;

use crate::args::{ContentStoreKind, GlobalArgs};
use crate::connection;
use crate::error::Error;
use crate::interrupt::Deadline;

/// How long a command may take to end in order.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// containerd, the namespace in it, and the rest of the global flags.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    containerd: Containerd,
    deadline: Deadline,
    /// Somebody else minds the deadline, and cleans up after it.
    minded: Arc<AtomicBool>,
}

impl Context {
    /// Must be called within a tokio runtime; connects with the first call to containerd.
    pub(crate) fn new(args: &GlobalArgs) -> Result<Context, Error> {
        if args.content_store == ContentStoreKind::Soci {
            tracing::debug!(root = %args.root.display(), "indices live in containerd's content store all the same");
        }
        let containerd = connection::containerd(&args.address, args.namespace.clone(), args.connect_timeout)?;
        Ok(Context { containerd, deadline: Deadline::after(args.timeout), minded: Arc::default() })
    }

    /// containerd, in the namespace of the command line.
    pub(crate) fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// The namespace of the command line.
    pub(crate) fn namespace(&self) -> &Namespace {
        self.containerd.namespace()
    }

    /// `--timeout`, for a command that ends in order when it is over, and then has [`CLEAN_UP`] for it.
    pub(crate) fn take_deadline(&self) -> Deadline {
        self.minded.store(true, Ordering::Relaxed);
        self.deadline
    }

    /// Waits until the command has to end, in order or not.
    pub(crate) async fn overdue(&self) -> Error {
        let error = self.deadline.passed().await;
        if self.minded.load(Ordering::Relaxed) {
            tokio::time::sleep(CLEAN_UP).await;
        }
        error
    }

    /// Our daemon's own service, behind the snapshotter with this name; `None` where that is one of containerd's own.
    pub(crate) async fn daemon(&self, snapshotter: &str) -> Result<Option<DaemonClient<Channel>>, Error> {
        connection::daemon(&self.containerd, snapshotter).await
    }
}
