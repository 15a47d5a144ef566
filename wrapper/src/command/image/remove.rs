//! `soci image remove`.

use soci_store::StoreError;

use crate::context::Context;
use crate::error::{Error, one_line};
use crate::terminal;

/// Arguments of `soci image remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci image rm --sync docker.io/library/redis:7")]
pub(crate) struct Args {
    /// Synchronously remove image and all associated resources.
    #[arg(long)]
    sync: bool,
    /// Images to remove.
    #[arg(value_name = "REF", required = true)]
    references: Vec<String>,
}

/// Runs `soci image remove`: every image that can go goes, the first failure is the command's.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let images = context.containerd().images();
    let mut failure = None;
    let last = args.references.len().saturating_sub(1);
    for (n, reference) in args.references.iter().enumerate() {
        // One collection at the end does for all.
        match images.delete(reference, args.sync && n == last).await {
            Ok(()) => terminal::line(reference)?,
            Err(error @ StoreError::NotFound { .. }) => terminal::notice(&one_line(&error)),
            Err(error) => {
                terminal::notice(&format!("unable to delete {reference}: {}", one_line(&error)));
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}
