//! What a layer says of itself to people and programs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Layer;
use super::slot::Slot;
use crate::demand::Demand;
use crate::waits::{Histogram, Waits};

/// How far a layer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerStatus {
    /// Bytes of the layer's tar.
    pub size: u64,
    /// Bytes of the tar that are here. After an unclean boot those not re-checked yet do not count.
    pub present: u64,
    /// Spans of the layer.
    pub spans: u32,
    /// Spans that are here.
    pub spans_present: u32,
    /// Compressed bytes fetched because a read waited for them, since the layer was opened; as the next three.
    pub fetched_on_demand: u64,
    /// Because a program that was started needs them.
    pub fetched_by_trace: u64,
    /// Because they were expected to be read next.
    pub fetched_by_read_ahead: u64,
    /// Because nothing better was to be done.
    pub fetched_by_fill: u64,
    /// Reads that had to wait, since the layer was opened.
    pub reads_that_waited: u64,
    /// How long those of them that were answered did.
    pub waits: Waits,
    /// Tar headers found to differ from the zTOC, since the layer was opened; their files cannot be read.
    pub headers_refused: u64,
    /// Whether all of it is here, and right.
    pub completeness: Completeness,
}

/// Whether all of a layer is here, and right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completeness {
    /// Something is missing, or was not checked yet.
    #[default]
    Incomplete,
    /// Everything is here, and was checked as a whole.
    Complete,
    /// Everything is here, and it is not what the image says. Reads fail.
    Refused,
}

/// What a layer counts. Written without locks.
#[derive(Debug)]
pub(crate) struct Counters {
    fetched: [AtomicU64; Demand::COUNT],
    waiting: AtomicU64,
    waits: Histogram,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            fetched: std::array::from_fn(|_| AtomicU64::new(0)),
            waiting: AtomicU64::new(0),
            waits: Histogram::new(),
        }
    }

    /// Compressed bytes came.
    pub(crate) fn fetched(&self, demand: Demand, bytes: u64) {
        if let Some(sum) = self.fetched.get(demand.index()) {
            sum.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn sum(&self, demand: Demand) -> u64 {
        self.fetched.get(demand.index()).map_or(0, |sum| sum.load(Ordering::Relaxed))
    }

    /// A read begins to wait.
    pub(crate) fn waits(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// A read that waited was answered.
    pub(crate) fn waited(&self, wait: Duration) {
        self.waits.add(wait);
    }
}

impl Layer {
    /// How far the layer is. Looks at every span: for a person's question, not for every read.
    pub fn status(&self) -> LayerStatus {
        let here = || self.spans.iter().zip(&self.slots).filter(|(_, slot)| Slot::is_present(slot));
        LayerStatus {
            size: self.tar_size,
            present: here().map(|(row, _)| row.tar_len()).sum(),
            spans: self.number(self.slots.len()),
            spans_present: self.number(here().count()),
            fetched_on_demand: self.counters.sum(Demand::Read),
            fetched_by_trace: self.counters.sum(Demand::Trace),
            fetched_by_read_ahead: self.counters.sum(Demand::ReadAhead),
            fetched_by_fill: self.counters.sum(Demand::Fill),
            reads_that_waited: self.counters.waiting.load(Ordering::Relaxed),
            waits: self.counters.waits.summary(),
            headers_refused: self.header_states.count_bad(),
            completeness: *self.completeness.borrow(),
        }
    }

    /// Whether everything is here and was checked as a whole.
    pub fn is_complete(&self) -> bool {
        *self.completeness.borrow() == Completeness::Complete
    }

    /// Resolves to `true` when everything is here and was checked as a whole, at once if that is so already; to `false` when it turned out
    /// to be something else than the image says, or the layer was closed. Does not keep the layer open.
    pub fn completed(&self) -> impl Future<Output = bool> + Send + 'static + use<> {
        let mut completeness = self.completeness.subscribe();
        async move {
            let known = completeness.wait_for(|now| *now != Completeness::Incomplete).await;
            known.is_ok_and(|now| *now == Completeness::Complete)
        }
    }
}
