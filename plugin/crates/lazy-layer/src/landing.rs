//! One span between the network and the layer file: hashed, inflated and written while its bytes arrive.
//!
//! The bytes go into the layer file before their digest is known. Nobody can see them there: the span counts as missing until everything of it
//! matched. One thread of the pool at a time works on a span; whoever has something for it puts it into the inbox.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use ztoc::{CheckpointRef, ExtractError, HeaderMismatch, Pushed, SpanInflater};

use crate::board::Verdict;
use crate::demand::Demand;
use crate::disk::checksum::Summing;
use crate::disk::headers::HeaderId;
use crate::disk::manifest::Encoding;
use crate::disk::spans::SpanRow;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::layer::Layer;
use crate::pool::Scratch;

/// The pool is called when so many compressed bytes have come. They take about a millisecond, which is what the end of a span takes at most
/// after its last byte.
const BATCH: usize = 128 << 10;
/// Bytes that are inflated at a time; they are written out of the processor's cache.
const STEP: usize = 512 << 10;

/// A span whose bytes are arriving.
pub(crate) struct Landing {
    engine: Arc<Engine>,
    layer: Arc<Layer>,
    span: usize,
    inbox: Mutex<Inbox>,
    /// Held by the one thread that works on it.
    work: Mutex<Work>,
}

#[derive(Default)]
struct Inbox {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// So many of them are in the engine's backlog: those that the pool is to take. The others are less than a batch.
    counted: usize,
    end: Option<End>,
    /// The most urgent that is known.
    demand: Demand,
    /// The pool has a job for what is in it, which waits among those for this demand. Jobs that wait for less beside it find nothing to do.
    queued: Option<Demand>,
    /// A thread of the pool is taking what is in it.
    taken: bool,
}

/// No more bytes will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All are here.
    Whole,
    /// The others were lost.
    Aborted,
}

/// How far a span is.
struct Work {
    hash: Sha256,
    decoder: Option<Decoder>,
    sum: Summing,
    /// Bytes of the tar that are written.
    written: u64,
    /// Headers that lie in these bytes, and what was found. It counts when the digest matched.
    headers: Vec<(HeaderId, Result<(), HeaderMismatch>)>,
    /// The span's bytes, where the disk has no room for them.
    kept: Option<Vec<u8>>,
    failure: Option<ReadError>,
}

/// What makes tar bytes of a span's compressed ones.
pub(crate) enum Decoder {
    Plain,
    Gzip(Box<SpanInflater>),
}

impl Landing {
    pub(crate) fn new(engine: &Arc<Engine>, layer: &Arc<Layer>, span: usize) -> Arc<Self> {
        Arc::new(Self {
            engine: Arc::clone(engine),
            layer: Arc::clone(layer),
            span,
            inbox: Mutex::default(),
            work: Mutex::new(Work {
                hash: Sha256::new(),
                decoder: None,
                sum: Summing::new(),
                written: 0,
                headers: Vec::new(),
                kept: None,
                failure: None,
            }),
        })
    }

    /// The next compressed bytes of the span.
    pub(crate) fn push(self: &Arc<Self>, piece: Bytes, demand: Demand) {
        let mut inbox = self.inbox.lock();
        inbox.bytes = inbox.bytes.saturating_add(piece.len());
        inbox.pieces.push_back(piece);
        if inbox.taken || inbox.queued.is_some() || inbox.bytes >= BATCH {
            self.call(&mut inbox, demand);
        }
    }

    /// The span is wanted more urgently than before: it does not keep its place among the pool's jobs.
    pub(crate) fn hurry(self: &Arc<Self>, demand: Demand) {
        let mut inbox = self.inbox.lock();
        inbox.demand = inbox.demand.min(demand);
        if inbox.queued.is_some() {
            self.queue(&mut inbox);
        }
    }

    /// No more bytes will come. The board is told what became of the span when the pool is done with it.
    pub(crate) fn end(self: &Arc<Self>, end: End, demand: Demand) {
        let mut inbox = self.inbox.lock();
        inbox.end = Some(end);
        self.call(&mut inbox, demand);
    }

    /// Lets the pool take what is in the inbox.
    fn call(self: &Arc<Self>, inbox: &mut Inbox, demand: Demand) {
        self.engine.backlog.add(inbox.bytes.saturating_sub(inbox.counted));
        inbox.counted = inbox.bytes;
        inbox.demand = inbox.demand.min(demand);
        self.queue(inbox);
    }

    /// Gives the pool a job, unless it has one that is as urgent, or is at work: one for each kind of demand at most.
    fn queue(self: &Arc<Self>, inbox: &mut Inbox) {
        if inbox.taken || inbox.queued.is_some_and(|queued| queued <= inbox.demand) {
            return;
        }
        inbox.queued = Some(inbox.demand);
        let landing = Arc::clone(self);
        self.engine.pool.run(inbox.demand, move |scratch| landing.work(scratch));
    }

    /// Works on what is in the inbox, until there is too little in it.
    fn work(self: &Arc<Self>, scratch: &mut Scratch) {
        {
            let mut inbox = self.inbox.lock();
            if inbox.queued.take().is_none() {
                return;
            }
            inbox.taken = true;
        }
        loop {
            let (pieces, counted, end) = {
                let mut inbox = self.inbox.lock();
                inbox.bytes = 0;
                (std::mem::take(&mut inbox.pieces), std::mem::take(&mut inbox.counted), inbox.end)
            };
            let guard = Guard { landing: self, counted };
            let verdict = {
                let mut work = self.work.lock();
                if end != Some(End::Aborted) {
                    work.take(&self.layer, self.span, &pieces, scratch);
                }
                match end {
                    None => None,
                    Some(End::Aborted) => Some(Verdict::Aborted),
                    Some(End::Whole) => Some(self.finish(&mut work)),
                }
            };
            drop(pieces);
            drop(guard);
            if let Some(verdict) = verdict {
                return self.engine.landed(&self.layer, self.span, verdict);
            }
            let mut inbox = self.inbox.lock();
            if inbox.end.is_none() && inbox.bytes < BATCH {
                inbox.taken = false;
                self.engine.backlog.sub(std::mem::take(&mut inbox.counted));
                return;
            }
        }
    }

    fn finish(&self, work: &mut Work) -> Verdict {
        let stored = work.finish(&self.layer, self.span).and_then(|()| {
            let headers = std::mem::take(&mut work.headers);
            match work.kept.take() {
                None => self.layer.arrive(self.span, work.sum.finish(), headers).map(|()| Verdict::Done),
                Some(bytes) => {
                    self.engine.disk_is_full(&self.layer);
                    self.layer.pass_by(self.span, bytes, headers);
                    Ok(Verdict::PassedBy)
                }
            }
        });
        match stored {
            Ok(verdict) => verdict,
            Err(error @ ReadError::Digest { .. }) => Verdict::Wrong(error),
            Err(error) => Verdict::Failed(error),
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.engine.backlog.sub(self.inbox.get_mut().counted);
    }
}

/// Gives the memory back, and reports a span whose work panicked.
struct Guard<'a> {
    landing: &'a Arc<Landing>,
    counted: usize,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Landing { engine, layer, span, .. } = &**self.landing;
        engine.backlog.sub(self.counted);
        if std::thread::panicking() {
            let error = ReadError::GivenUp { span: layer.number(*span) };
            engine.landed(layer, *span, Verdict::Failed(error));
        }
    }
}

impl Work {
    fn take(&mut self, layer: &Layer, span: usize, pieces: &VecDeque<Bytes>, scratch: &mut Scratch) {
        for piece in pieces {
            self.hash.update(piece);
        }
        if self.failure.is_none()
            && let Err(error) = self.decode(layer, span, pieces, scratch)
        {
            // If the digest does not match either, that is what is wrong with the span.
            self.failure = Some(error);
        }
    }

    fn decode(
        &mut self,
        layer: &Layer,
        span: usize,
        pieces: &VecDeque<Bytes>,
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let row = layer.row(span)?;
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => Decoder::new(layer, span, row)?,
        };
        let space = scratch.space(STEP);
        let mut filled = 0usize;
        for piece in pieces {
            let mut rest: &[u8] = piece;
            loop {
                let missing = row.tar_len().saturating_sub(self.written).saturating_sub(filled as u64);
                let limit =
                    space.len().min(filled.saturating_add(usize::try_from(missing).unwrap_or(usize::MAX)));
                let room = space.get_mut(filled..limit).unwrap_or_default();
                let pushed = decoder.push(rest, room).map_err(|source| ReadError::Inflate {
                    span: layer.number(span),
                    source: Arc::new(source),
                })?;
                let full = pushed.written == room.len();
                rest = rest.get(pushed.consumed..).unwrap_or_default();
                filled = filled.saturating_add(pushed.written);
                if filled == space.len() {
                    self.store(layer, row, space)?;
                    filled = 0;
                } else if !full || missing == pushed.written as u64 {
                    break;
                }
            }
        }
        self.store(layer, row, space.get(..filled).unwrap_or_default())?;
        self.decoder = Some(decoder);
        Ok(())
    }

    /// Writes the next bytes of the tar.
    fn store(&mut self, layer: &Layer, row: &SpanRow, tar: &[u8]) -> Result<(), ReadError> {
        if tar.is_empty() {
            return Ok(());
        }
        let at = row.tar.start.saturating_add(self.written);
        self.sum.add(tar);
        let range = at..at.saturating_add(tar.len() as u64);
        layer.judge_headers_in(&range, tar, &mut self.headers);
        match &mut self.kept {
            Some(kept) => kept.extend_from_slice(tar),
            None => match layer.write_tar(tar, at) {
                Ok(()) => {}
                Err(error) if is_full(&error) => {
                    let before = usize::try_from(self.written).unwrap_or(usize::MAX);
                    let mut kept = vec![0; before];
                    layer.read_tar(&mut kept, row.tar.start)?;
                    kept.extend_from_slice(tar);
                    self.kept = Some(kept);
                }
                Err(error) => return Err(ReadError::io("write a span")(error)),
            },
        }
        self.written = self.written.saturating_add(tar.len() as u64);
        Ok(())
    }

    /// Everything came: says whether it is what it should be.
    fn finish(&mut self, layer: &Layer, span: usize) -> Result<(), ReadError> {
        let (number, row) = (layer.number(span), layer.row(span)?);
        if <[u8; 32]>::from(self.hash.finalize_reset()) != row.digest {
            return Err(ReadError::Digest { span: number });
        }
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if self.written < row.tar_len() {
            let written = usize::try_from(self.written).unwrap_or(usize::MAX);
            let source = Arc::new(ztoc::ExtractError::Truncated(written));
            return Err(ReadError::Inflate { span: number, source });
        }
        Ok(())
    }
}

impl Decoder {
    pub(crate) fn new(layer: &Layer, span: usize, row: &SpanRow) -> Result<Self, ReadError> {
        match layer.encoding() {
            Encoding::Tar => Ok(Self::Plain),
            Encoding::Gzip => {
                let window = layer.window(span, row)?;
                let checkpoint = CheckpointRef { bits: row.bits, window: &window };
                let inflater = SpanInflater::new(checkpoint).map_err(|source| ReadError::Inflate {
                    span: layer.number(span),
                    source: Arc::new(source),
                })?;
                Ok(Self::Gzip(Box::new(inflater)))
            }
        }
    }

    pub(crate) fn push(&mut self, input: &[u8], out: &mut [u8]) -> Result<Pushed, ExtractError> {
        match self {
            Self::Gzip(inflater) => inflater.push(input, out),
            Self::Plain => {
                let len = input.len().min(out.len());
                out.iter_mut().zip(input).for_each(|(to, from)| *to = *from);
                Ok(Pushed { consumed: len, written: len })
            }
        }
    }
}

/// Whether an error means that there is no room, now.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
