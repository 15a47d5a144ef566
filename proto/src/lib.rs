//! Wire schemas and the Rust generated from them at build time.
//!
//! * [`snapshots`]: containerd's snapshots service, server side;
//! * [`daemon`]: our own service on the daemon's socket, both sides;
//! * [`ztoc`]: the zTOC flatbuffer, for reading (strings are bytes).

/// containerd's `containerd.services.snapshots.v1`, with the server trait that a proxy snapshotter implements.
#[cfg(feature = "grpc")]
pub mod snapshots {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        clippy::indexing_slicing,
        reason = "generated code"
    )]
    tonic::include_proto!("containerd.services.snapshots.v1");
}

/// The daemon's own service `soci.v1.Daemon`.
#[cfg(feature = "grpc")]
pub mod daemon {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        clippy::indexing_slicing,
        reason = "generated code"
    )]
    tonic::include_proto!("soci.v1");
}

/// The zTOC and its nested plain-tar zinfo, as planus reads them.
#[cfg(feature = "ztoc")]
pub mod ztoc {
    #![allow(
        missing_docs,
        unreachable_pub,
        unsafe_code,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        clippy::indexing_slicing,
        clippy::undocumented_unsafe_blocks,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::unreachable,
        clippy::panic,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/ztoc.rs"));
    pub use self::ztoc::*;
}
