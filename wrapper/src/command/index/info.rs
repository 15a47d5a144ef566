//! `soci index info`.

use serde_json::Value;
use thiserror::Error as ThisError;

use crate::context::Context;
use crate::digest;
use crate::error::Error;
use crate::terminal;

/// Arguments of `soci index info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci index info $(soci index ls -q | head -n 1)")]
pub(crate) struct Args {
    /// Digest of the index.
    digest: String,
}

#[derive(Debug, ThisError)]
enum InfoError {
    #[error("the provided digest {0} is a ztoc not an index, try \"soci ztoc info\"")]
    Ztoc(String),
    #[error("index {0}: not found")]
    NotFound(String),
    #[error("index {digest} is not valid JSON")]
    Json { digest: String, source: serde_json::Error },
}

/// Runs `soci index info`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let digest = digest::parse(&args.digest)?;
    let artifacts = context.containerd().artifacts();
    if artifacts.index(&digest).await?.is_none() {
        return Err(Error::command(match artifacts.ztoc(&digest).await? {
            Some(_) => InfoError::Ztoc(args.digest),
            None => InfoError::NotFound(args.digest),
        }));
    }
    let bytes = artifacts.read_index(&digest).await?;
    let json: Value = serde_json::from_slice(&bytes)
        .map_err(|source| Error::command(InfoError::Json { digest: args.digest, source }))?;
    terminal::line(&serde_json::to_string_pretty(&json).map_err(Error::command)?)
}
