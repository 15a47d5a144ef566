//! One span's place in memory: whether it is here, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::disk::states::State;
use crate::error::ReadError;
use crate::options::StoreOptions;
use crate::waiting::PendingRead;

/// A span that is here is known by its state alone, read without a lock; the lock is for those who wait, and held for a few instructions.
#[derive(Debug)]
pub(crate) struct Slot {
    state: AtomicU8,
    /// Fetched ahead, and not read yet: the next read of it is news for who reads ahead.
    ahead: AtomicBool,
    /// Somebody has read of it, or tried to.
    passed: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    reads: Vec<Arc<PendingRead>>,
    /// Failures since the last success. Only delays the next fetch, never forbids it.
    failures: u32,
    not_before: Option<Instant>,
}

/// What came of a read that wants the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is here by now.
    Present,
    /// The read will be told when it is; it has to be wished for.
    Waiting,
    /// Too many wait already.
    Full,
}

impl Slot {
    pub(crate) fn new(state: State) -> Self {
        Self {
            state: AtomicU8::new(state as u8),
            ahead: AtomicBool::new(false),
            passed: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> State {
        State::from_u8(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn is_present(&self) -> bool {
        self.state() == State::Present
    }

    /// Notes that the span was fetched ahead of its readers.
    pub(crate) fn mark_ahead(&self) {
        self.ahead.store(true, Ordering::Relaxed);
    }

    /// Whether this is the first read of a span that was fetched ahead. Costs one load where it is not.
    pub(crate) fn take_ahead(&self) -> bool {
        self.ahead.load(Ordering::Relaxed) && self.ahead.swap(false, Ordering::Relaxed)
    }

    /// Whether this is the first read of the span. Costs one load where it is not.
    pub(crate) fn pass(&self) -> bool {
        !self.passed.load(Ordering::Relaxed) && !self.passed.swap(true, Ordering::Relaxed)
    }

    /// Lets a read wait for the span, with up to `limit` others.
    pub(crate) fn join(&self, read: &Arc<PendingRead>, limit: usize) -> Joined {
        let mut waiting = self.waiting.lock();
        if self.is_present() {
            return Joined::Present;
        }
        if waiting.reads.len() >= limit {
            waiting.reads.retain(|waiter| waiter.is_live());
            if waiting.reads.len() >= limit {
                return Joined::Full;
            }
        }
        waiting.reads.push(Arc::clone(read));
        Joined::Waiting
    }

    /// Whether anybody still waits for the span.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.lock().reads.iter().any(|read| read.is_live())
    }

    /// When the next fetch may begin.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        self.waiting.lock().not_before
    }

    /// What was suspect turned out to be wrong.
    pub(crate) fn lost(&self) {
        self.state.store(State::Missing as u8, Ordering::Release);
    }

    /// The span is here: from now on it can be read, and those who waited are to be told. Whether it was not here before, too.
    pub(crate) fn complete(&self) -> (bool, Vec<Arc<PendingRead>>) {
        let mut waiting = self.waiting.lock();
        let before = self.state.swap(State::Present as u8, Ordering::AcqRel);
        (State::from_u8(before) != State::Present, std::mem::take(&mut *waiting).reads)
    }

    /// The span's bytes are here and cannot be kept: those who waited are to be given them.
    pub(crate) fn pass_by(&self) -> Vec<Arc<PendingRead>> {
        std::mem::take(&mut self.waiting.lock().reads)
    }

    /// The fetch has failed and nobody waited: only notes when to try again. Who waits by now has it fetched anew.
    pub(crate) fn postpone(&self, options: &StoreOptions) {
        self.waiting.lock().failed(options);
    }

    /// The fetch has failed: those who waited get the error, the next read tries again.
    pub(crate) fn fail(&self, error: &ReadError, options: &StoreOptions) {
        let waiters = {
            let mut waiting = self.waiting.lock();
            if self.is_present() {
                return;
            }
            waiting.failed(options);
            std::mem::take(&mut waiting.reads)
        };
        for waiter in waiters {
            waiter.fail(error.clone());
        }
    }
}

// === impl Waiting ===

impl Waiting {
    fn failed(&mut self, options: &StoreOptions) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + options.backoff(self.failures));
    }
}
