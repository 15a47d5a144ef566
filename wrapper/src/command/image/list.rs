//! `soci image list`.

use crate::context::Context;
use crate::error::Error;

/// Arguments of `soci image list`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print only the image refs.
    #[arg(short, long)]
    quiet: bool,
    /// Expressions of containerd's filter language.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// Runs `soci image list`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let mut images = context.containerd().images().list(&args.filters).await?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    if args.quiet {
        for image in &images {
            crate::terminal::line(&image.name)?;
        }
        return Ok(());
    }
    Err(Error::NotImplemented("image list"))
}
