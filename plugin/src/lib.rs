//! The SOCI snapshotter daemon: a containerd proxy snapshotter that mounts image layers before they are downloaded.
//!
//! `ARCHITECTURE.md` beside this crate is the map. In short: [`grpc`] turns requests into calls on [`snapshot`], which decides for every
//! layer between a lazy mount ([`resolve`], then `lazy-layer`, then [`fuse`]), unpacking it here ([`unpack`]) and leaving it to containerd.

pub mod adopt;
pub mod allocator;
pub mod args;
pub mod config;
pub mod credentials;
pub mod daemon;
mod failpoint;
pub mod fuse;
pub mod grpc;
pub mod keeper;
pub mod kernel;
mod mountinfo;
mod notify;
pub mod resolve;
pub mod snapshot;
pub mod telemetry;
pub mod unpack;
