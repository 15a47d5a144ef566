//! What the end-to-end suites stand on: images made here, a stack of real parts for each test, trees compared.
//!
//! A test that needs a program which is not there fails; nothing is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a harness fails by panicking"
)]

pub mod bench;
pub mod containerd;
pub mod daemon;
pub mod forgery;
pub mod holdings;
pub mod image;
pub mod kernel;
pub mod process;
pub mod registry;
pub mod rootfs;
pub mod service;
pub mod stack;
pub mod tree;
