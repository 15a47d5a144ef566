//! Fetching spans that somebody waits for.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use ztoc::CompressedOffset;

use crate::disk::states::State;
use crate::error::ReadError;
use crate::layer::{Layer, backoff};
use crate::source::SourceError;
use crate::sources::{AttachedSource, Attempt, SourceId};

/// The slowest link that a ranged read is given time for, in bytes a second.
const SLOWEST_LINK: u64 = 64 << 10;

/// Adjacent spans on their way, and the duty to finish each of them: complete, failed, or given up when this is dropped.
///
/// Only blocked reads start one today. Other kinds of demand (a recorded start-up trace, read-ahead, fill) get their place in
/// [`Flight::admit`], which decides who may fetch next.
pub(crate) struct Flight {
    layer: Arc<Layer>,
    /// What is not finished, ascending.
    spans: Vec<usize>,
}

/// What a flight remembers from try to try.
#[derive(Default)]
struct Tries {
    /// Failed reads in a row that may go better next time.
    transient: u32,
    /// Sources that will not deliver.
    refused: Vec<SourceId>,
    last: Option<SourceError>,
    /// How often a span's bytes were wrong.
    wrong: HashMap<usize, u32>,
}

impl Flight {
    /// Starts fetching spans that the caller was the first to want, adjacent ones together.
    pub(crate) fn launch(layer: &Arc<Layer>, spans: Vec<usize>) {
        for spans in runs(layer, &spans) {
            // The flight exists before the task: if the runtime is gone, dropping it answers the waiters.
            let flight = Self { layer: Arc::clone(layer), spans };
            layer.engine().runtime.spawn(flight.fly());
        }
    }

    async fn fly(mut self) {
        self.recheck().await;
        let mut tries = Tries::default();
        if let Some(not_before) =
            self.spans.iter().filter_map(|span| self.layer.slot(*span)?.not_before()).max()
        {
            sleep_until(not_before).await;
        }
        while let Some(until) = self.live_until() {
            let Some(run) = runs(&self.layer, &self.spans).into_iter().next() else { return };
            let Some(source) = self.choose(&tries) else { return self.fail_all(&tries) };
            // Not admitted in time means that nobody waits any more.
            let Some((fetch, memory)) = self.admit(&run, until).await else { continue };
            let attempt = self.attempt(&source, &run, until).await;
            drop(fetch);
            match attempt {
                Attempt::Got(bytes) => {
                    self.layer.counters().fetched(bytes.len() as u64);
                    tries.transient = 0;
                    self.land(&run, &bytes, memory, &mut tries).await;
                }
                Attempt::Detached => {}
                Attempt::WrongLength(error) => {
                    drop(memory);
                    for span in run {
                        let number = self.layer.number(span);
                        self.wrong(
                            span,
                            ReadError::Source { span: number, source: error.clone() },
                            &mut tries,
                        );
                    }
                }
                Attempt::Failed(error) => {
                    tracing::debug!(layer = %self.layer.key().layer, spans = ?run, %error, transient = error.is_transient(), "a ranged read failed");
                    let transient = error.is_transient();
                    tries.last = Some(error);
                    if transient {
                        drop(memory);
                        tries.transient = tries.transient.saturating_add(1);
                        self.pause(tries.transient, until).await;
                    } else {
                        tries.refused.push(source.id);
                    }
                }
            }
        }
    }

    /// Lets the pool compare suspect spans with their checksums; those that are intact are done.
    async fn recheck(&mut self) {
        let suspect =
            |span: &usize| self.layer.slot(*span).is_some_and(|slot| slot.state() == State::Suspect);
        let suspects: Vec<usize> = self.spans.iter().copied().filter(suspect).collect();
        let mut verdicts = Vec::with_capacity(suspects.len());
        for span in suspects {
            let (tell, told) = oneshot::channel();
            let layer = Arc::clone(&self.layer);
            self.layer.engine().pool.run(move |scratch| {
                // The flight may be gone; the span is as it is.
                let _ = tell.send(layer.recheck(span, scratch));
            });
            verdicts.push((span, told));
        }
        for (span, told) in verdicts {
            match told.await {
                Ok(Ok(true)) => self.done(span),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    // The file cannot be read: perhaps it can be written. The fetch will tell.
                    tracing::warn!(layer = %self.layer.key().layer, span, %error, "a span could not be re-checked");
                    if let Some(slot) = self.layer.slot(span) {
                        slot.lost();
                    }
                }
                Err(_) => self.fail(span, &ReadError::GivenUp { span: self.layer.number(span) }),
            }
        }
    }

    /// How long anybody waits for any of the spans. Those that nobody waits for are given up here.
    fn live_until(&mut self) -> Option<Instant> {
        let mut until = None;
        let layer = &self.layer;
        self.spans.retain(|span| {
            let live = layer.slot(*span).and_then(|slot| slot.live_until());
            until = until.max(live);
            live.is_some()
        });
        until
    }

    /// The source to ask: the newest that has not refused, another one after each failure.
    fn choose(&self, tries: &Tries) -> Option<AttachedSource> {
        let mut usable = self.layer.sources().list();
        usable.retain(|attached| !tries.refused.contains(&attached.id));
        let turn = usize::try_from(tries.transient).ok()?.checked_rem(usable.len())?;
        usable.into_iter().nth(turn)
    }

    /// Waits until another ranged read and its bytes are within the bounds.
    async fn admit(
        &self,
        run: &[usize],
        until: Instant,
    ) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let engine = self.layer.engine();
        let bytes: u64 = self.range(run).map_or(0, |range| range.end.saturating_sub(range.start));
        let permits = async {
            // Memory first: it is given back by the pool alone, whatever the network does.
            let memory =
                Arc::clone(&engine.memory).acquire_many_owned(engine.memory_for(bytes)).await.ok()?;
            let fetch = Arc::clone(&engine.fetches).acquire_owned().await.ok()?;
            Some((fetch, memory))
        };
        timeout_at(until, permits).await.ok().flatten()
    }

    async fn attempt(&self, attached: &AttachedSource, run: &[usize], until: Instant) -> Attempt {
        let Some(range) = self.range(run) else {
            return Attempt::Failed(SourceError::permanent("no such span"));
        };
        let len = range.end.saturating_sub(range.start);
        let options = &self.layer.engine().options;
        let limit = options.attempt_timeout.saturating_add(Duration::from_secs(len / SLOWEST_LINK));
        let limit = limit.min(until.saturating_duration_since(Instant::now()));
        let read = attached.source.read(CompressedOffset(range.start)..CompressedOffset(range.end));
        let result = tokio::select! {
            result = timeout(limit, read) => result,
            () = self.layer.sources().detached(attached.id) => return Attempt::Detached,
        };
        match result {
            Ok(Ok(bytes)) if bytes.len() as u64 == len => Attempt::Got(bytes),
            Ok(Ok(bytes)) => Attempt::WrongLength(SourceError::transient(format!(
                "{} bytes instead of {len}",
                bytes.len()
            ))),
            Ok(Err(error)) => Attempt::Failed(error),
            Err(_) => Attempt::Failed(SourceError::transient(format!("no answer within {limit:?}"))),
        }
    }

    /// Hands each span's bytes to the pool, which answers the waiters itself, and waits for its verdicts.
    async fn land(&mut self, run: &[usize], bytes: &Bytes, memory: OwnedSemaphorePermit, tries: &mut Tries) {
        let memory = Arc::new(memory);
        let base = self.range(run).map_or(0, |range| range.start);
        let mut verdicts = Vec::with_capacity(run.len());
        for span in run.iter().copied() {
            let (tell, told) = oneshot::channel();
            if let Some(part) = self.part(span, base, bytes) {
                let (layer, memory) = (Arc::clone(&self.layer), Arc::clone(&memory));
                self.layer.engine().pool.run(move |scratch| {
                    let verdict = layer.land(span, &part, scratch);
                    drop((part, memory));
                    // The flight may be gone; the span is as it is.
                    let _ = tell.send(verdict);
                });
            }
            verdicts.push((span, told));
        }
        drop(memory);
        for (span, told) in verdicts {
            match told.await {
                Ok(Ok(())) => self.done(span),
                Ok(Err(error @ ReadError::Digest { .. })) => self.wrong(span, error, tries),
                Ok(Err(error)) => self.fail(span, &error),
                Err(_) => self.fail(span, &ReadError::GivenUp { span: self.layer.number(span) }),
            }
        }
    }

    /// A source sent something else than the span's bytes: another source, or another try, may do better, a few times.
    fn wrong(&mut self, span: usize, error: ReadError, tries: &mut Tries) {
        let wrong = tries.wrong.entry(span).or_default();
        *wrong = wrong.saturating_add(1);
        tries.transient = *wrong;
        tracing::warn!(layer = %self.layer.key().layer, span, %error, attempt = *wrong, "a source sent wrong bytes");
        if *wrong >= self.layer.engine().options.span_attempts {
            self.fail(span, &error);
        }
    }

    /// One span's compressed bytes out of those of a run.
    fn part(&self, span: usize, base: u64, bytes: &Bytes) -> Option<Bytes> {
        let row = self.layer.spans().get(span)?;
        let start = usize::try_from(row.compressed.start.checked_sub(base)?).ok()?;
        let end = usize::try_from(row.compressed.end.checked_sub(base)?).ok()?;
        (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
    }

    /// The compressed bytes of adjacent spans.
    fn range(&self, run: &[usize]) -> Option<Range<u64>> {
        let first = self.layer.spans().get(*run.first()?)?;
        let last = self.layer.spans().get(*run.last()?)?;
        Some(first.compressed.start..last.compressed.end)
    }

    /// A pause after a failure, cut short when the sources change.
    async fn pause(&self, failures: u32, until: Instant) {
        let pause = backoff(failures, self.layer.engine().options.max_backoff);
        let end = (Instant::now() + pause).min(until);
        // Both ways of ending are an end.
        let _ = timeout_at(end, self.layer.sources().changed()).await;
    }

    fn done(&mut self, span: usize) {
        self.spans.retain(|other| *other != span);
    }

    fn fail(&mut self, span: usize, error: &ReadError) {
        self.done(span);
        if let Some(slot) = self.layer.slot(span) {
            slot.fail(error, self.layer.engine().options.max_backoff);
        }
    }

    /// No source is left to ask.
    fn fail_all(&mut self, tries: &Tries) {
        for span in self.spans.clone() {
            let number = self.layer.number(span);
            let error = match &tries.last {
                Some(source) => ReadError::Source { span: number, source: source.clone() },
                None => ReadError::NoSource { span: number },
            };
            self.fail(span, &error);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        for span in std::mem::take(&mut self.spans) {
            let error = ReadError::GivenUp { span: self.layer.number(span) };
            if let Some(slot) = self.layer.slot(span) {
                slot.fail(&error, self.layer.engine().options.max_backoff);
            }
        }
    }
}

/// Cuts ascending spans into runs of neighbours, none longer than a range or the memory bound unless it is one span.
fn runs(layer: &Layer, spans: &[usize]) -> Vec<Vec<usize>> {
    let options = &layer.engine().options;
    let limit = options.max_range.min(options.max_bytes_in_flight);
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut length = 0;
    for span in spans.iter().copied() {
        let bytes = layer.spans().get(span).map_or(0, |row| row.compressed_len());
        let longer = bytes.saturating_add(length);
        match runs.last_mut() {
            Some(run)
                if run.last().and_then(|last: &usize| last.checked_add(1)) == Some(span)
                    && longer <= limit =>
            {
                run.push(span);
                length = longer;
            }
            _ => {
                runs.push(vec![span]);
                length = bytes;
            }
        }
    }
    runs
}
