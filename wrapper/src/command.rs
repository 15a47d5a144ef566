//! The subcommands, one file each: every file has its `Args` and `run`.

mod create;
mod image;
mod index;
mod plugins;
mod prefetch;
mod push;
mod rebuild_db;
mod run;
mod ztoc;

use crate::context::Context;
use crate::error::Error;

/// A subcommand.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Manage images.
    #[command(visible_aliases = ["images", "i"])]
    Image(Box<image::Args>),
    /// Run a container.
    Run(Box<run::Args>),
    /// Provide information about containerd plugins.
    #[command(visible_alias = "plugin")]
    Plugins(plugins::Args),
    /// Create SOCI index and zTOCs of an image.
    Create(create::Args),
    /// Push SOCI artifacts of an image to its registry.
    Push(push::Args),
    /// Manage indices.
    Index(index::Args),
    /// Manage zTOCs.
    Ztoc(ztoc::Args),
    /// Manage prefetch artifacts.
    Prefetch(prefetch::Args),
    /// Set the records of artifacts anew from containerd's content.
    #[command(alias = "rebuild_db")]
    RebuildDb(rebuild_db::Args),
}

/// Runs a subcommand to its end.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Image(args) => image::run(*args, context).await,
        Command::Run(args) => run::run(*args, context).await,
        Command::Plugins(args) => plugins::run(args, context).await,
        Command::Create(args) => create::run(args, context).await,
        Command::Push(args) => push::run(args, context).await,
        Command::Index(args) => index::run(args, context).await,
        Command::Ztoc(args) => ztoc::run(args, context).await,
        Command::Prefetch(args) => prefetch::run(args, context).await,
        Command::RebuildDb(args) => rebuild_db::run(args, context).await,
    }
}
