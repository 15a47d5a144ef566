//! The client: one per set of credentials and host options, cheap to clone.

mod attempts;
mod blob;
mod bounds;
mod manifest;
mod push;
mod range;
mod redirects;
mod referrers;
mod request;

use crate::body::{BlobStream, RangeStream};
use crate::credentials::{CredentialSource, NoCredentials};
use crate::error::{ClientError, RegistryError};
use crate::host::{Endpoints, HostOptions, Transport};
use crate::platform::Platform;
use crate::reference::{Reference, Repository};
use crate::token::Tokens;
use crate::upload::{BlobUpload, PushOutcome};
pub use bounds::Bounds;
use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest};
use redirects::Redirects;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Largest manifest that is read, in bytes; registries have the same bound.
pub const MAX_MANIFEST_SIZE: u64 = 4 << 20;

/// How a client is to behave.
#[derive(Clone)]
pub struct ClientOptions {
    /// `User-Agent`.
    pub user_agent: String,
    /// For a connection, TLS included.
    pub connect_timeout: Duration,
    /// From the end of a request to the head of its answer.
    pub header_timeout: Duration,
    /// Between two pieces of a body, in either direction.
    pub idle_timeout: Duration,
    /// For the whole body of a manifest, a config or a list; what comes byte by byte is never idle.
    pub body_timeout: Duration,
    /// From the beginning of a request to the end of its answer, where there is such a limit. A stream goes on with another request then.
    pub request_timeout: Option<Duration>,
    /// Operations but ranges at the same time, retries and bodies included, for all clients that have this; None for no limit.
    pub turns: Option<Arc<Semaphore>>,
    /// How often a request is sent again after a transient failure.
    pub retries: u32,
    /// The first wait before a retry; it doubles each time.
    pub min_backoff: Duration,
    /// The longest wait before a retry, also where the registry asks for a longer one.
    pub max_backoff: Duration,
    /// What is remembered.
    pub bounds: Bounds,
    /// Scheme, TLS and mirrors.
    pub hosts: HostOptions,
    /// Credentials.
    pub credentials: Arc<dyn CredentialSource>,
}

/// A manifest (or index) whose bytes match its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    /// The bytes.
    pub bytes: Bytes,
}

/// An image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// What the reference names: an index, or the manifest itself.
    pub top: FetchedManifest,
    /// The manifest for the platform.
    pub manifest: FetchedManifest,
}

/// What the registry said to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedManifest {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Whether the registry has put it into its subject's list of referrers (`OCI-Subject`).
    pub subject_listed: bool,
}

/// A client for registries.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    options: Arc<ClientOptions>,
    endpoints: Endpoints,
    tokens: Tokens,
    redirects: Redirects,
}

// === impl ClientOptions ===

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            user_agent: concat!("soci-snapshotter/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(300),
            request_timeout: None,
            turns: None,
            retries: 5,
            min_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            bounds: Bounds::default(),
            hosts: HostOptions::default(),
            credentials: Arc::new(NoCredentials),
        }
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("user_agent", &self.user_agent)
            .field("retries", &self.retries)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

// === impl Client ===

impl Client {
    /// A client. Reads certificates; opens no connection. `hosts_dir` is read later, when a registry is asked.
    ///
    /// # Errors
    /// Where a certificate file cannot be used.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        let options = Arc::new(options);
        let transport = Arc::new(Transport::new(&options, &options.hosts, options.connect_timeout)?);
        let endpoints = Endpoints::new(options.clone(), transport);
        let tokens = Tokens::new(options.clone());
        let redirects = Redirects::new(options.bounds);
        Ok(Self { inner: Arc::new(Inner { options, endpoints, tokens, redirects }) })
    }

    /// What a reference names now: media type, digest, size. Nothing is downloaded where the registry tells.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let _turn = self.inner.turn().await;
        self.inner.resolve(reference).await
    }

    /// The manifest or index that a reference names. Its digest is checked, its size at most [`MAX_MANIFEST_SIZE`].
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn manifest(&self, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        let _turn = self.inner.turn().await;
        self.inner.manifest(reference).await
    }

    /// The image that a reference names, for one platform.
    ///
    /// # Errors
    /// [`RegistryError::NoPlatform`], or any other.
    pub async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<ResolvedImage, RegistryError> {
        self.inner.image(reference, platform).await
    }

    /// A blob as a stream. A connection that breaks in mid-blob is replaced by another that goes on from there.
    ///
    /// # Errors
    /// Any [`RegistryError`]; the stream itself may end with one, see [`BlobStream`].
    pub async fn blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<BlobStream, RegistryError> {
        blob::stream(self.inner.clone(), repository, descriptor).await
    }

    /// A small blob as a whole, its digest checked; at most `limit` bytes.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn blob_bytes(
        &self,
        repository: &Repository,
        digest: &Digest,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let _turn = self.inner.turn().await;
        self.inner.blob_bytes(repository, digest, limit).await
    }

    /// Bytes `range` of a blob as a stream: exactly these, but *not* checked against a digest, which covers the whole blob only.
    /// Each endpoint is asked once: whoever reads ranges has its own idea of what to try again, and when, and of how many at the same time: no turn is waited for.
    ///
    /// # Errors
    /// Any [`RegistryError`], here or in the stream; a range that is not inside the blob is [`RegistryError::Status`] 416 or
    /// [`RegistryError::Length`].
    pub async fn blob_range(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<RangeStream, RegistryError> {
        self.inner.blob_range(repository, digest, range).await
    }

    /// Makes a connection to the registry of a repository, and gets what it asks for to let it be read, so that the first request that somebody
    /// waits for finds both. Does nothing where both are there.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn greet(&self, repository: &Repository) -> Result<(), RegistryError> {
        let _turn = self.inner.turn().await;
        self.inner.greet(repository).await
    }

    /// Whether a manifest can be read: HEAD, at each endpoint once and without pauses. Connection and token are there then.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn reach(&self, reference: &Reference) -> Result<(), RegistryError> {
        let _turn = self.inner.turn().await;
        self.inner.reach(reference).await
    }

    /// Finds out where a blob is, so that its first range costs one request: connection, token and redirects are there then. Asks for one byte
    /// of it; does nothing where the place is known. True where it is not the registry itself that sends the bytes.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn locate_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        self.inner.locate_blob(repository, digest).await
    }

    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// Any [`RegistryError`] but "not found".
    pub async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        self.inner.has_blob(repository, digest).await
    }

    /// Whether the repository has a manifest (by tag or digest).
    ///
    /// # Errors
    /// Any [`RegistryError`] but "not found".
    pub async fn has_manifest(&self, reference: &Reference) -> Result<bool, RegistryError> {
        self.inner.has_manifest(reference).await
    }

    /// Uploads a blob in one request, unless the repository has it.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        upload: impl Into<BlobUpload> + Send,
    ) -> Result<PushOutcome, RegistryError> {
        self.inner.push_blob(repository, descriptor, &upload.into()).await
    }

    /// Puts a manifest under the reference's tag, or under its digest, which has to be that of `bytes`.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<PushedManifest, RegistryError> {
        self.inner.push_manifest(reference, media_type, bytes).await
    }

    /// The manifests of type `artifact_type` that refer to `subject`, by the referrers API, else by the fallback tag. None
    /// is an empty list.
    ///
    /// # Errors
    /// Any [`RegistryError`] but "not found".
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let _turn = self.inner.turn().await;
        self.inner.referrers(repository, subject, artifact_type).await
    }

    /// Pushes a manifest that refers to `subject` (its `bytes` say so) and sees to it that `subject`'s list of referrers
    /// has it: by the registry itself, else under the fallback tag. `descriptor` is the entry for the list, with artifact
    /// type and annotations.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn push_referrer(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        bytes: &[u8],
        subject: &Digest,
    ) -> Result<(), RegistryError> {
        self.inner.push_referrer(repository, descriptor, bytes, subject).await
    }
}

// === impl Inner ===

impl Inner {
    /// Waits until the operation may begin. It holds this until its end.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        match &self.options.turns {
            Some(turns) => turns.clone().acquire_owned().await.ok(),
            None => None,
        }
    }
}
