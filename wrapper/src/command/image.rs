//! `soci image`.

mod check;
mod label;
mod list;
mod mount;
mod pull;
mod push;
mod remove;
mod rpull;
mod status;
mod tag;
mod unmount;

use crate::context::Context;
use crate::error::Error;

/// Arguments of `soci image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Pull an image from a registry.
    Pull(pull::Args),
    /// Pull an image from a registry, leaving layers that have a zTOC where they are.
    Rpull(rpull::Args),
    /// Push an image to a registry.
    Push(push::Args),
    /// Tag an image.
    Tag(tag::Args),
    /// List images known to containerd.
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Remove one or more images by reference.
    #[command(visible_alias = "rm", aliases = ["delete", "del"])]
    Remove(remove::Args),
    /// Set and clear labels for an image.
    Label(label::Args),
    /// Check existing images to ensure all content is available locally.
    Check(check::Args),
    /// Show how far the lazily mounted layers of images are.
    Status(status::Args),
    /// Mount an image to a target path.
    Mount(mount::Args),
    /// Unmount the image from the target.
    #[command(visible_alias = "umount")]
    Unmount(unmount::Args),
}

/// Runs `soci image`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.command {
        Command::Pull(args) => pull::run(args, context).await,
        Command::Rpull(args) => rpull::run(args, context).await,
        Command::Push(args) => push::run(args, context).await,
        Command::Tag(args) => tag::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
        Command::Remove(args) => remove::run(args, context).await,
        Command::Label(args) => label::run(args, context).await,
        Command::Check(args) => check::run(args, context).await,
        Command::Status(args) => status::run(args, context).await,
        Command::Mount(args) => mount::run(args, context).await,
        Command::Unmount(args) => unmount::run(args, context).await,
    }
}
