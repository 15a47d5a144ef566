//! Reads that wait for spans.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::disk::headers::HeaderId;
use crate::error::ReadError;
use crate::layer::{Layer, Reply};

/// What a read is to be answered with.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The file.
    pub(crate) nid: u64,
    /// The tar header in front of its data.
    pub(crate) header: HeaderId,
    /// Where the bytes are in the tar; not empty.
    pub(crate) tar: std::ops::Range<u64>,
}

/// One read and the spans it lacks. Whatever happens first answers it: the last span, a failure, the deadline.
pub(crate) struct PendingRead {
    layer: Arc<Layer>,
    wanted: Wanted,
    deadline: Instant,
    answered: AtomicBool,
    inner: Mutex<Inner>,
}

struct Inner {
    reply: Option<Reply>,
    /// Spans that have not arrived yet, and one more while the read is joining them.
    lacking: usize,
    timer: Option<AbortHandle>,
}

impl PendingRead {
    pub(crate) fn new(layer: Arc<Layer>, wanted: Wanted, reply: Reply, deadline: Duration) -> Arc<Self> {
        Arc::new(Self {
            layer,
            wanted,
            deadline: Instant::now() + deadline,
            answered: AtomicBool::new(false),
            inner: Mutex::new(Inner { reply: Some(reply), lacking: 1, timer: None }),
        })
    }

    /// When the reader stops waiting; `None` if it has been answered.
    pub(crate) fn live_until(&self) -> Option<Instant> {
        (!self.answered.load(Ordering::Acquire)).then_some(self.deadline)
    }

    /// Notes that one more span is waited for.
    pub(crate) fn joins(&self) {
        let mut inner = self.inner.lock();
        inner.lacking = inner.lacking.saturating_add(1);
    }

    /// Makes sure that the read ends in time. To be called once, after all spans were joined.
    pub(crate) fn arm(self: &Arc<Self>, runtime: &tokio::runtime::Handle, after: Duration) {
        let mut inner = self.inner.lock();
        if inner.reply.is_some() {
            let read = Arc::clone(self);
            let timer = runtime.spawn(async move {
                tokio::time::sleep_until(read.deadline).await;
                read.fail(ReadError::Deadline { after });
            });
            inner.timer = Some(timer.abort_handle());
        }
    }

    /// One span (or the joining itself) is done; the last one answers the reader, on this thread.
    pub(crate) fn arrived(&self) {
        let reply = {
            let mut inner = self.inner.lock();
            inner.lacking = inner.lacking.saturating_sub(1);
            if inner.lacking > 0 {
                return;
            }
            self.take(&mut inner)
        };
        if let Some(reply) = reply {
            self.layer.serve(&self.wanted, reply);
        }
    }

    /// Answers the reader with an error, unless it has been answered.
    pub(crate) fn fail(&self, error: ReadError) {
        let reply = self.take(&mut self.inner.lock());
        if let Some(reply) = reply {
            reply(Err(error));
        }
    }

    fn take(&self, inner: &mut Inner) -> Option<Reply> {
        self.answered.store(true, Ordering::Release);
        if let Some(timer) = inner.timer.take() {
            timer.abort();
        }
        inner.reply.take()
    }
}

// === impl PendingRead ===

impl std::fmt::Debug for PendingRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingRead")
            .field("wanted", &self.wanted)
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}
