//! `soci image tag`.

use oci_registry::Reference;
use soci_store::{Image, StoreError};

use crate::context::Context;
use crate::error::Error;
use crate::terminal;

/// Arguments of `soci image tag`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci image tag docker.io/library/redis:7 reg.example.com/redis:7")]
pub(crate) struct Args {
    /// Force target reference to be created, regardless if it already exists.
    #[arg(long)]
    force: bool,
    /// Accepted for compatibility: tagging needs no transfer service.
    #[arg(long, hide = true)]
    local: bool,
    /// Store the target references as they are written, without completing them.
    #[arg(long)]
    skip_reference_check: bool,
    /// Image to tag.
    #[arg(value_name = "SOURCE_REF")]
    source: String,
    /// New names for it.
    #[arg(value_name = "TARGET_REF", required = true)]
    targets: Vec<String>,
}

/// Runs `soci image tag`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let images = context.containerd().images();
    let source = images.get(&args.source).await?;
    for target in args.targets {
        if !args.skip_reference_check {
            let _checked: Reference = Reference::parse(&target).map_err(Error::command)?;
        }
        let image = Image::new(target, source.target.clone(), source.labels.clone());
        match images.create(&image).await {
            Err(StoreError::AlreadyExists { .. }) if args.force => {
                images.delete(&image.name, false).await?;
                images.create(&image).await?;
            }
            other => other?,
        }
        terminal::line(&image.name)?;
    }
    Ok(())
}
