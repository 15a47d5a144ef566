//! Transfers: begun, watched, ended.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Flying, Inner, Outbox, Phase, Wish};
use crate::demand::Demand;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::landing::Landing;
use crate::layer::Layer;
use crate::source::SourceError;
use crate::sources::{AttachedSource, SourceId};

/// Identity of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TransferId(pub(super) u64);

/// What a transfer may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Take more bytes.
    Go,
    /// Leave them where they are until the board says that something has changed.
    Wait,
    /// Nothing more is wanted of it.
    Stop,
}

/// How a transfer ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Every byte that was wanted came.
    Done,
    /// The stream ended before that.
    TooShort(SourceError),
    /// The source failed.
    Failed(SourceError),
    /// The source was detached meanwhile.
    Detached,
    /// Its task is gone.
    GivenUp,
}

/// How far behind in a transfer a span may be that a read waits for, when the link holds less than that.
const NEAR: u64 = 1 << 20;

impl Engine {
    /// Where a transfer stands, and what it may do. `at` is the next byte of the blob, `got` how many have just come.
    pub(crate) fn progress(self: &Arc<Self>, id: TransferId, at: u64, got: u64) -> Gate {
        let now = Instant::now();
        let (gate, room) = self.board.inner.lock().progress(id, at, got, now);
        if room {
            self.on_board(|_, _, _| {});
        }
        gate
    }

    /// Tells of changes that may open a gate.
    pub(crate) fn gate(&self) -> watch::Receiver<u64> {
        self.board.gate.subscribe()
    }

    /// All bytes of a span came.
    pub(crate) fn received(
        self: &Arc<Self>,
        id: TransferId,
        layer: &Layer,
        span: usize,
        landing: &Arc<Landing>,
    ) {
        self.on_board(|board, _, out| {
            if let Some(flying) = board.transfers.get_mut(&id) {
                flying.next = span.saturating_add(1);
            }
            if let Some(wish) = board.wish(layer.id(), span)
                && matches!(wish.phase, Phase::Moving(mover) if mover == id)
            {
                wish.phase = Phase::Landing(Arc::downgrade(landing));
            }
            out.open_gate = true;
        });
    }

    /// The demand for a span that a transfer is to bring; `None` if it is no longer.
    pub(crate) fn expects(&self, id: TransferId, layer: &Layer, span: usize) -> Option<Demand> {
        let mut board = self.board.inner.lock();
        let wish = board.wish(layer.id(), span)?;
        matches!(wish.phase, Phase::Moving(mover) if mover == id).then_some(wish.demand)
    }

    /// A transfer is over. `partial` is the span of which some bytes came: the pool will report it once more, as aborted.
    pub(crate) fn ended(
        self: &Arc<Self>,
        id: TransferId,
        layer: &Arc<Layer>,
        source: &AttachedSource,
        partial: Option<usize>,
        outcome: Outcome,
    ) {
        self.on_board(|board, now, out| {
            let Some(flying) = board.transfers.remove(&id) else { return };
            if let Some(host) = board.hosts.get_mut(&flying.host) {
                host.busy = host.busy.saturating_sub(1);
                host.reads = host.reads.saturating_sub(usize::from(flying.demand == Demand::Read));
                if let Outcome::Failed(error) = &outcome
                    && let Some(rest) = error.busy_for()
                {
                    host.overloaded(rest, now);
                }
            }
            match &outcome {
                Outcome::Done if flying.answered => {
                    source.delivered();
                    board.fill.delivered(layer);
                }
                Outcome::Failed(error) => {
                    if !error.is_transient() {
                        source.refused(now + self.options.longest_rest);
                    }
                    if flying.demand == Demand::Fill {
                        board.fill.failed(layer, error, &self.options, now);
                    }
                }
                _ => {}
            }
            out.open_gate = true;
            let moving = |phase: &Phase| matches!(phase, Phase::Moving(mover) if *mover == id);
            let Some(wishes) = board.layers.get_mut(&flying.layer) else { return };
            let left = wishes.spans.range_mut(flying.next..).filter(|(_, wish)| moving(&wish.phase));
            let left: Vec<usize> = left
                .map(|(span, wish)| {
                    // Until a ticket or the pool says otherwise.
                    wish.phase = if partial == Some(*span) { Phase::Aborting(None) } else { Phase::Queued };
                    *span
                })
                .collect();
            for (position, span) in left.into_iter().enumerate() {
                board.left_over(self, layer, source.id, span, position == 0, &outcome, now, out);
            }
        });
    }
}

impl Inner {
    /// What a transfer may do, and whether so much has come that others may begin.
    fn progress(&mut self, id: TransferId, at: u64, got: u64, now: Instant) -> (Gate, bool) {
        let Some(flying) = self.transfers.get_mut(&id) else { return (Gate::Stop, false) };
        flying.at = at;
        let first = got > 0 && !flying.answered;
        if got > 0 {
            if first {
                flying.answered = true;
                self.link.answered(now.saturating_duration_since(flying.since), now);
            }
            self.link.received(got, now);
            if let Some(host) = self.hosts.get_mut(&flying.host) {
                host.received(got, now);
            }
        }
        let (done, demand) = (at >= flying.end_byte, flying.demand);
        let room = got > 0 && self.has_room_after(got, first);
        let gate = if done { Gate::Stop } else { self.gate(demand) };
        (gate, room)
    }

    /// A span that a transfer has not delivered.
    #[expect(clippy::too_many_arguments, reason = "one step of `ended`")]
    fn left_over(
        &mut self,
        engine: &Engine,
        layer: &Arc<Layer>,
        source: SourceId,
        span: usize,
        first: bool,
        outcome: &Outcome,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(wish) = self.wish(layer.id(), span) else { return };
        match outcome {
            Outcome::GivenUp => return self.give_up(layer.id(), span, out),
            Outcome::Done | Outcome::Detached => {}
            Outcome::TooShort(error) if first => {
                wish.tries.wrong = wish.tries.wrong.saturating_add(1);
                wish.tries.last = Some(error.clone());
                if wish.tries.wrong >= engine.options.span_attempts {
                    return self.fail(layer, span, error.clone(), out);
                }
            }
            Outcome::TooShort(_) => {}
            Outcome::Failed(error) if error.is_transient() => {
                wish.tries.last = Some(error.clone());
                wish.tries.transient = wish.tries.transient.saturating_add(1);
                if engine.options.max_retries.is_some_and(|max| wish.tries.transient > max) {
                    return self.fail(layer, span, error.clone(), out);
                }
            }
            Outcome::Failed(error) => {
                wish.tries.last = Some(error.clone());
                wish.tries.refused.push(source);
            }
        }
        self.try_again(engine, layer, span, now);
    }

    /// There will be no other try.
    fn fail(&mut self, layer: &Arc<Layer>, span: usize, source: SourceError, out: &mut Outbox) {
        let error = ReadError::Source { span: layer.number(span), source };
        if let Some(Wish { phase: Phase::Aborting(then), .. }) = self.wish(layer.id(), span) {
            *then = Some(error);
        } else {
            self.forget(layer.id(), span);
            out.fail(layer, span, error);
        }
    }

    /// A read waits for a span that a transfer for something else is to bring: in place if it is near, else it comes on its own, and what
    /// follows it too.
    pub(super) fn carve(&mut self, id: TransferId, span: usize) {
        let near = self.link.holds().max(NEAR);
        let Some(flying) = self.transfers.get_mut(&id) else { return };
        let Some(wishes) = self.layers.get(&flying.layer) else { return };
        let spans = wishes.layer.spans();
        let Some(start) = spans.get(span).map(|row| row.compressed.start) else { return };
        if span <= flying.next || start.saturating_sub(flying.at) <= near {
            return;
        }
        let (layer, cut) = (flying.layer, span..flying.end);
        flying.end = span;
        flying.end_byte = spans.get(span.saturating_sub(1)).map_or(start, |row| row.compressed.end);
        for span in cut {
            self.enqueue(layer, span);
        }
    }

    /// Sees for whom each transfer still works.
    pub(super) fn refresh(&mut self) {
        for (id, flying) in &mut self.transfers {
            let wishes =
                self.layers.get(&flying.layer).map(|wishes| wishes.spans.range(flying.next..flying.end));
            let moving = wishes.into_iter().flatten().map(|(_, wish)| wish);
            let moving = moving.filter(|wish| matches!(wish.phase, Phase::Moving(mover) if mover == *id));
            let before = flying.demand;
            flying.demand = moving.map(|wish| wish.demand).min().unwrap_or(Demand::Fill);
            if let Some(host) = self.hosts.get_mut(&flying.host) {
                let (was, is) = (before == Demand::Read, flying.demand == Demand::Read);
                host.reads = host.reads.saturating_add(usize::from(is)).saturating_sub(usize::from(was));
            }
        }
    }

    pub(super) fn flying(&self) -> impl Iterator<Item = &Flying> {
        self.transfers.values()
    }
}

// === impl Flying ===

impl Flying {
    /// Bytes that are asked for and have not come.
    pub(super) fn outstanding(&self) -> u64 {
        self.end_byte.saturating_sub(self.at)
    }
}
