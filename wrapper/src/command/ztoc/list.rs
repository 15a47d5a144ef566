//! `soci ztoc list`.

use std::collections::HashSet;

use oci_spec::image::Digest;
use soci_index::SociIndex;
use soci_store::ZtocRecord;
use thiserror::Error as ThisError;

use crate::context::Context;
use crate::error::Error;
use crate::{digest, local_image, table, terminal};

/// Arguments of `soci ztoc list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci ztoc list\n  soci ztoc list --image-ref docker.io/library/redis:7")]
pub(crate) struct Args {
    /// Only the zTOC with this digest.
    #[arg(long, value_name = "DIGEST")]
    ztoc_digest: Option<String>,
    /// Only zTOCs of this image's indices.
    #[arg(long, value_name = "REF")]
    image_ref: Option<String>,
    /// Only the zTOC digests.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, ThisError)]
#[error(
    "the specified ztoc doesn't exist or is not associated with the specified image (try running \"soci rebuild-db\" first)"
)]
struct NoSuchZtoc;

/// Runs `soci ztoc list`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let mut records = context.containerd().artifacts().list_ztocs().await?;
    if let Some(name) = &args.image_ref {
        let wanted = of_image(context, name).await?;
        records.retain(|record| wanted.contains(&record.digest));
    }
    if let Some(text) = &args.ztoc_digest {
        let wanted = digest::parse(text)?;
        records.retain(|record| record.digest == wanted);
        if records.is_empty() {
            return Err(Error::command(NoSuchZtoc));
        }
    }
    if args.quiet {
        return records.iter().try_for_each(|record| terminal::line(record.digest.as_ref()));
    }
    let mut out = Vec::new();
    table::write(&mut out, table::SOCI, &rows(&records))
        .map_err(|source| Error::Io { what: "lay the table out".to_owned(), source })?;
    terminal::print(&out)
}

fn rows(records: &[ZtocRecord]) -> Vec<Vec<String>> {
    let mut rows = vec![["DIGEST", "SIZE", "LAYER DIGEST"].map(str::to_owned).to_vec()];
    rows.extend(records.iter().map(|record| {
        vec![record.digest.to_string(), record.size.to_string(), record.layer_digest.to_string()]
    }));
    rows
}

/// What the image's indices name.
async fn of_image(context: &Context, name: &str) -> Result<HashSet<Digest>, Error> {
    let containerd = context.containerd();
    let image = local_image::find(containerd, name).await?;
    let manifests = local_image::manifest_digests(containerd, &image).await;
    let artifacts = containerd.artifacts();
    let mut ztocs = HashSet::new();
    for record in artifacts.list_indices().await? {
        if !manifests.contains(&record.image_digest) {
            continue;
        }
        let bytes = artifacts.read_index(&record.digest).await?;
        match SociIndex::parse(&bytes) {
            Ok(index) => ztocs.extend(index.ztocs().map(|ztoc| ztoc.digest().clone())),
            Err(error) => tracing::debug!(index = %record.digest, %error, "left out"),
        }
    }
    Ok(ztocs)
}
