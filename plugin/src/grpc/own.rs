//! Our own service: credentials in, status out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lazy_layer::Completeness;
use oci_registry::Repository;
use soci_proto::daemon as pb;
use soci_proto::daemon::daemon_server::Daemon;
use soci_store::parse_digest;
use tonic::{Request, Response, Status};

use crate::credentials::{Handed, HandedOver, Keyring};
use crate::resolve::{Reach, Registries};
use crate::snapshot::{LayerReport, Snapshotter};

/// Longest host, repository, user name or secret that is taken, bytes. Tokens of some clouds have several KiB.
const MAX_TEXT: usize = 64 << 10;

/// The service.
#[derive(Clone, Debug)]
pub struct OwnService {
    snapshotter: Snapshotter,
    keyring: Arc<Keyring>,
    registries: Arc<Registries>,
    started: Instant,
}

// === impl OwnService ===

impl OwnService {
    /// Credentials go to `keyring` and are tried on `registries`, the status comes from `snapshotter`.
    #[must_use]
    pub fn new(snapshotter: Snapshotter, keyring: Arc<Keyring>, registries: Arc<Registries>) -> OwnService {
        OwnService { snapshotter, keyring, registries, started: Instant::now() }
    }
}

#[tonic::async_trait]
impl Daemon for OwnService {
    async fn add_credentials(
        &self,
        request: Request<pb::AddCredentialsRequest>,
    ) -> Result<Response<pb::AddCredentialsResponse>, Status> {
        let pb::AddCredentialsRequest {
            host,
            repository,
            username,
            secret,
            plain_http,
            skip_verify,
            found,
            manifest,
        } = request.into_inner();
        if host.is_empty() || repository.is_empty() {
            return Err(Status::invalid_argument("credentials need a host and a repository"));
        }
        let manifest = (!manifest.is_empty()).then(|| parse_digest(&manifest)).map(|digest| {
            digest.ok_or_else(|| Status::invalid_argument("the manifest's digest is no SHA-256"))
        });
        let manifest = manifest.transpose()?;
        if [&host, &repository, &username, &secret].iter().any(|text| text.len() > MAX_TEXT) {
            return Err(Status::invalid_argument("a field of the credentials is too long"));
        }
        let credentials = (!username.is_empty() || !secret.is_empty())
            .then(|| oci_registry::Credentials::new(username, secret));
        // Nothing is no news: what was handed over before stays.
        if credentials.is_some() || plain_http || skip_verify {
            tracing::debug!(host, repository, "registry access handed over");
            let keyring = Arc::clone(&self.keyring);
            let handed = Handed { credentials, found, plain_http, skip_verify };
            let new = HandedOver { host: host.clone(), repository: repository.clone(), handed };
            tokio::task::spawn_blocking(move || keyring.add(new))
                .await
                .map_err(|_| Status::unavailable("the daemon is stopping"))?;
        }
        let Some(manifest) = manifest else {
            self.registries.greet(&host, &repository);
            return Ok(Response::new(pb::AddCredentialsResponse::default()));
        };
        let (reach, reason) = match Repository::at_host(&host, &repository) {
            Ok(repository) => match self.registries.reach(repository, manifest).await {
                Reach::Unknown => (pb::Reach::Unknown, String::new()),
                Reach::Readable => (pb::Reach::Readable, String::new()),
                Reach::Unreadable(reason) => (pb::Reach::Unreadable, reason),
            },
            Err(error) => (pb::Reach::Unreadable, error.to_string()),
        };
        Ok(Response::new(pb::AddCredentialsResponse { reach: reach.into(), reason }))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let pb::StatusRequest { image_ref, manifest_digest } = request.into_inner();
        let all = image_ref.is_empty() && manifest_digest.is_empty();
        let snapshotter = self.snapshotter.clone();
        let layers = tokio::task::spawn_blocking(move || snapshotter.layers())
            .await
            .map_err(|_| Status::unavailable("the daemon is stopping"))?;
        let layers = layers
            .into_iter()
            .filter(|layer| all || layer.lazy.image == image_ref || layer.lazy.manifest == manifest_digest)
            .map(layer_status)
            .collect();
        let uptime = self.started.elapsed();
        Ok(Response::new(pb::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: Some(duration(uptime)),
            layers,
        }))
    }
}

fn layer_status(layer: LayerReport) -> pb::LayerStatus {
    let LayerReport { lazy, mount_point, status, front_end } = layer;
    let waits = status.waits;
    let completeness = match status.completeness {
        Completeness::Incomplete if status.spans_present == status.spans => pb::Completeness::Unchecked,
        Completeness::Incomplete => pb::Completeness::Incomplete,
        Completeness::Complete => pb::Completeness::Complete,
        Completeness::Refused => pb::Completeness::Refused,
    };
    pb::LayerStatus {
        image_ref: lazy.image,
        namespace: lazy.namespace,
        layer_digest: lazy.layer,
        mount_point: mount_point.display().to_string(),
        size: status.size,
        present: status.present,
        spans: status.spans.into(),
        spans_present: status.spans_present.into(),
        fetched_on_demand: status.fetched_on_demand,
        reads_that_waited: status.reads_that_waited,
        front_end: front_end.as_str().to_owned(),
        fetched_by_read_ahead: status.fetched_by_read_ahead,
        fetched_by_trace: status.fetched_by_trace,
        fetched_by_fill: status.fetched_by_fill,
        waits: (waits.count > 0).then(|| pb::Waits {
            count: waits.count,
            p50: Some(duration(waits.p50)),
            p99: Some(duration(waits.p99)),
            longest: Some(duration(waits.longest)),
        }),
        completeness: completeness.into(),
        headers_refused: status.headers_refused,
        manifest_digest: lazy.manifest,
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use crate::snapshot::{FrontEnd, LazyRecord};

    use super::*;

    #[test]
    fn all_here_is_not_yet_checked() {
        let completeness = |spans_present, completeness| {
            let lazy = LazyRecord::named("x");
            let status =
                lazy_layer::LayerStatus { spans: 2, spans_present, completeness, ..Default::default() };
            let report = LayerReport { lazy, mount_point: "/x".into(), status, front_end: FrontEnd::Fuse };
            layer_status(report).completeness()
        };
        assert_eq!(completeness(1, Completeness::Incomplete), pb::Completeness::Incomplete);
        assert_eq!(completeness(2, Completeness::Incomplete), pb::Completeness::Unchecked);
        assert_eq!(completeness(2, Completeness::Complete), pb::Completeness::Complete);
        assert_eq!(completeness(2, Completeness::Refused), pb::Completeness::Refused);
    }
}
