//! Single flight: who asks for what somebody else is already finding out waits for the same answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// Answers by question, each found once and believed for a while.
#[derive(Debug)]
pub(super) struct Flights<K, V> {
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
    capacity: usize,
}

#[derive(Clone, Debug)]
struct Flight<V> {
    started: Instant,
    answer: watch::Receiver<Option<Answer<V>>>,
}

#[derive(Clone, Debug)]
struct Answer<V> {
    value: V,
    believed_until: Instant,
}

// === impl Flights ===

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Remembers at most `capacity` questions; the oldest is forgotten first.
    pub(super) fn new(capacity: usize) -> Flights<K, V> {
        Flights { flights: Arc::default(), capacity: capacity.max(1) }
    }

    /// The answer, if it comes within `patience` of the first who asked. `find` runs to its end in any case, in a task of its own, and should
    /// have a deadline; `ttl` says how long its answer is believed.
    pub(super) async fn ask<F>(
        &self,
        key: K,
        patience: Duration,
        ttl: impl FnOnce(&V) -> Duration + Send + 'static,
        find: impl FnOnce() -> F,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flight = self.join(key, ttl, find);
        let waited =
            tokio::time::timeout_at(flight.started + patience, flight.answer.wait_for(Option::is_some)).await;
        // A sender that is gone without an answer has panicked.
        waited.ok()?.ok()?.as_ref().map(|answer| answer.value.clone())
    }

    fn join<F>(
        &self,
        key: K,
        ttl: impl FnOnce(&V) -> Duration + Send + 'static,
        find: impl FnOnce() -> F,
    ) -> Flight<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&key).filter(|flight| flight.is_good()) {
            return flight.clone();
        }
        if flights.len() >= self.capacity && !flights.contains_key(&key) {
            let oldest = flights.iter().min_by_key(|(_, flight)| flight.started).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                flights.remove(&oldest);
            }
        }
        let (sender, answer) = watch::channel(None);
        let flight = Flight { started: Instant::now(), answer };
        flights.insert(key.clone(), flight.clone());
        drop(flights);

        let future = find();
        let map = Arc::clone(&self.flights);
        let started = flight.started;
        tokio::spawn(async move {
            let value = future.await;
            let believed_until = Instant::now() + ttl(&value);
            let _ = sender.send(Some(Answer { value, believed_until }));
            tokio::select! {
                () = tokio::time::sleep_until(believed_until) => {}
                // Forgotten before that.
                () = sender.closed() => {}
            }
            // Not kept until the next question: the value may hold something.
            let mut flights = map.lock();
            if flights.get(&key).is_some_and(|flight| flight.started == started) {
                flights.remove(&key);
            }
        });
        flight
    }
}

// === impl Flight ===

impl<V> Flight<V> {
    fn is_good(&self) -> bool {
        match self.answer.borrow().as_ref() {
            Some(answer) => answer.believed_until > Instant::now(),
            // Under way, unless whoever was finding out has died of it.
            None => self.answer.has_changed().is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A moment; the numbers below are multiples of it.
    const BEAT: Duration = Duration::from_millis(60);

    #[tokio::test]
    async fn one_question_is_asked_once_until_the_answer_is_old() {
        let flights = Flights::new(10);
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let asked = Arc::clone(&asked);
            flights.ask(
                "k",
                5 * BEAT,
                |_| BEAT,
                move || async move {
                    tokio::time::sleep(BEAT).await;
                    asked.fetch_add(1, Ordering::SeqCst)
                },
            )
        };
        let (a, b) = tokio::join!(ask(), ask());
        assert_eq!((a, b, ask().await), (Some(0), Some(0), Some(0)));
        tokio::time::sleep(2 * BEAT).await;
        assert!(flights.flights.lock().is_empty(), "an old answer is not kept for the next question");
        assert_eq!(ask().await, Some(1));
    }

    #[tokio::test]
    async fn patience_is_counted_from_the_first_who_asked() {
        let flights = Flights::new(10);
        let ask = || {
            flights.ask(
                "k",
                5 * BEAT,
                |_| Duration::ZERO,
                || async {
                    tokio::time::sleep(20 * BEAT).await;
                    7
                },
            )
        };
        let start = Instant::now();
        assert_eq!(ask().await, None);
        assert_eq!(ask().await, None);
        assert!((5 * BEAT..10 * BEAT).contains(&start.elapsed()), "{:?}", start.elapsed());
        while !flights.flights.lock().is_empty() {
            tokio::time::sleep(BEAT).await;
        }
    }

    #[tokio::test]
    async fn a_flight_that_died_is_no_answer_and_the_next_one_starts() {
        let flights: Flights<&str, u8> = Flights::new(1);
        assert_eq!(flights.ask("k", BEAT, |_| BEAT, || async { panic!("as told") }).await, None);
        assert_eq!(flights.ask("k", BEAT, |_| BEAT, || async { 3 }).await, Some(3));
        assert_eq!(flights.ask("other", BEAT, |_| BEAT, || async { 4 }).await, Some(4));
        assert_eq!(flights.flights.lock().len(), 1);
    }
}
