//! The end of a layer's check: what follows the archive, and what is kept.

use std::ops::Range;
use std::sync::{Arc, Weak};

use futures_util::StreamExt;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};
use ztoc::CompressedOffset;

use crate::demand::Demand;
use crate::disk::checked::Checked;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::landing::Decoder;
use crate::layer::{Layer, Scanned};
use crate::source::SourceError;
use crate::sources::AttachedSource;

/// Bytes that may follow the archive: a few compressed ones can stand for very many.
const MAX_PADDING: usize = 1 << 30;
/// Bytes of them that are inflated at a time: some milliseconds of a thread.
const STEP: usize = 1 << 20;

/// Why the end of a layer did not come.
enum Missing {
    /// Nobody is left to ask.
    NoSource,
    /// It is too long, of so many compressed bytes.
    TooLong(u64),
    Failed(SourceError),
}

/// The end of a layer while it comes, each span compared with its digest.
struct Incoming<'a> {
    layer: &'a Layer,
    /// Those that are not here yet.
    spans: Range<usize>,
    range: Range<u64>,
    bytes: Vec<u8>,
    /// Of the first of those spans, up to this byte of the layer.
    hash: Sha256,
    hashed: u64,
}

/// What follows the archive, while it is scanned.
struct Padding {
    layer: Weak<Layer>,
    scanned: Box<Scanned>,
    /// From the archive's last span on.
    compressed: Vec<u8>,
    /// So many of these are inflated, and what that gave.
    at: usize,
    written: usize,
    decoder: Option<Decoder>,
    _turn: OwnedSemaphorePermit,
}

impl Engine {
    /// All of the archive was scanned. If the layer ends in zeros, as layers do, it is known what it is; else its end is fetched once more.
    pub(crate) fn conclude(self: &Arc<Self>, layer: &Arc<Layer>, scanned: Box<Scanned>) {
        match scanned.with_zeros(layer, &layer.claims()) {
            Some(found) => self.keep(layer, found),
            None => {
                let (engine, layer) = (Arc::clone(self), Arc::downgrade(layer));
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
            layer.scanned(found);
        });
    }

    /// Waits for its turn without the layer: it may be closed meanwhile.
    async fn read_on(self: Arc<Self>, layer: Weak<Layer>, scanned: Box<Scanned>) {
        // Closed with the engine only, which lives as long as this.
        let Ok(turn) = Arc::clone(&self.tails).acquire_owned().await else { return };
        let Some(open) = layer.upgrade() else { return };
        match self.fetch_tail(&open).await {
            Ok(compressed) => {
                let padding =
                    Padding { layer, scanned, compressed, at: 0, written: 0, decoder: None, _turn: turn };
                add_padding(&self, padding);
            }
            Err(Missing::NoSource) => {
                open.waits_for_check(scanned);
                // One may have come before that.
                if !open.sources().is_empty() {
                    open.judge();
                }
            }
            Err(Missing::TooLong(len)) => {
                tracing::warn!(layer = %open.key().layer, len, "the end of a layer is too long to be fetched once more, so it is not checked");
                open.is_never_checked();
            }
            Err(Missing::Failed(error)) => {
                tracing::warn!(layer = %open.key().layer, %error, "the end of a layer did not come, so it is not checked yet");
                open.checks_later(scanned);
            }
        }
    }

    /// The compressed bytes from the archive's last span on.
    async fn fetch_tail(&self, layer: &Layer) -> Result<Vec<u8>, Missing> {
        let spans = tail(layer);
        let range = layer.compressed(&spans);
        let len = range.end.saturating_sub(range.start);
        if len > self.options.max_tail {
            return Err(Missing::TooLong(len));
        }
        // As for any span: wrong bytes and refusals a few times, what may pass until a reader's deadline.
        let deadline = Instant::now() + self.options.read_deadline;
        let (mut attempt, mut refused) = (0u32, 0u32);
        loop {
            attempt = attempt.saturating_add(1);
            let sources = layer.sources().list();
            let turn = usize::try_from(attempt).ok().and_then(|turn| turn.checked_rem(sources.len()));
            let Some(attached) = turn.and_then(|turn| sources.get(turn)) else {
                return Err(Missing::NoSource);
            };
            // Who has no source any more is to be let go of at once.
            let detached = layer.sources().detached(attached.id);
            let got = async {
                let incoming = Incoming::new(layer, spans.clone(), range.clone());
                let error = match self.receive(incoming, attached).await {
                    Ok(bytes) => return Some(Ok(bytes)),
                    Err(error) => error,
                };
                refused = refused.saturating_add(u32::from(!error.is_transient()));
                if refused >= self.options.span_attempts || Instant::now() >= deadline {
                    return Some(Err(Missing::Failed(error)));
                }
                let asked = error.busy_for().flatten().unwrap_or_default();
                sleep(asked.min(self.options.longest_rest).max(self.options.backoff(attempt))).await;
                None
            };
            let got = tokio::select! {
                got = got => got,
                () = detached => None,
            };
            if let Some(got) = got {
                return got;
            }
        }
    }

    async fn receive(
        &self,
        mut incoming: Incoming<'_>,
        attached: &AttachedSource,
    ) -> Result<Vec<u8>, SourceError> {
        let range = CompressedOffset(incoming.range.start)..CompressedOffset(incoming.range.end);
        let idle = self.options.attempt_timeout;
        let deadline =
            Instant::now() + self.options.patience(incoming.range.end.saturating_sub(incoming.range.start));
        let mut stream = attached.source.read(range);
        while !incoming.spans.is_empty() {
            let patience = idle.min(deadline.saturating_duration_since(Instant::now()));
            match timeout(patience, stream.next()).await {
                Ok(Some(Ok(piece))) => incoming.take(&piece)?,
                Ok(Some(Err(error))) => return Err(error),
                Ok(None) => return Err(SourceError::transient("not all of its bytes came")),
                Err(_) => return Err(SourceError::busy(format!("no bytes within {patience:?}"), None)),
            }
        }
        Ok(incoming.bytes)
    }
}

/// The spans from the archive's last byte to the end of the layer.
fn tail(layer: &Layer) -> Range<usize> {
    let count = layer.spans().len();
    let last = (0..count).rev().find(|span| layer.spans().get(*span).is_some_and(|row| row.tar_len() > 0));
    last.unwrap_or(0)..count
}

/// Scans the next bytes that follow the archive, and has the following ones scanned when there is nothing more urgent. A layer that is closed meanwhile
/// is left alone.
fn add_padding(engine: &Arc<Engine>, mut padding: Padding) {
    let engine_again = Arc::clone(engine);
    engine.pool.run(Demand::Fill, move |scratch| {
        let Some(layer) = padding.layer.upgrade() else { return };
        match padding.add(&layer, scratch.space(STEP)) {
            Ok(false) => add_padding(&engine_again, padding),
            Ok(true) => engine_again.keep(&layer, padding.scanned.finish(&layer, &layer.claims())),
            // As it is, these bytes being those of their digest.
            Err(error @ ReadError::Inflate { .. }) => {
                tracing::warn!(layer = %layer.key().layer, %error, "the end of a layer cannot be read, so it is not checked");
                layer.is_never_checked();
            }
            Err(error) => {
                tracing::warn!(layer = %layer.key().layer, %error, "the end of a layer could not be read, so it is not checked yet");
                layer.checks_later(padding.scanned);
            }
        }
    });
}

// === impl Incoming ===

impl<'a> Incoming<'a> {
    fn new(layer: &'a Layer, spans: Range<usize>, range: Range<u64>) -> Self {
        let hashed = range.start;
        Self { layer, spans, range, bytes: Vec::new(), hash: Sha256::new(), hashed }
    }

    /// A byte between two spans can belong to both.
    fn take(&mut self, piece: &[u8]) -> Result<(), SourceError> {
        self.bytes.extend_from_slice(piece);
        let end = self.range.start.saturating_add(self.bytes.len() as u64);
        if end > self.range.end {
            return Err(SourceError::permanent("more bytes came than it has"));
        }
        while let Some(row) = self.layer.spans().get(self.spans.start).filter(|_| !self.spans.is_empty()) {
            let (from, to) = (self.hashed.max(row.compressed.start), row.compressed.end.min(end));
            let place = |at: u64| usize::try_from(at.saturating_sub(self.range.start)).unwrap_or(usize::MAX);
            self.hash.update(self.bytes.get(place(from)..place(to)).unwrap_or_default());
            if row.compressed.end > end {
                self.hashed = from.max(to);
                return Ok(());
            }
            if <[u8; 32]>::from(self.hash.finalize_reset()) != row.digest {
                return Err(SourceError::permanent("its bytes are wrong"));
            }
            (self.spans.start, self.hashed) = (self.spans.start.saturating_add(1), 0);
        }
        Ok(())
    }
}

// === impl Padding ===

impl Padding {
    /// The next bytes. Whether they were the last.
    fn add(&mut self, layer: &Layer, space: &mut [u8]) -> Result<bool, ReadError> {
        let span = tail(layer).start;
        let row = layer.row(span)?;
        let archive = usize::try_from(row.tar_len()).unwrap_or(usize::MAX);
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(Decoder::new(layer, span, row)?),
        };
        let failed = |source| ReadError::Inflate { span: layer.number(span), source: Arc::new(source) };
        let rest = self.compressed.get(self.at..).unwrap_or_default();
        let pushed = decoder.push(rest, space).map_err(failed)?;
        let new = space.get(..pushed.written).unwrap_or_default();
        self.scanned.add(layer, new.get(archive.saturating_sub(self.written)..).unwrap_or_default());
        self.at = self.at.saturating_add(pushed.consumed);
        self.written = self.written.saturating_add(pushed.written);
        if self.written.saturating_sub(archive) > MAX_PADDING {
            return Err(failed(ztoc::ExtractError::TooLong(MAX_PADDING)));
        }
        Ok(pushed.written < space.len())
    }
}
