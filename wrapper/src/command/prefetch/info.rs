//! `soci prefetch info`.

use super::{PrefetchFileError, layer_of, read, total};
use crate::context::Context;
use crate::error::Error;
use crate::{digest, terminal};

/// Arguments of `soci prefetch info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci prefetch info $(soci prefetch ls --json | jq -r '.[0].Digest')")]
pub(crate) struct Args {
    /// Print the artifact itself, too.
    #[arg(long)]
    json: bool,
    /// Digest of the prefetch artifact.
    digest: String,
}

/// Runs `soci prefetch info`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let digest = digest::parse(&args.digest)?;
    let not_found = || Error::command(PrefetchFileError::NotFound(digest.clone()));
    let info = context.containerd().content().info(&digest).await?.ok_or_else(not_found)?;
    let layer = layer_of(&info).ok_or_else(not_found)?;
    let (bytes, spans) = read(context, &digest).await?;
    let mut lines = vec![
        format!("Digest:       {digest}"),
        // The only version that is read.
        "Version:      1.0".to_owned(),
        format!("Span Ranges:  {}", spans.spans().len()),
        format!("Layer Digest: {layer}"),
        format!("Size:         {}", info.size),
        format!("Created:      {}", info.created_at.map(|at| at.to_string()).unwrap_or_default()),
        String::new(),
        "Prefetch Spans:".to_owned(),
    ];
    lines.extend(spans.spans().iter().map(|span| format!("  {}-{}", span.start_span, span.end_span)));
    lines.push(format!("Total spans to prefetch: {}", total(&spans)));
    if args.json {
        lines.extend([String::new(), "Raw JSON:".to_owned(), String::from_utf8_lossy(&bytes).into_owned()]);
    }
    terminal::line(&lines.join("\n"))
}
