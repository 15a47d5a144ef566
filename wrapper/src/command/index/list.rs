//! `soci index list`.

use jiff::Timestamp;
use oci_registry::platform::Platform;
use oci_spec::image::Digest;
use soci_store::{Image, IndexRecord};

use crate::context::Context;
use crate::error::Error;
use crate::local_image;
use crate::{duration, table, terminal};

/// Arguments of `soci index list`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci index list\n  soci index list --quiet --ref docker.io/library/redis:7"
)]
pub(crate) struct Args {
    /// Only indices of this image.
    #[arg(long, value_name = "REF")]
    r#ref: Option<String>,
    /// Only indices for this platform.
    #[arg(long, short, value_parser = Platform::parse)]
    platform: Vec<Platform>,
    /// Only the index digests.
    #[arg(short, long)]
    quiet: bool,
}

/// An image name and the manifests that it leads to.
struct Named {
    name: String,
    manifests: Vec<Digest>,
}

/// Runs `soci index list`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let containerd = context.containerd();
    let mut records = containerd.artifacts().list_indices().await?;
    if !args.platform.is_empty() {
        records.retain(|record| {
            Platform::parse(&record.platform).is_ok_and(|platform| args.platform.contains(&platform))
        });
    }
    let images = match &args.r#ref {
        Some(name) => vec![local_image::find(containerd, name).await?],
        None if args.quiet => Vec::new(),
        None => containerd.images().list(&[]).await?,
    };
    let named = named(context, &images).await;
    if args.r#ref.is_some() {
        records.retain(|record| named.iter().any(|named| named.manifests.contains(&record.image_digest)));
    }
    if args.quiet {
        return records.iter().try_for_each(|record| terminal::line(record.digest.as_ref()));
    }
    let rows = rows(&records, &named, Timestamp::now());
    let mut out = Vec::new();
    table::write(&mut out, table::SOCI, &rows)
        .map_err(|source| Error::Io { what: "lay the table out".to_owned(), source })?;
    terminal::print(&out)
}

/// An image whose manifests are not all here still has the name of those that are.
async fn named(context: &Context, images: &[Image]) -> Vec<Named> {
    let mut named = Vec::with_capacity(images.len());
    for image in images {
        let manifests = local_image::manifest_digests(context.containerd(), image).await;
        named.push(Named { name: image.name.clone(), manifests });
    }
    named.sort_by(|a, b| a.name.cmp(&b.name));
    named
}

/// One row for each name of the index's image, a single one without a name where there is none.
fn rows(records: &[IndexRecord], images: &[Named], now: Timestamp) -> Vec<Vec<String>> {
    let header = ["DIGEST", "SIZE", "IMAGE REF", "PLATFORM", "MEDIA TYPE", "MANIFEST VERSION", "CREATED"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for record in records {
        let mut names: Vec<&str> = images
            .iter()
            .filter(|image| image.manifests.contains(&record.image_digest))
            .map(|image| image.name.as_str())
            .collect();
        if names.is_empty() {
            names.push("");
        }
        for name in names {
            rows.push(vec![
                record.digest.to_string(),
                record.size.to_string(),
                name.to_owned(),
                record.platform.clone(),
                soci_index::MANIFEST_MEDIA_TYPE.to_owned(),
                record.version.clone(),
                created(record.created_at, now),
            ]);
        }
    }
    rows
}

/// `3m2s ago`, or `n/a` for the time that stands for none.
pub(crate) fn created(at: Timestamp, now: Timestamp) -> String {
    if at == Timestamp::UNIX_EPOCH {
        return "n/a".to_owned();
    }
    let seconds = now.duration_since(at).as_secs_f64().max(0.0).round();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative; a time before the year 10000"
    )]
    let seconds = seconds as u64;
    format!("{} ago", duration::seconds(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use soci_index::digest_of;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn ages_are_gos() {
        let now = at("2024-01-02T00:00:00Z");
        assert_eq!(created(at("2024-01-01T23:59:59.6Z"), now), "0s ago");
        assert_eq!(created(at("2024-01-01T23:59:59.4Z"), now), "1s ago");
        assert_eq!(created(at("2024-01-01T23:56:58Z"), now), "3m2s ago");
        assert_eq!(created(at("2023-12-31T22:00:00Z"), now), "26h0m0s ago");
        assert_eq!(created(at("2024-01-03T00:00:00Z"), now), "0s ago");
        assert_eq!(created(Timestamp::UNIX_EPOCH, now), "n/a");
    }

    #[test]
    fn one_row_for_each_name() {
        let image = digest_of(b"image");
        let record = IndexRecord {
            digest: digest_of(b"index"),
            size: 12,
            image_digest: image.clone(),
            platform: "linux/amd64".into(),
            version: "v1".into(),
            created_at: at("2024-01-01T00:00:00Z"),
        };
        let names = |list: &[&str]| -> Vec<Named> {
            list.iter().map(|name| Named { name: (*name).into(), manifests: vec![image.clone()] }).collect()
        };
        let now = at("2024-01-01T00:00:01Z");
        let records = [record];
        assert_eq!(rows(&records, &names(&["a", "b"]), now).len(), 3);
        let rows = rows(&records, &[], now);
        assert_eq!(rows[1][2], "");
        assert_eq!(rows[1][6], "1s ago");
    }
}
