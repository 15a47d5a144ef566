//! A client for OCI (and Docker) registries: references, authentication, ranged reads, push, referrers.
//!
//! What sets it apart from a downloader is that it reads small ranges of blobs for hours: tokens expire under it, signed
//! URLs of storage behind the registry expire under it, connections hang. So every answer may ask for new
//! authentication, final URLs of redirects are kept and renewed, every wait has a deadline, and what is transient is told
//! from what is not ([`RegistryError::is_transient`]).
//!
//! Rules of the house: what arrives is checked (digest, `Content-Range`, length); credentials go to the host that they are
//! for and to the token server that this host names, never to where it redirects; an error names host, repository and
//! digest, never a secret, and URLs in it have no query.

mod body;
mod challenge;
mod client;
mod credentials;
mod error;
mod host;
pub mod platform;
mod reference;
mod retry;
mod token;
mod upload;

pub use body::{BlobStream, RangeStream};
pub use client::{
    Bounds, Client, ClientOptions, FetchedManifest, MAX_MANIFEST_SIZE, PushedManifest, ResolvedImage,
};
pub use credentials::{Chain, CredentialSource, Credentials, DockerConfig, NoCredentials, StaticCredentials};
pub use error::{ClientError, RegistryError};
pub use host::{HostOptions, MirrorHost, RequestTimeout};
pub use reference::{Reference, ReferenceError, Repository};
pub use upload::{BlobUpload, Progress, PushOutcome, UploadBody};
