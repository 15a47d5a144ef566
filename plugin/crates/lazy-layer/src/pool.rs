//! The threads that check digests, inflate, write and answer.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender};

/// Work for a thread of the pool. It gets the thread's scratch space.
type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Where a thread inflates; kept from span to span so that its pages are.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u8>);

/// A thread keeps no more than this between two jobs.
const LARGEST_KEPT: usize = 8 << 20;

impl Scratch {
    /// `len` bytes of any content.
    pub(crate) fn space(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        self.0.get_mut(..len).unwrap_or_default()
    }

    fn tidy(&mut self) {
        if self.0.len() > LARGEST_KEPT {
            self.0 = Vec::new();
        }
    }
}

/// A fixed number of threads and their queue. The queue needs no bound of its own: whoever queues a job holds a permit for its bytes.
/// The threads end when the pool is dropped and the queue is empty.
#[derive(Debug)]
pub(crate) struct Pool {
    jobs: Sender<Job>,
}

impl Pool {
    /// Starts `threads` threads, at least one.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::unbounded();
        for number in 0..threads.max(1) {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("soci-inflate-{number}")).spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job.
    pub(crate) fn run(&self, job: impl FnOnce(&mut Scratch) + Send + 'static) {
        // The threads hold the other end as long as this one exists; a job that is dropped tells its owner.
        let _ = self.jobs.send(Box::new(job));
    }
}

fn work(queue: &Receiver<Job>) {
    let mut scratch = Scratch::default();
    while let Ok(job) = queue.recv() {
        // A bug in one span's work must not take the thread from all layers; the job's owner notices that it got no answer.
        if catch_unwind(AssertUnwindSafe(|| job(&mut scratch))).is_err() {
            tracing::error!("a span's work panicked");
            scratch = Scratch::default();
        }
        scratch.tidy();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_panic() {
        let pool = Pool::start(1).unwrap();
        let (tell, told) = crossbeam_channel::bounded(1);
        pool.run(|_| panic!("on purpose"));
        pool.run(move |scratch| tell.send(scratch.space(5).len()).unwrap());
        assert_eq!(told.recv().unwrap(), 5);
    }
}
