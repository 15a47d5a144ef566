//! SOCI artifacts as containerd content.
//!
//! Indices and zTOCs live in containerd's own content store. A [`Lease`] holds them while they arrive, garbage collection labels
//! (see [`labels`]) tie them to the image manifest that they belong to afterwards, and labels on the blobs are the records that other
//! programs would keep in a database: see [`Artifacts`].
//!
//! Everything here talks to containerd over its socket; every call has a deadline, and none retries on its own except for the wait on an
//! ingest that somebody else holds (see [`ContentStore::write`]).

mod artifact;
mod connect;
mod container;
mod containerd;
mod content;
mod digest;
mod error;
mod filter;
mod image;
pub mod labels;
mod lease;
mod time;

pub use crate::artifact::{Artifacts, IndexRecord, IndexTarget, ZtocRecord};
pub use crate::connect::{ConnectError, connect};
pub use crate::container::{Container, Containers, Process};
pub use crate::containerd::{Containerd, MAX_MESSAGE_SIZE, Namespace, NamespaceError};
pub use crate::content::{ContentInfo, ContentStore, ContentWriter, OpenedWriter};
pub use crate::digest::parse_digest;
pub use crate::error::StoreError;
pub use crate::filter::{equals, present};
pub use crate::image::{Image, Images};
pub use crate::lease::{Lease, Leases};
