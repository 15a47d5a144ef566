//! `soci index`.

mod info;
mod list;
mod remove;

use crate::context::Context;
use crate::error::Error;

/// Arguments of `soci index`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List indices.
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Display an index.
    Info(info::Args),
    /// Remove indices.
    #[command(visible_alias = "rm")]
    Remove(remove::Args),
}

/// Runs `soci index`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.command {
        Command::List(args) => list::run(args, context).await,
        Command::Info(args) => info::run(args, context).await,
        Command::Remove(args) => remove::run(args, context).await,
    }
}
