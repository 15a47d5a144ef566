//! Wishes: made, raised, served, given up.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Inner, Outbox, Phase, Tries, Wish, Wishes};
use crate::demand::Demand;
use crate::disk::states::State;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::layer::{Layer, LayerId};
use crate::source::SourceError;
use crate::sources::AttachedSource;
use crate::start::Rank;

/// What became of a span whose bytes the pool had.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Whoever waited has been answered.
    Done,
    /// The same, but it could not be kept.
    PassedBy,
    /// The bytes were wrong: another source, or another try, may do better.
    Wrong(ReadError),
    /// No try will do better.
    Failed(ReadError),
    /// The rest of the bytes did not come, and the pool is done with those that did.
    Aborted,
}

impl Engine {
    /// Has spans fetched that are not here. Those that a read waits for must have it among their waiters already.
    pub(crate) fn want(self: &Arc<Self>, layer: &Arc<Layer>, wanted: &[(usize, Demand)]) {
        self.on_board(|board, now, out| {
            if let Some((span, _)) = wanted.iter().find(|(_, demand)| *demand == Demand::Read) {
                board.read_waits(layer, *span, now);
            }
            let batch = board.number();
            for (span, demand) in wanted {
                // What a program needs has its place in the order of that; who waits for its bytes does not change it.
                let order = if *demand == Demand::Trace { u64::MAX } else { batch };
                board.want(layer, *span, *demand, order, now, out);
            }
        });
    }

    /// Has spans fetched that a program is going to need, in the order of their ranks; what is only likely comes as all that is expected does.
    pub(crate) fn want_in_order(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        wanted: &[(usize, Demand)],
        rank: Rank,
    ) {
        self.on_board(|board, now, out| {
            let batch = board.number();
            for (span, demand) in wanted {
                let order = if *demand == Demand::Trace { rank.order() } else { batch };
                board.want(layer, *span, *demand, order, now, out);
            }
        });
    }

    /// Whether a span is on its way, or wished for.
    pub(crate) fn is_wanted(&self, layer: &Layer, span: usize) -> bool {
        self.board.inner.lock().wish(layer.id(), span).is_some()
    }

    /// A layer has another set of sources.
    pub(crate) fn sources_changed(self: &Arc<Self>, layer: &Arc<Layer>) {
        self.on_board(|board, now, out| {
            let gone = layer.sources().is_empty();
            if !gone && board.fill.add(layer, &self.options) {
                // Who mounts a layer is about to read it.
                board.disturbed = Some((now, layer.id()));
            }
            let spans: Vec<usize> = board.spans_of(layer.id());
            for span in spans {
                let Some(wish) = board.wish(layer.id(), span) else { continue };
                // A pause after a failure was for the sources of that time.
                wish.not_before = None;
                if gone && wish.demand != Demand::Read && matches!(wish.phase, Phase::Queued) {
                    board.forget(layer.id(), span);
                    if layer.slot(span).is_some_and(crate::layer::Slot::is_awaited) {
                        out.fail(layer, span, ReadError::NoSource { span: layer.number(span) });
                    }
                }
            }
            out.open_gate = true;
        });
    }

    /// The pool is done with a span.
    pub(crate) fn landed(self: &Arc<Self>, layer: &Arc<Layer>, span: usize, verdict: Verdict) {
        self.on_board(|board, now, out| board.landed(self, layer, span, verdict, now, out));
    }

    /// Whether the pool is to compare a span with its checksum: whoever comes first does it.
    pub(crate) fn begins_recheck(&self, layer: &Layer, span: usize) -> bool {
        let mut board = self.board.inner.lock();
        match board.wish(layer.id(), span) {
            Some(Wish { phase: Phase::Rechecking { begun }, .. }) => !std::mem::replace(begun, true),
            _ => false,
        }
    }

    /// The pool has compared a span with its checksum; it failed where it could not even read it.
    pub(crate) fn rechecked(self: &Arc<Self>, layer: &Arc<Layer>, span: usize, intact: bool) {
        self.on_board(|board, _, _| {
            if intact {
                board.forget(layer.id(), span);
            } else {
                board.enqueue(layer.id(), span);
            }
        });
    }

    /// There is no room on the disk for what nobody asked for.
    pub(crate) fn postpone_fill(self: &Arc<Self>, now: Instant) {
        self.board.inner.lock().fill.rest(now, self.options.full_pause);
    }

    /// The runtime is gone, and with it every hope.
    pub(crate) fn close(self: &Arc<Self>) {
        self.on_board(|board, _, out| {
            board.closed = true;
            let all: Vec<_> = board.queue.iter().map(|ticket| (ticket.layer, ticket.span)).collect();
            for (layer, span) in all {
                board.give_up(layer, span, out);
            }
        });
    }
}

impl Inner {
    fn spans_of(&self, layer: LayerId) -> Vec<usize> {
        self.layers.get(&layer).map(|wishes| wishes.spans.keys().copied().collect()).unwrap_or_default()
    }

    /// Somebody waits for a span: the background keeps out of his way, or goes ahead of him if he reads everything.
    fn read_waits(&mut self, layer: &Layer, span: usize, now: Instant) {
        self.fill.disturb();
        if layer.is_swept() {
            self.fill.follow(layer.id(), span);
            self.disturbed = self.disturbed.filter(|(_, by)| *by != layer.id());
        } else {
            self.disturbed = Some((now, layer.id()));
        }
    }

    pub(super) fn want(
        &mut self,
        layer: &Arc<Layer>,
        span: usize,
        demand: Demand,
        batch: u64,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(slot) = layer.slot(span) else { return };
        // What is expected last is expected with the best reason; those who wait are served in turn.
        let order = if demand == Demand::ReadAhead { u64::MAX.saturating_sub(batch) } else { batch };
        if let Some(wish) = self.wish(layer.id(), span) {
            let expected = demand == Demand::ReadAhead;
            // What the background is bringing is left to it: were that all counted as expected, nothing else would be admitted before it has come.
            let comes = expected && !matches!(wish.phase, Phase::Queued);
            let earlier =
                demand == Demand::Trace && order < wish.order && matches!(wish.phase, Phase::Queued);
            if !comes && (demand < wish.demand || (demand == wish.demand && (expected || earlier))) {
                self.raise(layer, span, demand, order, out);
            }
            return;
        }
        if slot.is_present() {
            return;
        }
        if self.closed {
            let error = ReadError::GivenUp { span: layer.number(span) };
            return out.fail(layer, span, error);
        }
        let not_before = slot.not_before().filter(|at| *at > now);
        if demand != Demand::Read && layer.sources().is_empty() {
            if slot.is_awaited() {
                out.fail(layer, span, ReadError::NoSource { span: layer.number(span) });
            }
            return;
        }
        if demand != Demand::Read && !slot.is_awaited() && layer.sources().all_refuse(now) {
            return;
        }
        if demand > Demand::Trace && not_before.is_some() {
            return;
        }
        let queued = slot.state() != State::Suspect;
        let phase = if queued { Phase::Queued } else { Phase::Rechecking { begun: false } };
        if !queued {
            out.recheck(layer, span, demand);
        }
        let wish = Wish { demand, order, phase, tries: Tries::default(), not_before };
        let wishes = self
            .layers
            .entry(layer.id())
            .or_insert_with(|| Wishes { layer: Arc::clone(layer), spans: Default::default() });
        wishes.spans.insert(span, wish);
        if demand == Demand::ReadAhead {
            slot.mark_ahead();
            self.trim(layer, layer.options().max_ahead_queue);
        }
        if queued {
            self.enqueue(layer.id(), span);
        }
    }

    /// Drops the oldest wishes for reading ahead of a layer that has too many, but for one whose bytes will tell what else is needed.
    fn trim(&mut self, layer: &Layer, max: usize) {
        let queued =
            |ticket: &&super::Ticket| ticket.layer == layer.id() && ticket.demand == Demand::ReadAhead;
        let count = self.queue.iter().filter(queued).count();
        let awaited =
            |ticket: &&super::Ticket| layer.slot(ticket.span).is_some_and(crate::layer::Slot::is_awaited);
        if count >= max
            && let Some(last) =
                self.queue.iter().rev().filter(queued).find(|ticket| !awaited(ticket)).copied()
        {
            self.forget(last.layer, last.span);
        }
    }

    /// Somebody wants a span more urgently than before, or expects it anew.
    fn raise(&mut self, layer: &Arc<Layer>, span: usize, demand: Demand, order: u64, out: &mut Outbox) {
        let Some(mut wish) = self.forget(layer.id(), span) else { return };
        // What the pool is yet to do goes where it belongs now.
        match &wish.phase {
            Phase::Landing(landing) if demand < wish.demand => out.hurry(landing.upgrade(), demand),
            Phase::Rechecking { begun: false } if demand < wish.demand => out.recheck(layer, span, demand),
            _ => {}
        }
        (wish.demand, wish.order) = (demand, order);
        let moving = match wish.phase {
            Phase::Moving(id) => Some(id),
            _ => None,
        };
        let queued = matches!(wish.phase, Phase::Queued);
        let wishes = self
            .layers
            .entry(layer.id())
            .or_insert_with(|| Wishes { layer: Arc::clone(layer), spans: Default::default() });
        wishes.spans.insert(span, wish);
        if queued {
            self.enqueue(layer.id(), span);
        }
        if let Some(id) = moving {
            self.carve(id, span);
        }
        out.open_gate = true;
    }

    fn landed(
        &mut self,
        engine: &Engine,
        layer: &Arc<Layer>,
        span: usize,
        verdict: Verdict,
        now: Instant,
        out: &mut Outbox,
    ) {
        let id = layer.id();
        match verdict {
            Verdict::Done => {
                self.forget(id, span);
            }
            // Who came meanwhile was not answered.
            Verdict::PassedBy if layer.slot(span).is_some_and(|slot| slot.is_awaited()) => {
                if let Some(wish) = self.wish(id, span) {
                    wish.tries = Tries::default();
                }
                self.enqueue(id, span);
            }
            Verdict::PassedBy => {
                self.forget(id, span);
            }
            Verdict::Failed(error) => {
                self.forget(id, span);
                out.fail(layer, span, error);
            }
            Verdict::Wrong(error) => {
                let Some(wish) = self.wish(id, span) else { return };
                wish.tries.wrong = wish.tries.wrong.saturating_add(1);
                let attempt = wish.tries.wrong;
                tracing::warn!(layer = %layer.key().layer, span, %error, attempt, "a source sent wrong bytes");
                if attempt >= engine.options.span_attempts {
                    self.forget(id, span);
                    out.fail(layer, span, error);
                } else {
                    self.try_again(engine, layer, span, now);
                }
            }
            Verdict::Aborted => {
                let Some(wish) = self.wish(id, span) else { return };
                match std::mem::replace(&mut wish.phase, Phase::Queued) {
                    Phase::Aborting(Some(error)) => {
                        self.forget(id, span);
                        out.fail(layer, span, error);
                    }
                    _ => self.go_on(engine, layer, span),
                }
            }
        }
    }

    /// Lets a span that did not come have another try, not at once where it has failed.
    pub(super) fn try_again(&mut self, engine: &Engine, layer: &Arc<Layer>, span: usize, now: Instant) {
        let Some(wish) = self.wish(layer.id(), span) else { return };
        let failures = wish.tries.transient.saturating_add(wish.tries.wrong);
        wish.not_before = (failures > 0).then(|| now + engine.options.backoff(failures));
        if !matches!(wish.phase, Phase::Aborting(_)) {
            self.go_on(engine, layer, span);
        }
    }

    /// Another try, if anybody still waits. What nobody waits for is left to who wishes for it anew.
    fn go_on(&mut self, engine: &Engine, layer: &Arc<Layer>, span: usize) {
        let Some(slot) = layer.slot(span) else { return };
        if slot.is_awaited() {
            self.enqueue(layer.id(), span);
        } else {
            self.forget(layer.id(), span);
            slot.postpone(&engine.options);
        }
    }

    /// The engine ends, or lost the work.
    pub(super) fn give_up(&mut self, layer: LayerId, span: usize, out: &mut Outbox) {
        let Some(wishes) = self.layers.get(&layer) else { return };
        let layer = Arc::clone(&wishes.layer);
        let error = ReadError::GivenUp { span: layer.number(span) };
        if let Some(Wish { phase: Phase::Aborting(then), .. }) = self.wish(layer.id(), span) {
            *then = Some(error);
            return;
        }
        self.forget(layer.id(), span);
        out.fail(&layer, span, error);
    }
}

impl Tries {
    /// The source to ask: the newest that has not refused, another one after each failure.
    pub(super) fn choose(&self, layer: &Layer, span: usize, now: Instant) -> Option<AttachedSource> {
        let failures = self.transient.saturating_add(self.wrong);
        let waits = || layer.slot(span).is_some_and(crate::layer::Slot::is_awaited);
        layer.sources().choose(failures, &self.refused, waits, now)
    }

    /// What to tell readers when no source is left.
    pub(super) fn no_source(&self, span: u32) -> ReadError {
        match &self.last {
            Some(source) => ReadError::Source { span, source: SourceError::clone(source) },
            None => ReadError::NoSource { span },
        }
    }
}
