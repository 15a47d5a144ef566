//! `soci image list`.

use std::collections::BTreeSet;

use oci_registry::platform::Platform;
use oci_spec::image::Descriptor;
use soci_store::{ContentStore, Image};

use crate::context::Context;
use crate::error::{Error, one_line};
use crate::image::{Config, Document};
use crate::table;
use crate::terminal;

/// Largest config that is looked at, bytes.
const MAX_CONFIG_SIZE: u64 = 16 << 20;

/// Arguments of `soci image list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci image ls\n  soci image ls name~=redis")]
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
        return images.iter().try_for_each(|image| terminal::line(&image.name));
    }
    let content = context.containerd().content();
    let mut rows =
        vec![["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS", ""].map(str::to_owned).to_vec()];
    for image in &images {
        let facts = facts(&content, &image.target).await.unwrap_or_else(|error| {
            tracing::warn!(image = image.name, error = one_line(&error), "size and platforms are unknown");
            Facts::default()
        });
        rows.push(row(image, &facts));
    }
    let mut out = Vec::new();
    table::write(&mut out, table::CTR, &rows)
        .map_err(|source| Error::Io { what: "lay the table out".to_owned(), source })?;
    terminal::print(&out)
}

/// What an image's documents say about it.
#[derive(Debug, Default)]
struct Facts {
    /// Bytes in the registry, for this machine's platform.
    size: u64,
    platforms: BTreeSet<String>,
}

async fn facts(content: &ContentStore, target: &Descriptor) -> Result<Facts, Error> {
    let read = async |descriptor: &Descriptor| {
        let bytes = content.read_all(descriptor.digest(), oci_registry::MAX_MANIFEST_SIZE).await?;
        Document::parse(descriptor.digest(), &bytes).map_err(Error::command)
    };
    let mut facts = Facts { size: target.size(), platforms: BTreeSet::new() };
    let manifest = match read(target).await? {
        Document::Manifest(manifest) => {
            let bytes = content.read_all(manifest.config.digest(), MAX_CONFIG_SIZE).await?;
            let config = Config::parse(manifest.config.digest(), &bytes).map_err(Error::command)?;
            facts.platforms.insert(config.platform().to_string());
            Some(manifest)
        }
        Document::Index(manifests) => {
            facts.platforms.extend(
                manifests
                    .iter()
                    .filter(|entry| entry.artifact_type().is_none())
                    .filter_map(|entry| entry.platform().as_ref())
                    .map(as_written),
            );
            match oci_registry::platform::choose(&manifests, &Platform::host()) {
                Some(chosen) => {
                    facts.size = facts.size.saturating_add(chosen.size());
                    match read(chosen).await {
                        Ok(Document::Manifest(manifest)) => Some(manifest),
                        _ => None,
                    }
                }
                None => None,
            }
        }
    };
    if let Some(manifest) = manifest {
        facts.size = manifest.blobs().fold(facts.size, |sum, blob| sum.saturating_add(blob.size()));
    }
    Ok(facts)
}

/// A platform as the list has it, not normalised: so does `ctr`.
fn as_written(platform: &oci_spec::image::Platform) -> String {
    let mut text = format!("{}/{}", platform.os(), platform.architecture());
    if let Some(variant) = platform.variant().as_deref().filter(|variant| !variant.is_empty()) {
        text.push('/');
        text.push_str(variant);
    }
    text
}

fn row(image: &Image, facts: &Facts) -> Vec<String> {
    let mut labels: Vec<String> = image.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    let or_dash = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(",") };
    vec![
        image.name.clone(),
        image.target.media_type().to_string(),
        image.target.digest().to_string(),
        human(facts.size),
        or_dash(facts.platforms.iter().cloned().collect()),
        or_dash(labels),
        String::new(),
    ]
}

/// Bytes as `ctr` writes them: one decimal, units of 1024.
pub(super) fn human(bytes: u64) -> String {
    let mut number = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while number >= 1024.0 {
        let Some(larger) = units.next() else { break };
        (number, unit) = (number / 1024.0, larger);
    }
    format!("{number:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_ctr_writes_them() {
        assert_eq!(human(0), "0.0 B");
        assert_eq!(human(1023), "1023.0 B");
        assert_eq!(human(1024), "1.0 KiB");
        assert_eq!(human(2_831_155), "2.7 MiB");
        assert_eq!(human(u64::MAX), "16.0 EiB");
    }
}
