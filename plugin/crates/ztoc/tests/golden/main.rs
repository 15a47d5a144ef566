//! The crate against the bytes of the Go tools (`tests/golden` of the workspace), and against damage.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests"
)]

mod build;
mod corpus;
mod damage;
mod headers;
mod read;
mod scan;
