//! Who goes next, and who has to wait.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::{Board, Flying, Gate, Inner, Outbox, Phase, Ticket, TransferId, Wish};
use crate::demand::Demand;
use crate::engine::Engine;
use crate::fill::{Ask, Next};
use crate::layer::{Layer, LayerId};
use crate::link::Host;
use crate::options::StoreOptions;
use crate::sources::AttachedSource;
use crate::transfer::Transfer;

/// A transfer that can begin.
struct Plan {
    layer: Arc<Layer>,
    source: AttachedSource,
    host: Arc<str>,
    demand: Demand,
    spans: Range<usize>,
}

/// What is under way, by what it is for.
#[derive(Clone, Copy, Default)]
struct Load {
    /// Transfers, but for the background's.
    transfers: usize,
    /// Those of them that somebody waits for.
    reads: usize,
    /// Those, and what a program that starts will wait for.
    certain: usize,
    /// Whether bytes of one of the reads are coming.
    answered: bool,
    /// The same, of all that is certain.
    certain_answered: bool,
    /// Bytes that are still to come, but for the background's.
    total: u64,
    /// Those of them that nobody waits for yet.
    total_ahead: u64,
}

impl Load {
    /// How many transfers go before one for `demand`, and whether bytes of any of them are coming.
    fn before(self, demand: Demand) -> (usize, bool) {
        match demand {
            Demand::Read => (0, false),
            Demand::Trace => (self.reads, self.answered),
            Demand::ReadAhead | Demand::Fill => (self.certain, self.certain_answered),
        }
    }
}

impl Engine {
    /// Takes a decision, has what can begin begin, and does what follows.
    pub(super) fn on_board(self: &Arc<Self>, decide: impl FnOnce(&mut Inner, Instant, &mut Outbox)) {
        let mut out = Outbox::default();
        let now = Instant::now();
        {
            let mut board = self.board.inner.lock();
            decide(&mut board, now, &mut out);
            board.dispatch(self, now, &mut out);
        }
        out.deliver(self);
    }
}

impl Inner {
    /// Begins all transfers that may begin now.
    fn dispatch(&mut self, engine: &Arc<Engine>, now: Instant, out: &mut Outbox) {
        self.refresh();
        if self.hosts.len() > engine.options.max_hosts {
            self.hosts.retain(|_, host| host.is_remembered(now));
        }
        let mut wake = None;
        if !self.closed {
            while let Some(plan) = self.plan(&engine.options, now, &mut wake, out) {
                let transfer = self.launch(engine, plan, now);
                out.launch(transfer);
            }
            self.dispatch_fill(engine, now, &mut wake, out);
        }
        if wake.is_some() && (self.wake.is_none() || wake < self.wake) {
            out.set_timer = true;
        }
        self.wake = wake;
    }

    fn load(&self) -> Load {
        let mut load = Load::default();
        for flying in self.flying().filter(|flying| flying.demand < Demand::Fill) {
            load.transfers = load.transfers.saturating_add(1);
            load.total = load.total.saturating_add(flying.outstanding());
            if flying.demand == Demand::Read {
                load.reads = load.reads.saturating_add(1);
                load.answered |= flying.answered;
            } else {
                load.total_ahead = load.total_ahead.saturating_add(flying.outstanding());
            }
            if flying.demand < Demand::ReadAhead {
                load.certain = load.certain.saturating_add(1);
                load.certain_answered |= flying.answered;
            }
        }
        load
    }

    /// What a transfer for `demand` may do. The background gives way to all else. What is expected was asked for when it had its place on the link, and is on its way: not
    /// to take it would bring nobody's bytes sooner, as the kernel takes them, and how much is still to come would not be known.
    pub(super) fn gate(&self, demand: Demand) -> Gate {
        if demand == Demand::Fill && self.load().total > 0 { Gate::Wait } else { Gate::Go }
    }

    /// Whether more may be asked for that nobody waits for yet: when so little is still to come that what is asked for now begins to come when that has come. Earlier,
    /// it would share the line with that, or with what the next read waits for: whoever has just been answered reads on.
    fn admits_ahead(&self, demand: Demand, load: Load, options: &StoreOptions) -> bool {
        let holds = self.link.holds();
        match load.before(demand) {
            (0, _) => load.total < holds,
            (_, answered) => {
                answered && load.total < holds && load.total_ahead < options.max_ahead_while_waiting
            }
        }
    }

    /// Whether one more ranged read may be under way. The background's do not count beside others, which they give way to, and what nobody waits for yet leaves room
    /// for one that somebody waits for.
    fn has_turn(&self, demand: Demand, load: Load, options: &StoreOptions) -> bool {
        let Some(max) = options.max_ranges else { return true };
        match demand {
            Demand::Read => load.transfers < max.max(1),
            Demand::Trace | Demand::ReadAhead => load.transfers < max.saturating_sub(1).max(1),
            Demand::Fill => self.transfers.len() < max.max(1),
        }
    }

    /// Whether the last `got` bytes, `first` of their transfer or not, were those after which more may be asked for.
    pub(super) fn has_room_after(&self, got: u64, first: bool) -> bool {
        if self.queue.is_empty() && self.fill.is_empty() {
            return false;
        }
        let (load, holds) = (self.load(), self.link.holds());
        let crossed = |left: u64, mark: u64| left < mark && (first || left.saturating_add(got) >= mark);
        crossed(load.total, holds)
    }

    /// The most urgent wish that can be served now, with those of its neighbours that come along. Wishes that no source is left for fail.
    fn plan(
        &mut self,
        options: &StoreOptions,
        now: Instant,
        wake: &mut Option<Instant>,
        out: &mut Outbox,
    ) -> Option<Plan> {
        loop {
            let load = self.load();
            let mut hopeless: Option<Ticket> = None;
            let mut plan = None;
            for ticket in &self.queue {
                let urgent = ticket.demand == Demand::Read;
                // What comes after it in the queue is not admitted either.
                let admitted = urgent || self.admits_ahead(ticket.demand, load, options);
                if !admitted || !self.has_turn(ticket.demand, load, options) {
                    break;
                }
                let Some(wishes) = self.layers.get(&ticket.layer) else { continue };
                let Some(wish) = wishes.spans.get(&ticket.span) else { continue };
                if let Some(at) = wish.not_before.filter(|at| *at > now) {
                    earlier(wake, at);
                    continue;
                }
                let Some(source) = wish.tries.choose(&wishes.layer, ticket.span, now) else {
                    hopeless = Some(*ticket);
                    break;
                };
                let name = source.source.host();
                let host = self.hosts.entry(Arc::clone(&name)).or_insert_with(|| Host::new(options));
                if let Some(at) = host.not_before.filter(|at| *at > now) {
                    earlier(wake, at);
                    continue;
                }
                if urgent {
                    if let Some(at) = host.spared_until(now) {
                        earlier(wake, at);
                        continue;
                    }
                    // One host that does not answer must not keep the readers of all others waiting.
                    if load.reads >= options.max_fetches && host.reads >= options.fetches_of_a_host() {
                        continue;
                    }
                } else if host.busy >= host.limit() {
                    host.wants_more(now);
                    continue;
                }
                let limit = match ticket.demand {
                    Demand::Read => options.max_range,
                    demand if load.before(demand).0 > 0 => {
                        options.max_ahead_while_waiting.saturating_sub(load.total_ahead)
                    }
                    _ => self.link.holds(),
                };
                let limit = limit.min(options.max_range);
                let follow = options.max_ahead_while_waiting.saturating_sub(load.total_ahead);
                let run = Run { wishes: &wishes.spans, layer: &wishes.layer, source: &source, now };
                plan = Some(Plan {
                    spans: run.from(ticket.span, ticket.demand, limit, follow),
                    layer: Arc::clone(&wishes.layer),
                    host: name,
                    demand: ticket.demand,
                    source,
                });
                break;
            }
            let Some(Ticket { layer, span, .. }) = hopeless else { return plan };
            let Some(wishes) = self.layers.get(&layer) else { continue };
            let layer = Arc::clone(&wishes.layer);
            if let Some(wish) = self.forget(layer.id(), span) {
                out.fail(&layer, span, wish.tries.no_source(layer.number(span)));
            }
        }
    }

    fn rechecks(&self) -> usize {
        let all = self.layers.values().flat_map(|wishes| wishes.spans.values());
        all.filter(|wish| matches!(wish.phase, Phase::Rechecking { .. })).count()
    }

    fn launch(&mut self, engine: &Arc<Engine>, plan: Plan, now: Instant) -> Transfer {
        let Plan { layer, source, host, demand, spans } = plan;
        let id = TransferId(self.number());
        for span in spans.clone() {
            if let Some(wish) = self.wish(layer.id(), span) {
                wish.phase = Phase::Moving(id);
                let ticket = Ticket { demand: wish.demand, order: wish.order, layer: layer.id(), span };
                self.queue.remove(&ticket);
            }
        }
        let range = layer.compressed(&spans);
        if let Some(host) = self.hosts.get_mut(&host) {
            host.busy = host.busy.saturating_add(1);
            host.reads = host.reads.saturating_add(usize::from(demand == Demand::Read));
        }
        let flying = Flying {
            layer: layer.id(),
            host,
            demand,
            next: spans.start,
            end: spans.end,
            at: range.start,
            end_byte: range.end,
            since: now,
            answered: false,
        };
        self.transfers.insert(id, flying);
        Transfer::new(id, Arc::clone(engine), layer, source, spans, range)
    }

    /// Begins what nobody has asked for, where there is nothing better to do.
    fn dispatch_fill(
        &mut self,
        engine: &Arc<Engine>,
        now: Instant,
        wake: &mut Option<Instant>,
        out: &mut Outbox,
    ) {
        let options = &engine.options;
        if options.fill.disable || self.fill.is_empty() {
            return;
        }
        // What waits for its time is no reason to be idle.
        let put_off = |ticket: &Ticket| {
            self.layers
                .get(&ticket.layer)
                .and_then(|wishes| wishes.spans.get(&ticket.span)?.not_before)
                .is_some_and(|at| at > now)
        };
        if !self.queue.iter().all(put_off) || self.flying().any(|flying| flying.demand != Demand::Fill) {
            return;
        }
        let quiet = self.disturbed.map(|(at, _)| at + options.fill.silence);
        if let Some(at) = quiet.filter(|at| *at > now) {
            return earlier(wake, at);
        }
        loop {
            if !self.has_turn(Demand::Fill, Load::default(), options) {
                return;
            }
            let hosts = &mut self.hosts;
            let ask = |layer: &Layer, turn: u32| {
                let Some(source) = layer.sources().choose(turn, &[], || false, now) else {
                    return layer.sources().asked_again_at(now).map_or(Ask::Busy, Ask::Later);
                };
                let name = source.source.host();
                let host = hosts.entry(Arc::clone(&name)).or_insert_with(|| Host::new(options));
                if let Some(at) = host.not_before.filter(|at| *at > now) {
                    return Ask::Later(at);
                }
                if host.busy >= host.limit() {
                    host.wants_more(now);
                    return Ask::Busy;
                }
                Ask::Now(source, name)
            };
            let wanted = |layer: LayerId, span: usize| {
                self.layers.get(&layer).is_some_and(|wishes| wishes.spans.contains_key(&span))
            };
            let pace = self.link.rate() / 5;
            let (layer, spans, source, host) = match self.fill.next(options, pace, now, wanted, ask) {
                Next::Nothing => return,
                Next::Later(at) => return earlier(wake, at),
                Next::Complete(layer) => {
                    out.complete(layer);
                    continue;
                }
                // A few at a time, so that a read's own does not wait behind all of them.
                Next::Suspect(..) if self.rechecks() >= options.max_rechecks => return,
                Next::Suspect(layer, span) => {
                    let batch = self.number();
                    self.want(&layer, span, Demand::Fill, batch, now, out);
                    continue;
                }
                Next::Missing(layer, spans, source, host) => (layer, spans, source, host),
            };
            let bytes = layer.compressed(&spans);
            self.fill.begun(&layer, &spans, bytes.end.saturating_sub(bytes.start), options, now);
            let batch = self.number();
            for span in spans.clone() {
                self.want(&layer, span, Demand::Fill, batch, now, out);
            }
            let plan = Plan { layer, source, host, demand: Demand::Fill, spans };
            let transfer = self.launch(engine, plan, now);
            out.launch(transfer);
        }
    }
}

/// Which wishes one transfer can serve together.
struct Run<'a> {
    wishes: &'a std::collections::BTreeMap<usize, Wish>,
    layer: &'a Layer,
    source: &'a AttachedSource,
    now: Instant,
}

impl Run<'_> {
    /// From `span` on, all that are wanted as urgently up to `limit` bytes, and then up to `follow` bytes of what is less urgent: it comes on the same
    /// connection, after them, and costs no request.
    fn from(&self, span: usize, demand: Demand, limit: u64, follow: u64) -> Range<usize> {
        let mut end = span.saturating_add(1);
        let (mut bytes, mut behind) = (self.len(span), 0u64);
        while let Some(wish) = self.wishes.get(&end).filter(|wish| self.fits(end, wish)) {
            let len = self.len(end);
            if wish.demand <= demand && behind == 0 && bytes.saturating_add(len) <= limit {
                bytes = bytes.saturating_add(len);
            } else if wish.demand > demand
                && wish.demand < Demand::Fill
                && behind.saturating_add(len) <= follow
            {
                behind = behind.saturating_add(len);
            } else {
                break;
            }
            end = end.saturating_add(1);
        }
        span..end
    }

    fn fits(&self, span: usize, wish: &Wish) -> bool {
        matches!(wish.phase, Phase::Queued)
            && wish.not_before.is_none_or(|at| at <= self.now)
            && wish.tries.choose(self.layer, span, self.now).is_some_and(|source| source.id == self.source.id)
    }

    fn len(&self, span: usize) -> u64 {
        self.layer.spans().get(span).map_or(0, |row| row.compressed_len())
    }
}

/// Looks at the board when something that was put off is due, as long as there is an engine.
pub(crate) async fn keep_time(engine: std::sync::Weak<Engine>) {
    struct Close(std::sync::Weak<Engine>);
    impl Drop for Close {
        fn drop(&mut self) {
            if let Some(engine) = self.0.upgrade() {
                engine.close();
            }
        }
    }
    let _close = Close(std::sync::Weak::clone(&engine));
    let timer = engine.upgrade().map(|engine| Arc::clone(&engine.board.timer));
    let Some(timer) = timer else { return };
    loop {
        // The engine ends when nobody else has it any more.
        let Some(wake) = engine.upgrade().map(|engine| engine.board.inner.lock().wake) else { return };
        let notified = timer.notified();
        match wake {
            Some(at) => tokio::select! {
                () = sleep_until(at) => match engine.upgrade() {
                    Some(engine) => engine.on_board(|_, _, _| {}),
                    None => return,
                },
                () = notified => {}
            },
            None => notified.await,
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.timer.notify_one();
    }
}

fn earlier(wake: &mut Option<Instant>, at: Instant) {
    *wake = Some(wake.map_or(at, |known| known.min(at)));
}
