//! A source that does nothing but what the test tells it to.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lazy_layer::{BlobSource, ByteStream, SourceError};
use parking_lot::{Condvar, Mutex};
use tokio::sync::mpsc;
use ztoc::CompressedOffset;

use crate::bed::PATIENCE;

/// See the module.
#[derive(Debug)]
pub struct Script {
    host: &'static str,
    blob: Bytes,
    requests: Mutex<Vec<Arc<Request>>>,
    more: Condvar,
}

/// A ranged read that the engine has made.
#[derive(Debug)]
pub struct Request {
    pub range: Range<u64>,
    blob: Bytes,
    send: Mutex<Option<mpsc::UnboundedSender<Result<Bytes, SourceError>>>>,
    /// Pieces that the engine has taken.
    pub taken: Arc<AtomicUsize>,
}

impl Script {
    pub fn new(blob: &Bytes) -> Arc<Self> {
        Self::on("script", blob)
    }

    /// On a host of this name.
    pub fn on(host: &'static str, blob: &Bytes) -> Arc<Self> {
        Arc::new(Self { host, blob: blob.clone(), requests: Mutex::default(), more: Condvar::new() })
    }

    pub fn requests(&self) -> Vec<Arc<Request>> {
        self.requests.lock().clone()
    }

    /// The first request that fits, when it has come.
    pub fn request(&self, fits: impl Fn(&Request) -> bool) -> Arc<Request> {
        let mut requests = self.requests.lock();
        loop {
            if let Some(found) = requests.iter().find(|request| fits(request)) {
                return Arc::clone(found);
            }
            let timeout = self.more.wait_for(&mut requests, PATIENCE).timed_out();
            assert!(!timeout, "the request never came: {requests:?}");
        }
    }

    /// The request number `at`, when it has come.
    pub fn nth(&self, at: usize) -> Arc<Request> {
        let mut requests = self.requests.lock();
        while requests.len() <= at {
            let timeout = self.more.wait_for(&mut requests, PATIENCE).timed_out();
            assert!(!timeout, "request {at} never came: {requests:?}");
        }
        Arc::clone(&requests[at])
    }
}

impl Request {
    /// Sends these bytes of the blob, in one piece.
    pub fn send(&self, range: Range<u64>) {
        let piece = self.blob.slice(range.start as usize..range.end as usize);
        // An engine that has turned away from the request does not mind.
        let _ = self.send.lock().as_ref().unwrap().send(Ok(piece));
    }

    /// Sends all of it.
    pub fn serve(&self) {
        self.send(self.range.clone());
        self.send.lock().take();
    }

    pub fn fail(&self, error: SourceError) {
        let _ = self.send.lock().take().unwrap().send(Err(error));
    }

    /// Whether the engine still listens.
    pub fn is_wanted(&self) -> bool {
        self.send.lock().as_ref().is_some_and(|send| !send.is_closed())
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }
}

impl BlobSource for Script {
    fn host(&self) -> Arc<str> {
        self.host.into()
    }

    fn read(&self, range: Range<CompressedOffset>) -> ByteStream {
        let (send, receive) = mpsc::unbounded_channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let request = Request {
            range: range.start.0..range.end.0,
            blob: self.blob.clone(),
            send: Mutex::new(Some(send)),
            taken: Arc::clone(&taken),
        };
        self.requests.lock().push(Arc::new(request));
        self.more.notify_all();
        stream::unfold((receive, taken), |(mut receive, taken)| async move {
            let piece = receive.recv().await?;
            taken.fetch_add(1, Ordering::SeqCst);
            Some((piece, (receive, taken)))
        })
        .boxed()
    }
}
