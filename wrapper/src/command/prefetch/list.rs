//! `soci prefetch list`.

use serde::Serialize;
use soci_store::{labels, present};

use super::{layer_of, read, total};
use crate::context::Context;
use crate::error::{Error, one_line};
use crate::{table, terminal};

/// Arguments of `soci prefetch list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci prefetch list\n  soci prefetch list --json")]
pub(crate) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Upstream prints Go's field names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    digest: String,
    layer_digest: String,
    /// 0 where the artifact cannot be read.
    total_spans: u64,
    /// RFC 3339.
    created_at: String,
}

/// Runs `soci prefetch list`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let mut infos = context.containerd().content().list(&[present(labels::PREFETCH_LAYER_DIGEST)]).await?;
    infos.sort_by(|a, b| {
        b.created_at.cmp(&a.created_at).then_with(|| a.digest.as_ref().cmp(b.digest.as_ref()))
    });
    let mut rows = Vec::new();
    for info in &infos {
        let Some(layer) = layer_of(info) else { continue };
        let total_spans = match read(context, &info.digest).await {
            Ok((_, spans)) => total(&spans),
            Err(error) => {
                tracing::debug!(digest = %info.digest, error = one_line(&error), "its spans are unknown");
                0
            }
        };
        rows.push(Row {
            digest: info.digest.to_string(),
            layer_digest: layer.to_string(),
            total_spans,
            created_at: info.created_at.map(|at| at.to_string()).unwrap_or_default(),
        });
    }
    if args.json {
        // As Go prints an empty slice that nothing was ever put into.
        let json = if rows.is_empty() { Ok("null".to_owned()) } else { serde_json::to_string_pretty(&rows) };
        return terminal::line(&json.map_err(Error::command)?);
    }
    let mut out = Vec::new();
    table::write(&mut out, table::SOCI, &cells(&rows))
        .map_err(|source| Error::Io { what: "lay the table out".to_owned(), source })?;
    terminal::print(&out)
}

fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let mut cells = vec![["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"].map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        let spans = if row.total_spans == 0 { "N/A".to_owned() } else { row.total_spans.to_string() };
        vec![row.digest.clone(), row.layer_digest.clone(), spans, row.created_at.clone()]
    }));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_gos_names() {
        let row = Row {
            digest: "d".into(),
            layer_digest: "l".into(),
            total_spans: 0,
            created_at: "2024-01-01T00:00:00Z".into(),
        };
        assert_eq!(
            serde_json::to_string(&row).unwrap(),
            r#"{"Digest":"d","LayerDigest":"l","TotalSpans":0,"CreatedAt":"2024-01-01T00:00:00Z"}"#
        );
        assert_eq!(cells(&[row])[1][2], "N/A");
    }
}
