//! Layers mounted through FUSE for real. Needs root, /dev/fuse, loop devices, EROFS and overlayfs in the kernel, and GNU tar.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod behaviour;
mod errands;
mod golden;
mod kernel;
mod layers;
mod made;
mod view;
