//! The daemon's program: parse, validate, serve. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    soci_snapshotter_grpc::allocator::settle();
    soci_snapshotter_grpc::daemon::main(std::env::args_os())
}
