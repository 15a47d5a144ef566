//! What can go wrong, and whether it may go right later.

use crate::reference::{ReferenceError, Repository};
use oci_spec::image::Digest;
use std::path::PathBuf;
use std::time::Duration;

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A certificate, key or CA file that cannot be used.
    #[error("cannot use {}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A `hosts.toml` that says what it cannot mean.
    #[error("{}: {key} {reason}", path.display())]
    HostsFile {
        /// The file.
        path: PathBuf,
        /// The key, or the line where it is not even TOML.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder of hosts, or a file in it, that cannot be read.
    #[error("cannot read {}", path.display())]
    HostsFolder {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A host whose name does not make a URL.
    #[error("{host:?} does not make a URL")]
    Address {
        /// The host.
        host: String,
    },
    /// No endpoint of a registry may be asked for this.
    #[error("no endpoint of {domain} has the capability {capability}")]
    NoEndpoint {
        /// The registry.
        domain: String,
        /// The capability in question, in the words of `hosts.toml`.
        capability: String,
    },
    /// The process is about to end.
    #[error("the runtime is shutting down")]
    Stopped,
    /// The TLS configuration as a whole.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The HTTP client.
    #[error("cannot set up HTTP")]
    Http(#[source] reqwest::Error),
}

/// Why a registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry says that there is no such manifest, blob or repository.
    #[error("{repository}{}{what}: not found", if what.contains(':') { '@' } else { ':' })]
    NotFound {
        /// Where.
        repository: Repository,
        /// A tag or digest.
        what: String,
    },
    /// No credentials, or refused ones (401).
    #[error("{repository}: not authorized at {host}{}", if *.anonymous { ", and no credentials are known" } else { "" })]
    Unauthorized {
        /// The registry's host.
        host: String,
        /// Where.
        repository: Repository,
        /// Whether there were no credentials to offer.
        anonymous: bool,
    },
    /// The credentials are good but not for this (403).
    #[error("{repository}: access denied by {host}")]
    Denied {
        /// The host that answered, possibly one that the registry redirects to.
        host: String,
        /// Where.
        repository: Repository,
    },
    /// No connection, or a broken one.
    #[error("cannot reach {host}")]
    Unreachable {
        /// The host.
        host: String,
        /// What the HTTP client says; its URL is cut off.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for too long.
    #[error("{host} did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// The host.
        host: String,
        /// How long was waited.
        after: Duration,
    },
    /// Too many requests (429), retries included.
    #[error("{host} limits the rate of requests")]
    RateLimited {
        /// The host.
        host: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// Any other status.
    #[error("{host} answered {status} for {repository}{}", detail.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Status {
        /// The host.
        host: String,
        /// Where.
        repository: Repository,
        /// The status code.
        status: u16,
        /// The registry's own first error message, shortened and without control characters.
        detail: Option<String>,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The token server that the registry names did not give a token.
    #[error("{host} gave no token for {repository}: {reason}")]
    Token {
        /// The token server's host.
        host: String,
        /// Where.
        repository: Repository,
        /// Why.
        reason: String,
        /// Whether it may work later.
        transient: bool,
    },
    /// The answer does not follow the protocol.
    #[error("{host} sent an invalid answer for {repository}: {reason}")]
    InvalidResponse {
        /// The host.
        host: String,
        /// Where.
        repository: Repository,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are not those that were asked for.
    #[error("{repository}: content has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// Where.
        repository: Repository,
        /// The digest asked for.
        expected: Box<Digest>,
        /// The digest of what came.
        actual: Box<Digest>,
    },
    /// A body shorter or longer than it should be.
    #[error("{host} sent {actual} bytes of {what}, expected {expected}")]
    Length {
        /// The host.
        host: String,
        /// A tag or digest.
        what: String,
        /// Bytes expected.
        expected: u64,
        /// Bytes received, or announced.
        actual: u64,
    },
    /// Larger than the caller (or this client) takes.
    #[error("{repository}: {what} is larger than {limit} bytes")]
    TooLarge {
        /// Where.
        repository: Repository,
        /// A tag or digest.
        what: String,
        /// The bound in bytes.
        limit: u64,
    },
    /// No manifest in the list is for this platform.
    #[error("{reference}: no manifest for platform {platform}")]
    NoPlatform {
        /// The image.
        reference: String,
        /// The platform asked for.
        platform: String,
    },
    /// What was to be pushed could not be read, or is not what its descriptor says.
    #[error("cannot read what is to be pushed")]
    Upload(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A tag or repository that the caller made up is not valid.
    #[error("invalid reference")]
    Reference(#[from] ReferenceError),
    /// None of several endpoints gave it. The source is what the last one of the configuration said; see
    /// [`RegistryError::answer`].
    #[error("no endpoint gave it, tried {}", tried.join(", "))]
    Endpoints {
        /// The hosts, in the order in which they were asked.
        tried: Vec<String>,
        /// The error of the last one.
        #[source]
        last: Box<RegistryError>,
    },
    /// The host's configuration is unusable.
    #[error("cannot talk to {host}")]
    Host {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: Box<ClientError>,
    },
}

impl RegistryError {
    pub(crate) fn digest_mismatch(repository: &Repository, expected: Digest, actual: Digest) -> Self {
        let (expected, actual) = (Box::new(expected), Box::new(actual));
        Self::DigestMismatch { repository: repository.clone(), expected, actual }
    }

    /// The error of the endpoint that counts: itself, but for [`RegistryError::Endpoints`].
    pub fn answer(&self) -> &RegistryError {
        match self {
            Self::Endpoints { last, .. } => last.answer(),
            other => other,
        }
    }

    /// Whether another endpoint may do better: not where it is our own input that is wrong.
    pub(crate) fn is_of_endpoint(&self) -> bool {
        !matches!(
            self,
            Self::NoPlatform { .. }
                | Self::Upload(_)
                | Self::Reference(_)
                | Self::Host { .. }
                | Self::Endpoints { .. }
        )
    }

    /// Whether the same request may succeed later without anybody changing anything. Such a failure is never remembered.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::RateLimited { .. }
            | Self::Length { .. } => true,
            Self::Status { status, .. } => is_transient_status(*status),
            Self::Token { transient, .. } => *transient,
            Self::Endpoints { last, .. } => last.is_transient(),
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Denied { .. }
            | Self::InvalidResponse { .. }
            | Self::DigestMismatch { .. }
            | Self::TooLarge { .. }
            | Self::NoPlatform { .. }
            | Self::Upload(_)
            | Self::Reference(_)
            | Self::Host { .. } => false,
        }
    }

    /// Whether the host asks for fewer requests (429, 503).
    pub fn is_overload(&self) -> bool {
        matches!(self.answer(), Self::RateLimited { .. } | Self::Status { status: 503, .. })
    }

    /// How long the host asks to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.answer() {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the registry says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self.answer(), Self::NotFound { .. })
    }
}

/// Statuses that a retry may cure: too early, too many, and server errors but for "not implemented" and the like.
pub(crate) fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 507..=599)
}
