//! The end of a layer's check: what follows the archive, and what is kept.

use std::ops::Range;
use std::sync::Arc;

use futures_util::StreamExt;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout};
use ztoc::{CheckpointRef, CompressedOffset, SpanInflater};

use crate::demand::Demand;
use crate::disk::checked::Checked;
use crate::disk::manifest::Encoding;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::layer::{Layer, Scanned};
use crate::source::SourceError;

/// Bytes that may follow the archive: a few compressed ones can stand for very many.
const MAX_PADDING: usize = 1 << 30;
/// Bytes of them that are inflated at a time.
const STEP: usize = 256 << 10;

impl Engine {
    /// All of the archive was scanned. If the layer ends in zeros, as layers do, it is known what it is; else its end is fetched once more.
    pub(crate) fn conclude(self: &Arc<Self>, layer: &Arc<Layer>, scanned: Scanned) {
        match scanned.with_zeros(layer, &layer.claims()) {
            Some(found) => self.keep(layer, found),
            None => {
                let (engine, layer) = (Arc::clone(self), Arc::clone(layer));
                self.runtime.spawn(async move { engine.read_on(layer, scanned).await });
            }
        }
    }

    /// Writes down what was found, when the layer itself is on the disk.
    pub(crate) fn keep(self: &Arc<Self>, layer: &Arc<Layer>, found: Checked) {
        let layer = Arc::clone(layer);
        self.runtime.spawn_blocking(move || {
            let kept = layer.settle().map_err(crate::FileError::of("sync", layer.directory()));
            if let Err(error) = kept.and_then(|()| found.write(layer.directory())) {
                // It is true all the same; only a restart will find it out again.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(layer = %layer.key().layer, error, "what a complete layer is could not be written down");
            }
            layer.scanned(Some(found));
        });
    }

    async fn read_on(self: Arc<Self>, layer: Arc<Layer>, scanned: Scanned) {
        let bytes = match self.fetch_tail(&layer).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(layer = %layer.key().layer, %error, "the end of a layer did not come, so it is not checked yet");
                return layer.scanned(None);
            }
        };
        let engine = Arc::clone(&self);
        self.pool.run(Demand::Fill, move |_| {
            let mut scanned = scanned;
            match add_padding(&layer, &bytes, &mut scanned) {
                Ok(()) => engine.keep(&layer, scanned.finish(&layer, &layer.claims())),
                Err(error) => {
                    tracing::warn!(layer = %layer.key().layer, %error, "the end of a layer cannot be read, so it is not checked");
                    layer.scanned(None);
                }
            }
        });
    }

    /// The compressed bytes from the archive's last span on, each span compared with its digest.
    async fn fetch_tail(&self, layer: &Layer) -> Result<Vec<u8>, SourceError> {
        let spans = tail(layer);
        let range = layer.compressed(&spans);
        let len = range.end.saturating_sub(range.start);
        if len > self.options.max_tail {
            return Err(SourceError::permanent(format!("it has {len} compressed bytes")));
        }
        // As for any span: wrong bytes and refusals a few times, what may pass until a reader's deadline.
        let deadline = Instant::now() + self.options.read_deadline;
        let (mut attempt, mut refused) = (0u32, 0u32);
        loop {
            attempt = attempt.saturating_add(1);
            let sources = layer.sources().list();
            let turn = usize::try_from(attempt).ok().and_then(|turn| turn.checked_rem(sources.len()));
            let Some(attached) = turn.and_then(|turn| sources.get(turn)) else {
                return Err(SourceError::permanent("there is no source"));
            };
            let limit = self.options.patience(len);
            let mut stream = attached.source.read(CompressedOffset(range.start)..CompressedOffset(range.end));
            let mut bytes = Vec::new();
            let whole = async {
                while let Some(piece) = stream.next().await {
                    bytes.extend_from_slice(&piece?);
                    if bytes.len() as u64 > len {
                        break;
                    }
                }
                Ok(())
            };
            let error = match timeout(limit, whole).await {
                Ok(Ok(())) if is_right(layer, &spans, range.start, &bytes) => return Ok(bytes),
                Ok(Ok(())) => SourceError::permanent("its bytes are wrong"),
                Ok(Err(error)) => error,
                Err(_) => SourceError::transient(format!("nothing within {limit:?}")),
            };
            refused = refused.saturating_add(u32::from(!error.is_transient()));
            if refused >= self.options.span_attempts || Instant::now() >= deadline {
                return Err(error);
            }
            sleep(self.options.backoff(attempt)).await;
        }
    }
}

/// The spans from the archive's last byte to the end of the layer.
fn tail(layer: &Layer) -> Range<usize> {
    let count = layer.spans().len();
    let last = (0..count).rev().find(|span| layer.spans().get(*span).is_some_and(|row| row.tar_len() > 0));
    last.unwrap_or(0)..count
}

fn is_right(layer: &Layer, spans: &Range<usize>, start: u64, bytes: &[u8]) -> bool {
    spans.clone().all(|span| {
        let part = layer.spans().get(span).and_then(|row| {
            let from = usize::try_from(row.compressed.start.checked_sub(start)?).ok()?;
            let to = usize::try_from(row.compressed.end.checked_sub(start)?).ok()?;
            Some((row.digest, bytes.get(from..to)?))
        });
        part.is_some_and(|(digest, part)| <[u8; 32]>::from(Sha256::digest(part)) == digest)
    })
}

/// Goes on with what follows the archive in the layer.
fn add_padding(layer: &Layer, compressed: &[u8], scanned: &mut Scanned) -> Result<(), ReadError> {
    let span = tail(layer).start;
    let row = layer.row(span)?;
    let archive = usize::try_from(row.tar_len()).unwrap_or(usize::MAX);
    if layer.encoding() == Encoding::Tar {
        scanned.add(layer, compressed.get(archive..).unwrap_or_default());
        return Ok(());
    }
    let failed = |source| ReadError::Inflate { span: layer.number(span), source: Arc::new(source) };
    let window = layer.window(span, row)?;
    let mut inflater =
        SpanInflater::new(CheckpointRef { bits: row.bits, window: &window }).map_err(failed)?;
    let (mut rest, mut space) = (compressed, vec![0; STEP]);
    loop {
        let before = inflater.written();
        let pushed = inflater.push(rest, &mut space).map_err(failed)?;
        rest = rest.get(pushed.consumed..).unwrap_or_default();
        let new = space.get(..pushed.written).unwrap_or_default();
        scanned.add(layer, new.get(archive.saturating_sub(before)..).unwrap_or_default());
        if inflater.written().saturating_sub(archive) > MAX_PADDING {
            return Err(failed(ztoc::ExtractError::TooLong(MAX_PADDING)));
        }
        if pushed.written < space.len() {
            return Ok(());
        }
    }
}
