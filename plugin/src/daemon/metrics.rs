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

/// What may be asked of the endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct MetricsOptions {
    /// Connections at the same time; a scraper needs one.
    pub(super) connections: usize,
    /// How long a connection may take, requests and answers together. Scrapers connect anew for little.
    pub(super) connection: Duration,
    /// How long a request's head may take.
    pub(super) head: Duration,
    /// A pause after accept(2) failed (no descriptors left), so that it is not tried at full speed.
    pub(super) retry: Duration,
}

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
    pub(super) async fn serve(self, snapshotter: Snapshotter, options: MetricsOptions) {
        let room = Arc::new(Semaphore::new(options.connections.max(1)));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let accepted = match &self {
                Endpoint::Tcp(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| answer(stream, snapshotter.clone(), options, permit)),
                Endpoint::Unix(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| answer(stream, snapshotter.clone(), options, permit)),
            };
            if let Err(error) = accepted {
                tracing::debug!(%error, "unable to accept a connection for metrics");
                tokio::time::sleep(options.retry).await;
            }
        }
    }
}

fn answer<S>(stream: S, snapshotter: Snapshotter, options: MetricsOptions, permit: OwnedSemaphorePermit)
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
            .header_read_timeout(options.head)
            .serve_connection(TokioIo::new(stream), service);
        // A scraper that went away is no event.
        let _ = tokio::time::timeout(options.connection, connection).await;
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    /// A request whose answer ends the connection.
    const REQUEST: &[u8] = b"GET /elsewhere HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

    /// Whoever connects and says nothing has the only place until his time is over; the next is answered then, and not before.
    #[tokio::test]
    async fn connections_have_their_bound_and_their_time() {
        let options = MetricsOptions {
            connections: 1,
            connection: Duration::from_secs(20),
            head: Duration::from_millis(300),
            retry: Duration::from_millis(1),
        };
        let root = tempfile::tempdir().unwrap();
        let snapshotter = crate::snapshot::tests::idle(root.path());
        let endpoint = Endpoint::open("tcp", "127.0.0.1:0").await.unwrap();
        let Endpoint::Tcp(listener) = &endpoint else { panic!("{endpoint:?}") };
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(endpoint.serve(snapshotter, options));

        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut next = TcpStream::connect(address).await.unwrap();
        next.write_all(REQUEST).await.unwrap();
        let (mut rest, mut answer) = (Vec::new(), String::new());
        tokio::select! {
            biased;
            ended = silent.read_to_end(&mut rest) => drop(ended),
            _ = next.read_to_string(&mut answer) => panic!("answered beside the only one: {answer}"),
        }
        next.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        server.abort();
    }
}
