//! One span's place in memory: whether it is here, who fetches it, who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::disk::states::State;
use crate::error::ReadError;
use crate::waiting::PendingRead;

/// First pause after a failure; it doubles.
pub(crate) const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// The pause after that many failures in a row.
pub(crate) fn backoff(failures: u32, max: Duration) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max)
}

/// A span that is here is known by its state alone, read without a lock; the lock is for those who wait, and held for a few instructions.
#[derive(Debug)]
pub(crate) struct Slot {
    state: AtomicU8,
    flight: Mutex<Flight>,
}

#[derive(Debug, Default)]
struct Flight {
    /// Somebody is fetching the span.
    running: bool,
    waiters: Vec<Arc<PendingRead>>,
    /// Failures since the last success. Only delays the next fetch, never forbids it.
    failures: u32,
    not_before: Option<Instant>,
}

/// What came of a read that wants the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is here by now.
    Present,
    /// It is being fetched, and the read will be told.
    Waiting,
    /// The same, but nobody fetches it yet: the caller has to.
    First,
    /// Too many wait already.
    Full,
}

impl Slot {
    pub(crate) fn new(state: State) -> Self {
        Self { state: AtomicU8::new(state as u8), flight: Mutex::default() }
    }

    pub(crate) fn state(&self) -> State {
        State::from_u8(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn is_present(&self) -> bool {
        self.state() == State::Present
    }

    /// Lets a read wait for the span, with up to `limit` others.
    pub(crate) fn join(&self, read: &Arc<PendingRead>, limit: usize) -> Joined {
        let mut flight = self.flight.lock();
        if self.is_present() {
            return Joined::Present;
        }
        if flight.waiters.len() >= limit {
            flight.waiters.retain(|waiter| waiter.live_until().is_some());
            if flight.waiters.len() >= limit {
                return Joined::Full;
            }
        }
        flight.waiters.push(Arc::clone(read));
        if std::mem::replace(&mut flight.running, true) { Joined::Waiting } else { Joined::First }
    }

    /// How long anybody will wait for the span. `None`: nobody does, and the span counts as not being fetched any more.
    pub(crate) fn live_until(&self) -> Option<Instant> {
        let mut flight = self.flight.lock();
        let until = flight.waiters.iter().filter_map(|waiter| waiter.live_until()).max();
        if until.is_none() {
            flight.running = false;
            flight.waiters.clear();
        }
        until
    }

    /// When the next fetch may begin.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        self.flight.lock().not_before
    }

    /// What was suspect turned out to be wrong.
    pub(crate) fn lost(&self) {
        self.state.store(State::Missing as u8, Ordering::Release);
    }

    /// The span is here: from now on it can be read, and those who waited are to be told.
    pub(crate) fn complete(&self) -> Vec<Arc<PendingRead>> {
        let mut flight = self.flight.lock();
        self.state.store(State::Present as u8, Ordering::Release);
        std::mem::take(&mut *flight).waiters
    }

    /// The fetch has failed: those who waited get the error, the next read tries again.
    pub(crate) fn fail(&self, error: &ReadError, max_backoff: Duration) {
        let waiters = {
            let mut flight = self.flight.lock();
            if self.is_present() || !flight.running {
                return;
            }
            flight.running = false;
            flight.failures = flight.failures.saturating_add(1);
            flight.not_before = Some(Instant::now() + backoff(flight.failures, max_backoff));
            std::mem::take(&mut flight.waiters)
        };
        for waiter in waiters {
            waiter.fail(error.clone());
        }
    }
}
