//! `soci ztoc`.

mod get_file;
mod info;
mod list;

use oci_spec::image::Digest;
use soci_store::ZtocRecord;
use thiserror::Error as ThisError;
use ztoc::Ztoc;

use crate::context::Context;
use crate::digest;
use crate::error::Error;
use crate::layer_ztoc::MAX_ZTOC;

/// Arguments of `soci ztoc`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List zTOCs.
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Get detailed info about a zTOC.
    Info(info::Args),
    /// Retrieve a file from a local image layer using a specified zTOC.
    GetFile(get_file::Args),
}

/// Why a digest is no zTOC that can be shown.
#[derive(Debug, ThisError)]
enum ZtocError {
    #[error("the provided digest {0} is of an index not a ztoc, try \"soci index info\"")]
    Index(Digest),
    #[error("ztoc {0}: not found")]
    NotFound(Digest),
    #[error("ztoc {digest} cannot be read")]
    Decode { digest: Digest, source: ztoc::DecodeError },
}

/// Runs `soci ztoc`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.command {
        Command::List(args) => list::run(args, context).await,
        Command::Info(args) => info::run(args, context).await,
        Command::GetFile(args) => get_file::run(args, context).await,
    }
}

/// Record and content of the zTOC that a command line names.
async fn load(context: &Context, text: &str) -> Result<(ZtocRecord, Ztoc), Error> {
    let digest = digest::parse(text)?;
    let artifacts = context.containerd().artifacts();
    let Some(record) = artifacts.ztoc(&digest).await? else {
        return Err(Error::command(match artifacts.index(&digest).await? {
            Some(_) => ZtocError::Index(digest),
            None => ZtocError::NotFound(digest),
        }));
    };
    let bytes = context.containerd().content().read_all(&digest, MAX_ZTOC).await?;
    let ztoc = Ztoc::decode(&bytes).map_err(|source| Error::command(ZtocError::Decode { digest, source }))?;
    Ok((record, ztoc))
}
