//! Images are written, read back by us and by the kernel, and damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod damage;
mod kernel;
mod random;
mod round_trip;
mod rules;
mod walk;
