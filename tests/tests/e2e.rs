//! End to end: our daemon and CLI with a real containerd, runc and registry; one module for each scenario.
//!
//! Every test has a stack of its own. `SOCI_TEST_KEEP=1` keeps its folder, `SOCI_BINARIES` names other programs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests"
)]

mod e2e {
    mod background;
    mod blocked;
    mod credentials;
    mod early;
    mod errors;
    mod failpoints;
    mod fallback;
    mod foreign;
    mod forged;
    mod garbage;
    mod interrupted;
    mod kernel;
    mod killed;
    mod lazy_run;
    mod logs;
    mod metrics;
    mod namespaces;
    mod older_kernel;
    mod removal;
    mod restart;
    mod rounds;
    mod service;
    mod status;
    mod stress;
    mod supervised;
    mod survive;
    mod trees;
    mod twins;
    mod upgrade;
}
