//! `soci prefetch`.

mod info;
mod list;

use oci_spec::image::Digest;
use soci_index::PrefetchSpans;
use soci_store::{ContentInfo, labels};
use thiserror::Error as ThisError;

use crate::context::Context;
use crate::error::Error;

/// Larger prefetch artifacts than this are not read, bytes.
const MAX_SIZE: u64 = 4 << 20;

/// Arguments of `soci prefetch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List prefetch artifacts.
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Get detailed info about a prefetch artifact.
    Info(info::Args),
}

/// Why a prefetch artifact cannot be shown.
#[derive(Debug, ThisError)]
enum PrefetchFileError {
    #[error("prefetch artifact {0}: not found")]
    NotFound(Digest),
    #[error("prefetch artifact {digest} cannot be read")]
    Parse { digest: Digest, source: soci_index::PrefetchError },
}

/// Runs `soci prefetch`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.command {
        Command::List(args) => list::run(args, context).await,
        Command::Info(args) => info::run(args, context).await,
    }
}

/// The layer that an artifact's record names; `None` for content that is no prefetch artifact.
fn layer_of(info: &ContentInfo) -> Option<Digest> {
    info.labels.get(labels::PREFETCH_LAYER_DIGEST).and_then(|text| soci_store::parse_digest(text))
}

async fn read(context: &Context, digest: &Digest) -> Result<(bytes::Bytes, PrefetchSpans), Error> {
    let bytes = context.containerd().content().read_all(digest, MAX_SIZE).await?;
    let spans = PrefetchSpans::parse(&bytes)
        .map_err(|source| Error::command(PrefetchFileError::Parse { digest: digest.clone(), source }))?;
    Ok((bytes, spans))
}

/// Spans in all runs.
fn total(spans: &PrefetchSpans) -> u64 {
    spans
        .spans()
        .iter()
        .map(|span| u64::from(span.end_span.saturating_sub(span.start_span)).saturating_add(1))
        .fold(0, u64::saturating_add)
}
