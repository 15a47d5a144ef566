//! What is wished for, what is under way, and what goes next.
//!
//! One lock for the whole engine, held for the moment that a decision takes, never across anything that can wait. A span that somebody wants has a
//! wish here until it has landed or failed; a wish is served by one transfer at a time, whoever else wants the span. What follows from a
//! decision (starting a transfer, answering a reader) happens after the lock is released: see [`Outbox`].

mod admission;
mod outbox;
#[cfg(test)]
mod tests;
mod transfers;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::demand::Demand;
use crate::error::ReadError;
use crate::fill::Fill;
use crate::landing::Landing;
use crate::layer::{Layer, LayerId};
use crate::link::{Host, Link};
use crate::source::SourceError;
use crate::sources::SourceId;
pub(crate) use admission::keep_time;
use outbox::Outbox;
pub(crate) use transfers::{Gate, Outcome, TransferId};
pub(crate) use wishes::Verdict;

/// See the module.
#[derive(Debug)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    /// Changes whenever a transfer that was told to wait should ask again.
    gate: watch::Sender<u64>,
    /// Told when the next moment to look again is earlier than it was.
    timer: Arc<Notify>,
}

#[derive(Debug)]
struct Inner {
    layers: HashMap<LayerId, Wishes>,
    /// The wishes that wait for a transfer, most urgent first.
    queue: BTreeSet<Ticket>,
    transfers: HashMap<TransferId, Flying>,
    hosts: HashMap<Arc<str>, Host>,
    link: Link,
    fill: Fill,
    /// Numbers transfers and batches of wishes.
    next: u64,
    /// When a read last had to wait, or a layer came, and which; but for layers that are read through.
    disturbed: Option<(Instant, LayerId)>,
    /// When to look again, without anything happening before.
    wake: Option<Instant>,
    /// The runtime is gone.
    closed: bool,
}

/// What is wanted of one layer. The layer stays open as long as there is anything.
#[derive(Debug)]
struct Wishes {
    layer: Arc<Layer>,
    spans: BTreeMap<usize, Wish>,
}

/// A span that somebody wants.
#[derive(Debug)]
struct Wish {
    demand: Demand,
    /// Of its ticket.
    order: u64,
    phase: Phase,
    tries: Tries,
    not_before: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    /// It has a ticket.
    Queued,
    /// Its bytes are expected from a transfer.
    Moving(TransferId),
    /// All its bytes came: the pool has it.
    Landing(Weak<Landing>),
    /// Part of it came and no more will; the pool is putting it away. With an error it fails then.
    Aborting(Option<ReadError>),
    /// The pool compares what is on disk with its checksum, or is going to.
    Rechecking { begun: bool },
}

/// What a wish remembers from try to try.
#[derive(Debug, Default)]
struct Tries {
    /// Failed transfers in a row that may go better next time.
    transient: u32,
    /// How often the bytes were wrong.
    wrong: u32,
    /// Sources that will not deliver.
    refused: Vec<SourceId>,
    last: Option<SourceError>,
}

/// The order in which wishes are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket {
    demand: Demand,
    order: u64,
    layer: LayerId,
    span: usize,
}

/// A transfer under way.
#[derive(Debug)]
struct Flying {
    layer: LayerId,
    host: Arc<str>,
    /// The most urgent demand for what is still to come.
    demand: Demand,
    /// The span whose bytes come now.
    next: usize,
    /// One past the last span that is wanted of it.
    end: usize,
    /// Bytes of the blob: the next one, and one past the last.
    at: u64,
    end_byte: u64,
    since: Instant,
    answered: bool,
}

impl Board {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            inner: Mutex::new(Inner {
                layers: HashMap::new(),
                queue: BTreeSet::new(),
                transfers: HashMap::new(),
                hosts: HashMap::new(),
                link: Link::new(now),
                fill: Fill::new(),
                next: 0,
                disturbed: None,
                wake: None,
                closed: false,
            }),
            gate: watch::Sender::new(0),
            timer: Arc::default(),
        }
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn wish(&mut self, layer: LayerId, span: usize) -> Option<&mut Wish> {
        self.layers.get_mut(&layer)?.spans.get_mut(&span)
    }

    /// Forgets a wish, and the layer with the last one of it.
    fn forget(&mut self, layer: LayerId, span: usize) -> Option<Wish> {
        let wishes = self.layers.get_mut(&layer)?;
        let wish = wishes.spans.remove(&span);
        if wishes.spans.is_empty() {
            self.layers.remove(&layer);
        }
        if let Some(wish) = &wish {
            self.queue.remove(&Ticket { demand: wish.demand, order: wish.order, layer, span });
        }
        wish
    }

    /// Puts a wish into the queue, where it belongs by its demand.
    fn enqueue(&mut self, layer: LayerId, span: usize) {
        if let Some(wish) = self.wish(layer, span) {
            wish.phase = Phase::Queued;
            let ticket = Ticket { demand: wish.demand, order: wish.order, layer, span };
            self.queue.insert(ticket);
        }
    }
}
