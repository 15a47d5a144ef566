//! Fetching what nobody asked for yet, so that the layer is complete some day.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::disk::states::State;
use crate::layer::{Layer, LayerId};
use crate::options::{DropPolicy, StoreOptions};

/// The first range after somebody waited; each further one is twice as long.
const FIRST: u64 = 1 << 20;

/// The layers that are to be completed, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Fill {
    layers: VecDeque<Filling>,
    /// How long the next range may be.
    step: u64,
    /// By the period and the rate limit.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Filling {
    id: LayerId,
    layer: Weak<Layer>,
    /// Where to look on.
    cursor: usize,
    not_before: Option<Instant>,
}

/// What to fetch next.
pub(crate) enum Next {
    /// There is nothing to do.
    Nothing,
    /// Not before then.
    Later(Instant),
    /// All of this layer is here. It is not looked at any more.
    Complete(Arc<Layer>),
    /// This span is here, and has to be compared with its checksum.
    Suspect(Arc<Layer>, usize),
    /// These spans are not here.
    Missing(Arc<Layer>, Range<usize>),
}

/// What was found in a layer.
enum Found {
    Run(Range<usize>),
    Suspect(usize),
    /// Something is missing, but not now.
    Later,
    Nothing,
}

impl Fill {
    pub(crate) fn new() -> Self {
        Self { layers: VecDeque::new(), step: FIRST, not_before: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// A layer has a source. Whether it is one that was not known, and is to be completed.
    pub(crate) fn add(&mut self, layer: &Arc<Layer>, options: &StoreOptions) -> bool {
        self.layers.retain(|filling| filling.layer.strong_count() > 0);
        if options.fill.disable
            || layer.is_complete()
            || self.layers.iter().any(|known| known.id == layer.id())
        {
            return false;
        }
        if self.layers.len() >= options.fill.max_queue {
            tracing::debug!(layer = %layer.key().layer, "too many layers are waiting to be fetched in the background");
            match options.fill.drop {
                DropPolicy::Newest => return false,
                DropPolicy::Oldest => drop(self.layers.pop_front()),
            }
        }
        let layer = Filling { id: layer.id(), layer: Arc::downgrade(layer), cursor: 0, not_before: None };
        self.layers.push_back(layer);
        true
    }

    /// Somebody waits: what comes after that begins small.
    pub(crate) fn disturb(&mut self) {
        self.step = FIRST;
    }

    /// Somebody reads all of this layer, and is here.
    pub(crate) fn follow(&mut self, layer: LayerId, span: usize) {
        if let Some(at) = self.layers.iter().position(|filling| filling.id == layer)
            && let Some(mut filling) = self.layers.remove(at)
        {
            filling.cursor = span;
            self.layers.push_front(filling);
        }
    }

    /// The disk is full.
    pub(crate) fn rest(&mut self, now: Instant, pause: Duration) {
        self.not_before = self.not_before.max(Some(now + pause));
    }

    /// Looks for something to fetch. `pace` is how many bytes a range should have by the speed of the link, 0 if that is not known; `wanted` tells spans that have a wish already.
    pub(crate) fn next(
        &mut self,
        options: &StoreOptions,
        pace: u64,
        now: Instant,
        wanted: impl Fn(LayerId, usize) -> bool,
    ) -> Next {
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return Next::Later(at);
        }
        let mut limit = self.step.min(options.max_range);
        if pace > 0 {
            limit = limit.min(pace.max(FIRST));
        }
        if let Some(rate) = options.fill.bytes_per_second {
            limit = limit.min(rate.get());
        }
        let mut later = None;
        let mut at = 0;
        while let Some(filling) = self.layers.get_mut(at) {
            let Some(layer) = filling.layer.upgrade().filter(|layer| !layer.sources().is_empty()) else {
                self.layers.remove(at);
                continue;
            };
            if let Some(at) = filling.not_before.filter(|at| *at > now) {
                later = Some(later.map_or(at, |known: Instant| known.min(at)));
            } else {
                match find(&layer, &mut filling.cursor, limit, now, &wanted) {
                    Found::Run(spans) => return Next::Missing(layer, spans),
                    Found::Suspect(span) => return Next::Suspect(layer, span),
                    Found::Later => {
                        let rest = now + options.fill.retry;
                        filling.not_before = Some(rest);
                        later = Some(later.map_or(rest, |known: Instant| known.min(rest)));
                    }
                    Found::Nothing => {
                        self.layers.remove(at);
                        return Next::Complete(layer);
                    }
                }
            }
            at = at.saturating_add(1);
        }
        later.map_or(Next::Nothing, Next::Later)
    }

    /// A range is asked for.
    pub(crate) fn begun(
        &mut self,
        layer: &Layer,
        spans: &Range<usize>,
        bytes: u64,
        options: &StoreOptions,
        now: Instant,
    ) {
        if let Some(filling) = self.layers.iter_mut().find(|filling| filling.id == layer.id()) {
            filling.cursor = spans.end;
        }
        self.step = self.step.saturating_mul(2).min(options.max_range.max(FIRST));
        let mut pause = options.fill.period;
        if let Some(rate) = options.fill.bytes_per_second {
            let micros = bytes.saturating_mul(1_000_000) / rate.get();
            pause = pause.max(Duration::from_micros(micros));
        }
        // What a pause of nothing is added to would go by the clock all the same.
        self.not_before = (!pause.is_zero()).then(|| now + pause);
    }
}

/// The next run of spans that are not here, from the cursor on and then from the beginning.
fn find(
    layer: &Layer,
    cursor: &mut usize,
    limit: u64,
    now: Instant,
    wanted: &impl Fn(LayerId, usize) -> bool,
) -> Found {
    let count = layer.spans().len();
    let mut waits = false;
    let free = |span: usize, waits: &mut bool| {
        let slot = layer.slot(span).filter(|slot| !slot.is_present())?;
        if wanted(layer.id(), span) || slot.not_before().is_some_and(|at| at > now) {
            *waits = true;
            return None;
        }
        Some(slot.state())
    };
    let start = (*cursor).min(count);
    for span in (start..count).chain(0..start) {
        match free(span, &mut waits) {
            None => {}
            Some(State::Suspect) => return Found::Suspect(span),
            Some(_) => {
                let mut end = span.saturating_add(1);
                let len = |span: usize| layer.spans().get(span).map_or(0, |row| row.compressed_len());
                let mut bytes = len(span);
                while end < count
                    && bytes.saturating_add(len(end)) <= limit
                    && matches!(free(end, &mut waits), Some(State::Missing))
                {
                    bytes = bytes.saturating_add(len(end));
                    end = end.saturating_add(1);
                }
                return Found::Run(span..end);
            }
        }
    }
    if waits { Found::Later } else { Found::Nothing }
}
