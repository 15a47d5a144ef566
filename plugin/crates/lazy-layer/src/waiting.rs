//! Reads that wait for spans.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::ReadError;
use crate::layer::{Layer, Loose, Reply};

/// What a read is to be answered with.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Bytes of the layer file; not empty.
    pub(crate) place: Range<u64>,
    /// Those of them that are the tar's, counted from its beginning; empty if there are none.
    pub(crate) tar: Range<u64>,
    /// Rows of the tar headers that are in front of these bytes.
    pub(crate) headers: Range<usize>,
}

/// One read and the spans it lacks. Whatever happens first answers it: the last span, a failure, the deadline.
pub(crate) struct PendingRead {
    wanted: Wanted,
    /// Somebody is blocked by it; otherwise it is our own curiosity.
    blocks: bool,
    since: Instant,
    deadline: Instant,
    answered: AtomicBool,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Whom to answer, and from which layer. Spans may remember the read for longer than it lasts: they must not keep their own layer open by it.
    reader: Option<(Reply, Arc<Layer>)>,
    /// Spans that have not arrived yet, and one more while the read is joining them.
    lacking: usize,
    /// Spans that arrived and could not be stored.
    loose: Vec<Loose>,
    timer: Option<AbortHandle>,
}

impl PendingRead {
    pub(crate) fn new(
        layer: Arc<Layer>,
        wanted: Wanted,
        blocks: bool,
        reply: Reply,
        deadline: Duration,
    ) -> Arc<Self> {
        let since = Instant::now();
        Arc::new(Self {
            wanted,
            blocks,
            since,
            deadline: since + deadline,
            answered: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                reader: Some((reply, layer)),
                lacking: 1,
                loose: Vec::new(),
                timer: None,
            }),
        })
    }

    /// Whether the reader still waits.
    pub(crate) fn is_live(&self) -> bool {
        !self.answered.load(Ordering::Acquire)
    }

    /// Notes that one more span is waited for.
    pub(crate) fn joins(&self) {
        let mut inner = self.inner.lock();
        inner.lacking = inner.lacking.saturating_add(1);
    }

    /// Makes sure that the read ends in time. To be called once, after all spans were joined.
    pub(crate) fn arm(self: &Arc<Self>, runtime: &tokio::runtime::Handle, after: Duration) {
        let mut inner = self.inner.lock();
        if inner.reader.is_some() {
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
        let (reader, loose) = {
            let mut inner = self.inner.lock();
            inner.lacking = inner.lacking.saturating_sub(1);
            if inner.lacking > 0 {
                return;
            }
            (self.take(&mut inner), std::mem::take(&mut inner.loose))
        };
        if let Some((reply, layer)) = reader {
            layer.serve(&self.wanted, &loose, reply);
        }
    }

    /// One span is here, in memory only.
    pub(crate) fn passed_by(&self, loose: Loose) {
        self.inner.lock().loose.push(loose);
        self.arrived();
    }

    /// Answers the reader with an error, unless it has been answered.
    pub(crate) fn fail(&self, error: ReadError) {
        let reader = self.take(&mut self.inner.lock());
        if let Some((reply, _layer)) = reader {
            reply(Err(error));
        }
    }

    fn take(&self, inner: &mut Inner) -> Option<(Reply, Arc<Layer>)> {
        self.answered.store(true, Ordering::Release);
        if let Some(timer) = inner.timer.take() {
            timer.abort();
        }
        let reader = inner.reader.take();
        if let Some((_, layer)) = &reader
            && self.blocks
        {
            let waited = self.since.elapsed();
            tracing::trace!(
                layer = %layer.key().layer,
                spans = ?layer.spans().covering(&self.wanted.tar),
                tar = self.wanted.tar.start,
                usec = waited.as_micros(),
                "a read waited"
            );
            layer.counters().waited(waited);
        }
        reader
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
