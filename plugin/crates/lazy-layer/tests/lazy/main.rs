//! Layers made by `tar` and `flate2`, read lazily through a source with switches, compared with the bytes that went in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    missing_debug_implementations,
    reason = "tests"
)]

mod background;
mod bed;
mod demand;
mod disk;
mod faults;
mod forged;
mod golden;
mod hosts;
mod making;
mod pool;
mod power;
mod programs;
mod reads;
mod room;
mod script;
mod whole;
