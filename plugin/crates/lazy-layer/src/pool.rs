//! The threads that check digests, inflate, write and answer.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::demand::Demand;

/// Work for a thread of the pool. It gets the thread's scratch space.
type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Where a thread inflates; kept from job to job so that its pages are.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    /// `len` bytes of any content.
    pub(crate) fn space(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        self.0.get_mut(..len).unwrap_or_default()
    }

    fn tidy(&mut self, largest: usize) {
        if self.0.len() > largest {
            self.0 = Vec::new();
        }
    }
}

/// A fixed number of threads and a queue for each kind of demand; what somebody waits for goes first. The queues need no bound of their own: who
/// queues a job has its bytes counted by the engine, and a span has one job of a kind at most. The threads end when the pool is dropped and the queues
/// are empty.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    filled: Condvar,
}

#[derive(Default)]
struct Queues {
    jobs: [VecDeque<Job>; Demand::COUNT],
    closed: bool,
}

impl Pool {
    /// Starts `threads` threads, at least one. Between two jobs each keeps up to `largest` bytes of scratch space.
    pub(crate) fn start(threads: usize, largest: usize) -> io::Result<Self> {
        let pool = Self { shared: Arc::default() };
        for number in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            std::thread::Builder::new()
                .name(format!("soci-inflate-{number}"))
                .spawn(move || work(&shared, largest))?;
        }
        Ok(pool)
    }

    /// Queues a job.
    pub(crate) fn run(&self, demand: Demand, job: impl FnOnce(&mut Scratch) + Send + 'static) {
        if let Some(queue) = self.shared.queues.lock().jobs.get_mut(demand.index()) {
            queue.push_back(Box::new(job));
        }
        self.shared.filled.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queues.lock().closed = true;
        self.shared.filled.notify_all();
    }
}

// === impl Shared ===

impl Shared {
    /// Waits for the most urgent job; `None` when there will be no more.
    fn next(&self) -> Option<Job> {
        let mut queues = self.queues.lock();
        loop {
            if let Some(job) = queues.jobs.iter_mut().find_map(VecDeque::pop_front) {
                return Some(job);
            }
            if queues.closed {
                return None;
            }
            self.filled.wait(&mut queues);
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queues = self.queues.lock();
        f.debug_list().entries(queues.jobs.iter().map(VecDeque::len)).finish()
    }
}

fn work(shared: &Shared, largest: usize) {
    let mut scratch = Scratch::default();
    while let Some(job) = shared.next() {
        // A bug in one span's work must not take the thread from all layers; the job's owner notices that it got no answer.
        if catch_unwind(AssertUnwindSafe(|| job(&mut scratch))).is_err() {
            tracing::error!("a span's work panicked");
            scratch = Scratch::default();
        }
        scratch.tidy(largest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_panic() {
        let pool = Pool::start(1, 1 << 20).unwrap();
        let (tell, told) = crossbeam_channel::bounded(1);
        pool.run(Demand::Read, |_| panic!("on purpose"));
        pool.run(Demand::Read, move |scratch| tell.send(scratch.space(5).len()).unwrap());
        assert_eq!(told.recv().unwrap(), 5);
    }

    #[test]
    fn the_most_urgent_job_goes_first() {
        let pool = Pool::start(1, 1 << 20).unwrap();
        let (open, gate) = crossbeam_channel::bounded::<()>(0);
        let (tell, told) = crossbeam_channel::unbounded();
        pool.run(Demand::Read, move |_| gate.recv().unwrap());
        for demand in [Demand::Fill, Demand::ReadAhead, Demand::Fill, Demand::Read] {
            let tell = tell.clone();
            pool.run(demand, move |_| tell.send(demand).unwrap());
        }
        open.send(()).unwrap();
        let order: Vec<Demand> = told.iter().take(4).collect();
        assert_eq!(order, [Demand::Read, Demand::ReadAhead, Demand::Fill, Demand::Fill]);
    }
}
