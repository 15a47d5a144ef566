//! `soci index remove`.

use soci_store::IndexRecord;
use thiserror::Error as ThisError;

use crate::context::Context;
use crate::digest;
use crate::error::Error;
use crate::local_image;

/// Arguments of `soci index remove`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci index rm $(soci index ls -q | head -n 1)\n  soci index rm --ref docker.io/library/redis:7"
)]
pub(crate) struct Args {
    /// Remove the indices of this image.
    #[arg(long, value_name = "REF")]
    r#ref: Option<String>,
    /// Digests of indices.
    #[arg(value_name = "DIGEST")]
    digests: Vec<String>,
}

#[derive(Debug, ThisError)]
enum RemoveError {
    #[error("please provide either index digests or image ref, but not both")]
    Both,
    #[error("please provide index digests or an image ref")]
    Neither,
    #[error("the index of the digest {0} doesn't exist")]
    NotFound(String),
    #[error("the digest {0} does not correspond to an index")]
    NotAnIndex(String),
}

/// Runs `soci index remove`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let artifacts = context.containerd().artifacts();
    let records: Vec<IndexRecord> = match (&args.r#ref, args.digests.as_slice()) {
        (Some(_), [_, ..]) => return Err(Error::command(RemoveError::Both)),
        (None, []) => return Err(Error::command(RemoveError::Neither)),
        (Some(name), []) => {
            let image = local_image::find(context.containerd(), name).await?;
            let manifests = local_image::manifest_digests(context.containerd(), &image).await;
            let mut records = artifacts.list_indices().await?;
            records.retain(|record| manifests.contains(&record.image_digest));
            records
        }
        (None, digests) => {
            // All are looked at before the first one goes.
            let mut records = Vec::new();
            for text in digests {
                records.push(record(context, text).await?);
            }
            records
        }
    };
    for record in records {
        artifacts.remove_index(&record.digest).await?;
    }
    Ok(())
}

async fn record(context: &Context, text: &str) -> Result<IndexRecord, Error> {
    let digest = digest::parse(text)?;
    if let Some(record) = context.containerd().artifacts().index(&digest).await? {
        return Ok(record);
    }
    Err(Error::command(match context.containerd().content().info(&digest).await? {
        Some(_) => RemoveError::NotAnIndex(text.to_owned()),
        None => RemoveError::NotFound(text.to_owned()),
    }))
}
