//! `soci`: pulls, runs and indexes container images that need not be downloaded before they start.
//!
//! The grammar is `ctr`'s where `ctr` has the command. One file per subcommand below [`command`]; what several of them share stands in a
//! module of its own beside it.

mod args;
mod command;
mod connection;
mod container;
mod context;
mod digest;
mod duration;
mod error;
mod image;
mod interrupt;
mod layer_ztoc;
mod local_image;
mod mount;
mod pull;
mod registry;
mod rootfs;
mod spec;
mod table;
mod task;
mod terminal;
mod unpack;
mod upload;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;
use crate::context::Context;
use crate::error::Error;

fn main() -> ExitCode {
    let outcome = match Args::try_parse() {
        Ok(args) => run(args),
        Err(error) => match Error::from_parser(&error) {
            Some(error) => Err(error),
            // Help or version was asked for.
            None => return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn run(args: Args) -> Result<(), Error> {
    terminal::log(args.global.debug);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io { what: "start the runtime".to_owned(), source })?;
    let outcome = runtime.block_on(async {
        let context = Context::new(&args.global)?;
        tokio::select! {
            outcome = command::run(args.command, &context) => outcome,
            error = context.overdue() => Err(error),
        }
    });
    // A read of stdin or a look-up in the resolver may still hang; nobody waits for it.
    runtime.shutdown_background();
    outcome
}
