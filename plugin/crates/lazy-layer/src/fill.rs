//! Fetching what nobody asked for yet, so that the layer is complete some day.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::disk::states::State;
use crate::layer::{Layer, LayerId};
use crate::options::{DropPolicy, StoreOptions};
use crate::source::SourceError;
use crate::sources::AttachedSource;

/// The first range after somebody waited; each further one is twice as long.
const FIRST: u64 = 1 << 20;
/// How often the pause after a failure doubles.
const DOUBLINGS: u32 = 8;

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
    trouble: Trouble,
}

/// What a layer's sources have made of being asked in the background.
#[derive(Debug, Default)]
struct Trouble {
    /// Failures in a row.
    failures: u32,
    /// All failures: which source is asked.
    turn: u32,
    rests_until: Option<Instant>,
    said: bool,
}

/// Whether a layer can be asked for.
pub(crate) enum Ask {
    /// This source of it, which is on this host.
    Now(AttachedSource, Arc<str>),
    /// Not before then.
    Later(Instant),
    /// Not before something that is under way has ended.
    Busy,
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
    /// These spans are not here. The source to ask, and its host.
    Missing(Arc<Layer>, Range<usize>, AttachedSource, Arc<str>),
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
        if let Some(filling) = self.filling(layer) {
            // Those were other sources.
            filling.trouble.over();
            return false;
        }
        if options.fill.disable || !layer.sources().fill() || layer.is_complete() {
            return false;
        }
        if self.layers.len() >= options.fill.max_queue {
            tracing::debug!(layer = %layer.key().layer, "too many layers are waiting to be fetched in the background");
            match options.fill.drop {
                DropPolicy::Newest => return false,
                DropPolicy::Oldest => drop(self.layers.pop_front()),
            }
        }
        self.layers.push_back(Filling {
            id: layer.id(),
            layer: Arc::downgrade(layer),
            cursor: 0,
            not_before: None,
            trouble: Trouble::default(),
        });
        true
    }

    fn filling(&mut self, layer: &Layer) -> Option<&mut Filling> {
        self.layers.iter_mut().find(|filling| filling.id == layer.id())
    }

    /// A source of the layer failed when it was asked in the background: the layer is left alone for a while.
    pub(crate) fn failed(
        &mut self,
        layer: &Layer,
        error: &SourceError,
        options: &StoreOptions,
        now: Instant,
    ) {
        let Some(filling) = self.filling(layer) else { return };
        let trouble = &mut filling.trouble;
        if !trouble.add(options.fill.retry, now) {
            return;
        }
        let (layer, failures) = (&layer.key().layer, trouble.failures);
        if std::mem::replace(&mut trouble.said, true) {
            tracing::debug!(%layer, failures, %error, "a layer cannot be fetched in the background now");
        } else {
            tracing::warn!(%layer, %error, "a layer cannot be fetched in the background now, and is tried again");
        }
    }

    /// A source of the layer delivered.
    pub(crate) fn delivered(&mut self, layer: &Layer) {
        if let Some(filling) = self.filling(layer) {
            filling.trouble.over();
        }
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

    /// Looks for something to fetch. `pace` is how many bytes a range should have by the speed of the link, 0 if that is not known; `wanted` tells spans that have a wish already,
    /// `ask` whether a layer can be asked for, after so many failures: one that cannot holds up no other.
    pub(crate) fn next(
        &mut self,
        options: &StoreOptions,
        pace: u64,
        now: Instant,
        wanted: impl Fn(LayerId, usize) -> bool,
        mut ask: impl FnMut(&Layer, u32) -> Ask,
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
        let mut later: Option<Instant> = None;
        let mut put_off = |until: Instant| later = Some(later.map_or(until, |known| known.min(until)));
        let mut at = 0;
        while let Some(filling) = self.layers.get_mut(at) {
            let Some(layer) = filling.layer.upgrade().filter(|layer| layer.sources().fill()) else {
                self.layers.remove(at);
                continue;
            };
            if let Some(until) = filling.not_before.filter(|until| *until > now) {
                put_off(until);
            } else {
                let trouble = &filling.trouble;
                match find(&layer, filling.cursor, limit, now, &wanted) {
                    Found::Run(spans) => match trouble.rests_until.filter(|until| *until > now) {
                        Some(until) => put_off(until),
                        None => match ask(&layer, trouble.turn) {
                            Ask::Now(source, host) => return Next::Missing(layer, spans, source, host),
                            Ask::Later(until) => put_off(until),
                            Ask::Busy => {}
                        },
                    },
                    Found::Suspect(span) => return Next::Suspect(layer, span),
                    Found::Later => {
                        let rest = now + options.fill.retry;
                        filling.not_before = Some(rest);
                        put_off(rest);
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
        if let Some(filling) = self.filling(layer) {
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

impl Trouble {
    /// Ranges that were asked for together fail together: that is once, and not news.
    fn add(&mut self, retry: Duration, now: Instant) -> bool {
        if self.rests_until.is_some_and(|until| until > now) {
            return false;
        }
        self.rests_until = Some(now + retry.saturating_mul(1 << self.failures.min(DOUBLINGS)));
        self.failures = self.failures.saturating_add(1);
        self.turn = self.turn.wrapping_add(1);
        true
    }

    /// The source that is asked now is the right one.
    fn over(&mut self) {
        (self.failures, self.rests_until) = (0, None);
    }
}

/// The next run of spans that are not here, from the cursor on and then from the beginning.
fn find(
    layer: &Layer,
    cursor: usize,
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
    let start = cursor.min(count);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_in_trouble_is_asked_for_less_and_less() {
        let (start, retry) = (Instant::now(), Duration::from_secs(1));
        let mut trouble = Trouble::default();
        let mut now = start;
        let mut rests = Vec::new();
        for _ in 0..11 {
            assert!(trouble.add(retry, now));
            assert!(!trouble.add(retry, now), "of the same time");
            let until = trouble.rests_until.unwrap();
            rests.push(until.duration_since(now).as_secs());
            now = until;
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256]);
        trouble.over();
        assert!(trouble.add(retry, now));
        assert_eq!(trouble.rests_until.unwrap(), now + retry);
        assert_eq!(trouble.turn, 12, "another source each time");
    }
}
