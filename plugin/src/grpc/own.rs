//! Our own service: credentials in, status out.

use std::sync::Arc;
use std::time::Instant;

use soci_proto::daemon as pb;
use soci_proto::daemon::daemon_server::Daemon;
use tonic::{Request, Response, Status};

use crate::credentials::{Handed, HandedOver, Keyring};
use crate::snapshot::Snapshotter;

/// Longest host, repository, user name or secret that is taken, bytes. Tokens of some clouds have several KiB.
const MAX_TEXT: usize = 64 << 10;

/// The service.
#[derive(Clone, Debug)]
pub struct OwnService {
    snapshotter: Snapshotter,
    keyring: Arc<Keyring>,
    started: Instant,
}

// === impl OwnService ===

impl OwnService {
    /// Credentials go to `keyring`, the status comes from `snapshotter`.
    #[must_use]
    pub fn new(snapshotter: Snapshotter, keyring: Arc<Keyring>) -> OwnService {
        OwnService { snapshotter, keyring, started: Instant::now() }
    }
}

#[tonic::async_trait]
impl Daemon for OwnService {
    async fn add_credentials(
        &self,
        request: Request<pb::AddCredentialsRequest>,
    ) -> Result<Response<pb::AddCredentialsResponse>, Status> {
        let pb::AddCredentialsRequest { host, repository, username, secret, plain_http, skip_verify } =
            request.into_inner();
        if host.is_empty() || repository.is_empty() {
            return Err(Status::invalid_argument("credentials need a host and a repository"));
        }
        if [&host, &repository, &username, &secret].iter().any(|text| text.len() > MAX_TEXT) {
            return Err(Status::invalid_argument("a field of the credentials is too long"));
        }
        tracing::debug!(host, repository, "registry access handed over");
        let credentials = (!username.is_empty() || !secret.is_empty())
            .then(|| oci_registry::Credentials::new(username, secret));
        self.keyring.add(HandedOver {
            host,
            repository,
            handed: Handed { credentials, plain_http, skip_verify },
        });
        Ok(Response::new(pb::AddCredentialsResponse {}))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let wanted = request.into_inner().image_ref;
        let layers = self
            .snapshotter
            .layers()
            .into_iter()
            .filter(|layer| wanted.is_empty() || layer.lazy.image == wanted)
            .map(|layer| pb::LayerStatus {
                image_ref: layer.lazy.image,
                namespace: layer.lazy.namespace,
                layer_digest: layer.lazy.layer,
                mount_point: layer.mount_point.display().to_string(),
                size: layer.status.size,
                present: layer.status.present,
                spans: layer.status.spans.into(),
                spans_present: layer.status.spans_present.into(),
                fetched_on_demand: layer.status.fetched_on_demand,
                reads_that_waited: layer.status.reads_that_waited,
                front_end: layer.front_end.as_str().to_owned(),
            })
            .collect();
        let uptime = self.started.elapsed();
        Ok(Response::new(pb::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: Some(prost_types::Duration {
                seconds: i64::try_from(uptime.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(uptime.subsec_nanos()).unwrap_or(0),
            }),
            layers,
        }))
    }
}
