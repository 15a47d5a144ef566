//! One ranged read of a source, and the spans that its bytes belong to.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{Instant, timeout};
use ztoc::CompressedOffset;

use crate::board::{Gate, Outcome, TransferId};
use crate::engine::Engine;
use crate::landing::{End, Landing};
use crate::layer::Layer;
use crate::source::SourceError;
use crate::sources::AttachedSource;

/// See the module. When it is dropped unfinished, the board learns that.
pub(crate) struct Transfer {
    id: TransferId,
    engine: Arc<Engine>,
    layer: Arc<Layer>,
    source: AttachedSource,
    range: Range<u64>,
    /// The span that the next byte belongs to, and one past the last.
    spans: Range<usize>,
    /// The next byte.
    at: u64,
    /// The span whose bytes come, once some have.
    landing: Option<Arc<Landing>>,
    begun: Instant,
    /// Until its first bytes came.
    way: Option<Duration>,
    ended: bool,
}

impl Transfer {
    pub(crate) fn new(
        id: TransferId,
        engine: Arc<Engine>,
        layer: Arc<Layer>,
        source: AttachedSource,
        spans: Range<usize>,
        range: Range<u64>,
    ) -> Self {
        Self {
            id,
            engine,
            layer,
            source,
            at: range.start,
            range,
            spans,
            landing: None,
            begun: Instant::now(),
            way: None,
            ended: false,
        }
    }

    /// Does all of it.
    pub(crate) async fn run(mut self) {
        let (layer, source, spans) = (Arc::clone(&self.layer), self.source.id, self.spans.clone());
        let outcome = tokio::select! {
            outcome = self.receive() => outcome,
            () = layer.sources().detached(source) => Outcome::Detached,
        };
        if let Outcome::Failed(error) | Outcome::TooShort(error) = &outcome {
            tracing::debug!(layer = %layer.key().layer, spans = ?self.spans, %error, transient = error.is_transient(), "a ranged read failed");
        }
        tracing::trace!(
            layer = %layer.key().layer,
            ?spans,
            left = ?self.spans,
            bytes = self.at.saturating_sub(self.range.start),
            of = self.range.end.saturating_sub(self.range.start),
            way_usec = self.way.unwrap_or_default().as_micros(),
            took_usec = self.begun.elapsed().as_micros(),
            "a ranged read ended"
        );
        self.end(outcome);
    }

    async fn receive(&mut self) -> Outcome {
        let mut gates = self.engine.gate();
        let range = CompressedOffset(self.range.start)..CompressedOffset(self.range.end);
        let mut stream = self.source.source.read(range);
        // Without progress, and altogether; the time that it was made to wait does not count.
        let idle = self.engine.options.attempt_timeout;
        let len = self.range.end.saturating_sub(self.range.start);
        let mut patience = self.engine.options.patience(len);
        let mut got = 0;
        loop {
            // Seen before the question, so that no change after it is missed.
            gates.mark_unchanged();
            match self.engine.progress(self.id, self.at, got) {
                Gate::Stop => return Outcome::Done,
                Gate::Wait => {
                    got = 0;
                    // The sender lives as long as the engine.
                    let _ = gates.changed().await;
                    continue;
                }
                Gate::Go => {}
            }
            self.engine.backlog.wait(self.engine.options.max_bytes_in_flight).await;
            let asked = Instant::now();
            let piece = match timeout(idle.min(patience), stream.next()).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => return Outcome::Failed(error),
                Ok(None) => {
                    let missing = self.range.end.saturating_sub(self.at);
                    return Outcome::TooShort(SourceError::transient(format!(
                        "{missing} of {len} bytes did not come"
                    )));
                }
                Err(_) => {
                    let error = format!("no bytes within {:?}", idle.min(patience));
                    return Outcome::Failed(SourceError::busy(error, None));
                }
            };
            patience = patience.saturating_sub(asked.elapsed());
            got = piece.len() as u64;
            self.way.get_or_insert_with(|| self.begun.elapsed());
            self.take(&piece);
        }
    }

    /// Gives the bytes to the spans that they belong to; a byte between two can belong to both.
    fn take(&mut self, piece: &Bytes) {
        let start = self.at;
        let end = start.saturating_add(piece.len() as u64);
        self.at = end;
        let mut counted = false;
        while let Some(row) = self.layer.spans().get(self.spans.start).filter(|_| !self.spans.is_empty()) {
            let (from, to) = (row.compressed.start.max(start), row.compressed.end.min(end));
            let part = from.checked_sub(start).zip(to.checked_sub(start)).and_then(|(from, to)| {
                let (from, to) = (usize::try_from(from).ok()?, usize::try_from(to).ok()?);
                (from < to).then(|| piece.slice(from..to))
            });
            let Some(part) = part else { break };
            let span = self.spans.start;
            // Not if it was given to another transfer meanwhile, and all after it.
            let Some(demand) = self.engine.expects(self.id, &self.layer, span) else { break };
            if !std::mem::replace(&mut counted, true) {
                self.layer.counters().fetched(demand, piece.len() as u64);
            }
            let landing = self.landing.get_or_insert_with(|| Landing::new(&self.engine, &self.layer, span));
            landing.push(part, demand);
            if row.compressed.end > end {
                break;
            }
            // The board first: the pool may be done at once.
            self.engine.received(self.id, &self.layer, span, landing);
            landing.end(End::Whole, demand);
            self.landing = None;
            self.spans.start = span.saturating_add(1);
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let landing = self.landing.take();
        let partial = landing.is_some().then_some(self.spans.start);
        self.engine.ended(self.id, &self.layer, &self.source, partial, outcome);
        if let Some(landing) = landing {
            landing.end(End::Aborted, crate::demand::Demand::Read);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.end(Outcome::GivenUp);
    }
}
