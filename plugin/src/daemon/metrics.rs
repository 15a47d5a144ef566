//! Where metrics are served: `GET /metrics` on `metrics_address`, HTTP/1.1 without TLS, as Prometheus asks.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::snapshot::Snapshotter;
use crate::telemetry::metrics;

/// Connections at the same time; a scraper needs one.
const CONNECTIONS: usize = 16;
/// How long a connection may take, request and answer together. Scrapers connect anew for little.
const CONNECTION: Duration = Duration::from_secs(30);
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// A pause after accept(2) failed (no descriptors left), so that it is not tried at full speed.
const PAUSE: Duration = Duration::from_secs(1);

/// An open address.
#[derive(Debug)]
pub(super) enum Endpoint {
    /// `tcp`.
    Tcp(TcpListener),
    /// `unix`.
    Unix(UnixListener),
}

// === impl Endpoint ===

impl Endpoint {
    /// Opens `host:port`, or a socket where an old one may be in the way.
    pub(super) async fn open(network: &str, address: &str) -> io::Result<Endpoint> {
        if network == "unix" {
            let is_socket = |meta: std::fs::Metadata| meta.file_type().is_socket();
            if std::fs::symlink_metadata(address).is_ok_and(is_socket) {
                std::fs::remove_file(address)?;
            }
            return Ok(Endpoint::Unix(UnixListener::bind(address)?));
        }
        // Go listens on every interface where no host is given.
        let address = if address.starts_with(':') { format!("[::]{address}") } else { address.to_owned() };
        Ok(Endpoint::Tcp(TcpListener::bind(address).await?))
    }

    /// Answers for as long as the daemon runs.
    pub(super) async fn serve(self, snapshotter: Snapshotter) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let accepted = match &self {
                Endpoint::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| answer(stream, snapshotter.clone(), permit))
                }
                Endpoint::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| answer(stream, snapshotter.clone(), permit))
                }
            };
            if let Err(error) = accepted {
                tracing::debug!(%error, "unable to accept a connection for metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn answer<S>(stream: S, snapshotter: Snapshotter, permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    tokio::spawn(async move {
        let _permit = permit;
        let service = service_fn(move |request| {
            let snapshotter = snapshotter.clone();
            async move { Ok::<_, Infallible>(respond(&request, snapshotter).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service);
        // A scraper that went away is no event.
        let _ = tokio::time::timeout(CONNECTION, connection).await;
    });
}

async fn respond(request: &Request<Incoming>, snapshotter: Snapshotter) -> Response<String> {
    if request.uri().path() != "/metrics" {
        return status(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return status(StatusCode::METHOD_NOT_ALLOWED, "metrics can only be read\n");
    }
    // Looks at every span of every layer.
    match tokio::task::spawn_blocking(move || metrics::render(&snapshotter)).await {
        Ok(Ok(text)) => {
            let mut response = Response::new(text);
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Ok(Err(_)) | Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be shown\n"),
    }
}

fn status(code: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = code;
    response
}
