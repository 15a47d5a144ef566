//! A handle on one containerd and one namespace.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::time::{Duration, Instant};

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::artifact::Artifacts;
use crate::container::Containers;
use crate::content::ContentStore;
use crate::error::StoreError;
use crate::image::Images;
use crate::lease::{Lease, Leases};

/// Largest message in either direction, bytes: containerd's own limit (tonic's default is 4 MiB).
pub const MAX_MESSAGE_SIZE: usize = 16 << 20;

/// Defaults of [`Containerd::with_deadline`] and [`Containerd::with_patience`].
const CALL_DEADLINE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(600);

const NAMESPACE_HEADER: &str = "containerd-namespace";
const LEASE_HEADER: &str = "containerd-lease";

/// Name of a containerd namespace: letters and digits joined by `-`, `_` or `.`, at most 76 of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace(String);

/// A name that containerd would not take for a namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a valid namespace")]
pub struct NamespaceError {
    name: String,
}

impl Namespace {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;

    fn from_str(name: &str) -> Result<Namespace, NamespaceError> {
        let valid = name.len() <= 76
            && name
                .split(['-', '_', '.'])
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()));
        if valid { Ok(Namespace(name.to_owned())) } else { Err(NamespaceError { name: name.to_owned() }) }
    }
}

/// One containerd, one namespace, and perhaps a lease that everything made through this handle belongs to.
///
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    namespace: Namespace,
    lease: Option<String>,
    deadline: Duration,
    patience: Duration,
}

macro_rules! client {
    ($(#[$doc:meta])* $name:ident, $client:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_SIZE)
                .max_encoding_message_size(MAX_MESSAGE_SIZE)
        }
    };
}

impl Containerd {
    /// A handle on what [`crate::connect`] gave, for one namespace.
    #[must_use]
    pub fn new(channel: Channel, namespace: Namespace) -> Containerd {
        Containerd { channel, namespace, lease: None, deadline: CALL_DEADLINE, patience: PATIENCE }
    }

    /// The same containerd, another namespace, no lease.
    #[must_use]
    pub fn with_namespace(&self, namespace: Namespace) -> Containerd {
        Containerd { namespace, lease: None, ..self.clone() }
    }

    /// The same, with every request made under `lease`: what it creates lives at least as long as the lease.
    #[must_use]
    pub fn with_lease(&self, lease: &Lease) -> Containerd {
        Containerd { lease: Some(lease.id().to_owned()), ..self.clone() }
    }

    /// The same, with another deadline for each call (default 30 s).
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Containerd {
        Containerd { deadline, ..self.clone() }
    }

    /// The same, with another limit to the time that somebody else's ingest of a blob is waited for (default 10 min).
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Containerd {
        Containerd { patience, ..self.clone() }
    }

    /// The namespace that requests name.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The channel below.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// How long a call may take.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Content store.
    #[must_use]
    pub fn content(&self) -> ContentStore {
        ContentStore::new(self.clone())
    }

    /// Images.
    #[must_use]
    pub fn images(&self) -> Images {
        Images::new(self.clone())
    }

    /// Leases.
    #[must_use]
    pub fn leases(&self) -> Leases {
        Leases::new(self.clone())
    }

    /// Containers.
    #[must_use]
    pub fn containers(&self) -> Containers {
        Containers::new(self.clone())
    }

    /// SOCI artifacts among the content.
    #[must_use]
    pub fn artifacts(&self) -> Artifacts {
        Artifacts::new(self.clone())
    }

    client!(
        /// Generated client of the content service; wrap requests with [`Containerd::request`].
        content_client, ContentClient);
    client!(
        /// Generated client of the images service; wrap requests with [`Containerd::request`].
        images_client, ImagesClient);
    client!(
        /// Generated client of the leases service; wrap requests with [`Containerd::request`].
        leases_client, LeasesClient);
    client!(
        /// Generated client of the snapshots service; wrap requests with [`Containerd::request`].
        snapshots_client, SnapshotsClient);
    client!(
        /// Generated client of the diff service; wrap requests with [`Containerd::request`].
        diff_client, DiffClient);
    client!(
        /// Generated client of the containers service; wrap requests with [`Containerd::request`].
        containers_client, ContainersClient);
    client!(
        /// Generated client of the tasks service; wrap requests with [`Containerd::request`].
        tasks_client, TasksClient);
    client!(
        /// Generated client of the events service; its subscription answers with the first event, not before.
        events_client, EventsClient);
    client!(
        /// Generated client of the introspection service; wrap requests with [`Containerd::request`].
        introspection_client, IntrospectionClient);
    client!(
        /// Generated client of the namespaces service; wrap requests with [`Containerd::request`].
        namespaces_client, NamespacesClient);

    /// A request with the namespace and, where there is one, the lease in its metadata.
    pub fn request<T>(&self, message: T) -> Request<T> {
        self.request_under(self.lease.as_deref(), message)
    }

    pub(crate) fn request_under<T>(&self, lease: Option<&str>, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // Both are ASCII: a namespace by its type, a lease by `Lease`'s constructor.
        if let Ok(value) = MetadataValue::from_str(self.namespace.as_str()) {
            request.metadata_mut().insert(NAMESPACE_HEADER, value);
        }
        if let Some(Ok(value)) = lease.map(MetadataValue::from_str) {
            request.metadata_mut().insert(LEASE_HEADER, value);
        }
        request
    }

    pub(crate) fn lease_id(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// Waits for a call, at most this handle's deadline, and types its failure.
    ///
    /// # Errors
    /// [`StoreError::Deadline`], or whatever containerd answered, with `operation` and `subject` in it.
    pub async fn call<T>(
        &self,
        operation: &'static str,
        subject: &str,
        future: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let answer = tokio::time::timeout(self.deadline, future).await;
        tracing::trace!(operation, subject, took = ?started.elapsed(), "call to containerd");
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(StoreError::from_status(operation, subject, &status)),
            Err(_) => {
                Err(StoreError::Deadline { operation, subject: subject.to_owned(), limit: self.deadline })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces() {
        for good in ["default", "k8s.io", "moby", "a-b_c.d", &"a".repeat(76)] {
            assert!(good.parse::<Namespace>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "-a", "a..b", "ä", &"a".repeat(77)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
    }
}
