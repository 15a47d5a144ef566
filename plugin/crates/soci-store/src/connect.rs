//! The way to a gRPC socket: containerd's, and the daemon's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Flow-control windows. The defaults of 64 KiB cost a tenth of the throughput of content over a Unix socket (measured); with 16 MiB a blob of
/// that size takes half as long again, because containerd is ahead by so much memory, all of it new.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// The address is none that a channel can be made of.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Empty or relative path.
    #[error("{path:?} is not an absolute path of a socket")]
    Address {
        /// As given.
        path: PathBuf,
    },
    /// The endpoint was refused by the transport.
    #[error("no channel to {path:?}")]
    Endpoint {
        /// As given.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// A channel to the gRPC server on a Unix socket; `address` may carry a `unix://` prefix.
///
/// Connects on first use and again after the server restarted; `timeout` bounds each attempt. Must be called within a tokio runtime.
///
/// # Errors
/// An address that is no absolute path. That nobody listens there shows with the first call.
pub fn connect(address: &Path, timeout: Duration) -> Result<Channel, ConnectError> {
    let path = match address.to_str().and_then(|text| text.strip_prefix("unix://")) {
        Some(rest) => PathBuf::from(rest),
        None => address.to_path_buf(),
    };
    if !path.is_absolute() {
        return Err(ConnectError::Address { path });
    }
    // The URI is never looked at: the connector below decides where the bytes go.
    let endpoint = Endpoint::try_from("http://localhost")
        .map_err(|source| ConnectError::Endpoint { path: path.clone(), source })?
        .connect_timeout(timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            match UnixStream::connect(&path).await {
                Ok(stream) => Ok(TokioIo::new(stream)),
                Err(error) => Err(std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn address_must_be_absolute() {
        let timeout = Duration::from_secs(1);
        assert!(connect(Path::new("containerd.sock"), timeout).is_err());
        assert!(connect(Path::new(""), timeout).is_err());
        assert!(connect(Path::new("unix:///run/x.sock"), timeout).is_ok());
        assert!(connect(Path::new("/run/x.sock"), timeout).is_ok());
    }
}
