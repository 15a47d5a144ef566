//! `soci ztoc get-file`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use oci_spec::image::Digest;
use soci_store::ContentStore;
use thiserror::Error as ThisError;
use ztoc::{
    CheckpointRef, Compression, Entry, EntryKind, ExtractError, Span, SpanDigest, SpanId, UncompressedOffset,
    Want, Ztoc, extract_gzip,
};

use crate::context::Context;
use crate::error::Error;
use crate::interrupt::Interrupts;
use crate::terminal;

/// A chain of hard links in a layer that is longer than this goes in circles.
const MAX_LINKS: usize = 40;

/// Most bytes that one byte of deflate can stand for.
const MAX_RATIO: usize = 1032;

/// Arguments of `soci ztoc get-file`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci ztoc get-file $(soci ztoc ls -q | head -n 1) etc/passwd\n  soci ztoc get-file --output passwd $(soci ztoc ls -q | head -n 1) etc/passwd"
)]
pub(crate) struct Args {
    /// File to write to, instead of stdout.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Digest of the zTOC.
    #[arg(value_name = "ZTOC DIGEST")]
    digest: Option<String>,
    /// Name of the file in the layer.
    #[arg(value_name = "FILE")]
    file: Option<String>,
}

#[derive(Debug, ThisError)]
enum GetFileError {
    #[error("please provide both a ztoc digest and a filename to extract")]
    Usage,
    #[error("file {0} does not exist in metadata")]
    NoSuchFile(String),
    #[error("{name} is no regular file but of type {kind}")]
    NotAFile { name: String, kind: &'static str },
    #[error("the zTOC is of another blob: {layer} has {here} bytes, it says {told}")]
    Size { layer: Digest, here: u64, told: u64 },
    #[error("span {span} of layer {layer} cannot have the {length} bytes that the zTOC says")]
    Length { layer: Digest, span: u32, length: u64 },
    #[error("span {span} of layer {layer} is not in the zTOC")]
    NoSpan { layer: Digest, span: u32 },
    #[error("span {span} of layer {layer} does not match its digest")]
    SpanDigest { layer: Digest, span: u32 },
    #[error("span {span} of layer {layer} cannot be decoded")]
    Extract { layer: Digest, span: u32, source: ExtractError },
}

/// Runs `soci ztoc get-file`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let (Some(digest), Some(name)) = (&args.digest, &args.file) else {
        return Err(Error::command(GetFileError::Usage));
    };
    let (record, ztoc) = super::load(context, digest).await?;
    let entry = find(&ztoc, name).map_err(Error::command)?;
    let content = context.containerd().content();
    let layer = &record.layer_digest;
    let mut interrupts = Interrupts::listen(context)?;
    let work = async {
        // Every range is within what the zTOC says of the whole, which may be anything.
        if let Some(info) = content.info(layer).await?
            && info.size != ztoc.compressed_size
        {
            let (layer, here, told) = (layer.clone(), info.size, ztoc.compressed_size);
            return Err(Error::command(GetFileError::Size { layer, here, told }));
        }
        match &args.output {
            Some(path) => {
                let failed = |source| Error::Io { what: format!("write {}", path.display()), source };
                let mut file = File::create(path).map_err(failed)?;
                extract(&content, layer, &ztoc, entry, |bytes| file.write_all(bytes).map_err(failed)).await
            }
            None => {
                extract(&content, layer, &ztoc, entry, terminal::print).await?;
                terminal::line("")
            }
        }
    };
    interrupts.unless(work).await
}

/// The last entry with that name, as unpacking would leave it, hard links followed.
fn find<'a>(ztoc: &'a Ztoc, name: &str) -> Result<&'a Entry, GetFileError> {
    let missing = || GetFileError::NoSuchFile(name.to_owned());
    let mut wanted = name.as_bytes();
    for _ in 0..MAX_LINKS {
        let entry =
            ztoc.entries.iter().rev().find(|entry| bare(&entry.name) == bare(wanted)).ok_or_else(missing)?;
        match entry.kind {
            EntryKind::Regular => return Ok(entry),
            EntryKind::Hardlink => wanted = &entry.link_name,
            kind => return Err(GetFileError::NotAFile { name: name.to_owned(), kind: kind.as_str() }),
        }
    }
    Err(missing())
}

/// `./etc/passwd`, `/etc/passwd` and `etc/passwd` are one file.
fn bare(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_prefix(b"./").or_else(|| name.strip_prefix(b"/")) {
        name = rest;
    }
    name
}

/// Hands the file's bytes on, span by span, each checked before anything of it is used.
async fn extract(
    content: &ContentStore,
    layer: &Digest,
    ztoc: &Ztoc,
    entry: &Entry,
    mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let start = entry.data_offset.0;
    let end = start.saturating_add(entry.size);
    if start == end {
        return Ok(());
    }
    let spans = ztoc.spans.covering(UncompressedOffset(start)..UncompressedOffset(end));
    for id in spans.start().0..=spans.end().0 {
        let span = ztoc
            .spans
            .span(SpanId(id))
            .ok_or_else(|| Error::command(GetFileError::NoSpan { layer: layer.clone(), span: id }))?;
        let compressed = content.read_range(layer, span.compressed.start.0..span.compressed.end.0).await?;
        let bytes = decode(ztoc, &span, &compressed, layer).map_err(Error::command)?;
        let from = start.saturating_sub(span.uncompressed.start.0);
        let to = end.saturating_sub(span.uncompressed.start.0).min(bytes.len() as u64);
        let part = usize::try_from(from).ok().zip(usize::try_from(to).ok());
        let part = part.and_then(|(from, to)| bytes.get(from..to)).unwrap_or_default();
        sink(part)?;
    }
    Ok(())
}

fn decode(ztoc: &Ztoc, span: &Span, compressed: &Bytes, layer: &Digest) -> Result<Bytes, GetFileError> {
    let (layer, id) = (layer.clone(), span.id.0);
    if SpanDigest::of(compressed) != span.digest {
        return Err(GetFileError::SpanDigest { layer, span: id });
    }
    if ztoc.spans.compression() == Compression::Uncompressed {
        return Ok(compressed.clone());
    }
    let checkpoint = ztoc
        .spans
        .checkpoint(span.id)
        .ok_or_else(|| GetFileError::NoSpan { layer: layer.clone(), span: id })?;
    let told = span.uncompressed_len();
    let length = room(told, compressed.len()).ok_or_else(|| GetFileError::Length {
        layer: layer.clone(),
        span: id,
        length: told,
    })?;
    extract_gzip(CheckpointRef::from(checkpoint), compressed, Want::Exactly(length))
        .map(Bytes::from)
        .map_err(|source| GetFileError::Extract { layer, span: id, source })
}

/// What a span is to decode to, if that can be and there is room for it.
fn room(told: u64, compressed: usize) -> Option<usize> {
    let length = usize::try_from(told).ok()?;
    let possible = compressed.saturating_add(1).saturating_mul(MAX_RATIO);
    (length <= possible && Vec::<u8>::new().try_reserve_exact(length).is_ok()).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_is_made_for_what_cannot_be() {
        assert_eq!(room(1000, 100), Some(1000));
        assert_eq!(room(1032 * 100, 100), Some(1032 * 100));
        assert_eq!(room(i64::MAX.unsigned_abs(), 100), None);
        assert_eq!(room(u64::MAX, usize::MAX), None);
    }

    #[test]
    fn names_with_and_without_a_root() {
        assert_eq!(bare(b"./etc/x"), b"etc/x");
        assert_eq!(bare(b"/etc/x"), b"etc/x");
        assert_eq!(bare(b".//etc/x"), b"etc/x");
        assert_eq!(bare(b".etc/x"), b".etc/x");
    }
}
