//! Steps that wait for the thread that reads ahead.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender};

/// Bytes that all of them may keep: what came of files, and what was found in it.
const MAX_BYTES: usize = 32 << 20;

/// Where they come from.
#[derive(Debug)]
pub(crate) struct Steps<T> {
    queue: Sender<(T, usize)>,
    bytes: Arc<AtomicUsize>,
}

/// Where they are taken.
#[derive(Debug)]
pub(crate) struct Taken<T> {
    queue: Receiver<(T, usize)>,
    bytes: Arc<AtomicUsize>,
}

/// Up to `max` of them.
pub(crate) fn bounded<T>(max: usize) -> (Steps<T>, Taken<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(max);
    let bytes = Arc::<AtomicUsize>::default();
    (Steps { queue: sender, bytes: Arc::clone(&bytes) }, Taken { queue: receiver, bytes })
}

impl<T> Steps<T> {
    /// Adds one that keeps so many bytes. Never waits; where there are too many, it is lost.
    pub(crate) fn push(&self, step: T, bytes: usize) {
        let more = |all: usize| all.checked_add(bytes).filter(|all| *all <= MAX_BYTES);
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
            && self.queue.try_send((step, bytes)).is_err()
        {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// Takes hints, and steps when there are none, until either can come no more. What panics ends nothing but itself: one image's files must not take this thread from all.
pub(crate) fn take_all<H, T>(
    hints: &Receiver<H>,
    steps: &Taken<T>,
    mut hint: impl FnMut(H),
    mut step: impl FnMut(T),
) {
    loop {
        let end = crossbeam_channel::select_biased! {
            recv(hints) -> given => given.map(|given| catch_unwind(AssertUnwindSafe(|| hint(given)))),
            recv(steps.queue) -> taken => taken.map(|(taken, bytes)| {
                steps.bytes.fetch_sub(bytes, Ordering::Relaxed);
                catch_unwind(AssertUnwindSafe(|| step(taken)))
            }),
        };
        match end {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tracing::error!("what reads ahead panicked"),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(steps: Steps<usize>, taken: &Taken<usize>) -> Vec<usize> {
        let (hints, given) = crossbeam_channel::bounded::<()>(1);
        drop(steps);
        let mut all = Vec::new();
        take_all(&given, taken, |()| {}, |step| all.push(step));
        drop(hints);
        all
    }

    #[test]
    fn number_and_bytes_are_bounded() {
        let (steps, ends) = bounded(3);
        (0..5).for_each(|step| steps.push(step, 0));
        assert_eq!(taken(steps, &ends), [0, 1, 2]);

        let (steps, ends) = bounded(100);
        steps.push(0, MAX_BYTES - 1);
        steps.push(1, 2);
        steps.push(2, 1);
        steps.push(3, usize::MAX);
        steps.push(4, 0);
        assert_eq!(taken(steps, &ends), [0, 2, 4]);
        assert_eq!(ends.bytes.load(Ordering::Relaxed), 0);

        let (steps, ends) = bounded(1);
        (0..5).for_each(|step| steps.push(step, 7));
        assert_eq!(taken(steps, &ends), [0]);
        assert_eq!(ends.bytes.load(Ordering::Relaxed), 0, "what was lost keeps nothing");
    }

    #[test]
    fn a_panic_ends_nothing_else() {
        let (hints, given) = crossbeam_channel::bounded(2);
        let (steps, ends) = bounded(2);
        (0..2).for_each(|number| hints.send(number).unwrap());
        (2..4).for_each(|number| steps.push(number, 1));
        drop(steps);
        let seen = parking_lot::Mutex::new(Vec::new());
        let take = |number: usize| {
            seen.lock().push(number);
            assert!(number % 2 == 1, "on purpose");
        };
        take_all(&given, &ends, take, take);
        assert_eq!(*seen.lock(), [0, 1, 2, 3]);
        drop(hints);
    }
}
