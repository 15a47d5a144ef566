//! `soci create`.

use crate::context::Context;
use crate::error::Error;

/// Arguments of `soci create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Not read yet.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}

/// Runs `soci create`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let _ = (args.rest, context);
    Err(Error::NotImplemented("create"))
}
