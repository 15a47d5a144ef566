//! The daemon's socket: containerd's snapshots service and our own. Requests become calls, errors become statuses; nothing is decided here.

mod own;
mod snapshots;
mod status;

pub use own::OwnService;
pub use snapshots::SnapshotsService;
pub use status::status_of;

use soci_proto::daemon::daemon_server::DaemonServer;
use soci_proto::snapshots::snapshots_server::SnapshotsServer;
use tonic::transport::server::Router;

/// Largest message in either direction, bytes: containerd's own limit (tonic's default is 4 MiB).
pub const MAX_MESSAGE_SIZE: usize = 16 << 20;

/// Both services, ready to be served; a client's calls beyond `calls` at the same time wait.
pub fn router(calls: usize, snapshots: SnapshotsService, own: OwnService) -> Router {
    let snapshots = SnapshotsServer::new(snapshots)
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE);
    let own = DaemonServer::new(own)
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE);
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(calls.max(1))
        .add_service(snapshots)
        .add_service(own)
}

/// Which containerd namespace a request is for: the header where containerd sends it (2.1), else the first part of the key, which containerd makes
/// as `<namespace>/<number>/<name>` (1.6 and 1.7 send no header). What is no namespace is none.
fn namespace(metadata: &tonic::metadata::MetadataMap, key: &str) -> Option<String> {
    let header = metadata.get("containerd-namespace").and_then(|value| value.to_str().ok());
    let from_key = || {
        let mut parts = key.splitn(3, '/');
        let first = parts.next()?;
        let number = parts.next()?;
        parts.next()?;
        number.bytes().all(|byte| byte.is_ascii_digit()).then_some(first)
    };
    let name = header.filter(|header| !header.is_empty()).or_else(from_key)?;
    name.parse::<soci_store::Namespace>().ok().map(|namespace| namespace.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;

    #[test]
    fn namespaces_come_from_the_header_or_the_key() {
        let mut metadata = MetadataMap::new();
        let namespace = |metadata: &MetadataMap, key| super::namespace(metadata, key);
        assert_eq!(namespace(&metadata, "default/12/extract-1 sha256:aa").as_deref(), Some("default"));
        assert_eq!(namespace(&metadata, "default/x/y"), None);
        assert_eq!(namespace(&metadata, "plain"), None);
        assert_eq!(namespace(&metadata, "../3/y"), None);
        metadata.insert("containerd-namespace", "k8s.io".parse().unwrap());
        assert_eq!(namespace(&metadata, "default/12/x").as_deref(), Some("k8s.io"));
    }
}
