//! One layer, readable before it is here.

mod arrival;
mod header_check;
mod programs;
mod slot;
mod status;
mod sweep;
mod whole;
mod write_out;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use erofs_image::{Image, Kind, Nid};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::ahead::{Ahead, Touch, enters};
use crate::demand::Demand;
use crate::disk::directory::LayerFiles;
use crate::disk::headers::{HeaderId, HeaderTable};
use crate::disk::manifest::Encoding;
use crate::disk::spans::SpanRows;
use crate::disk::states::{State, States};
use crate::disk::sync;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::key::LayerKey;
use crate::mapping::Mapping;
use crate::options::StoreOptions;
use crate::source::BlobSource;
use crate::sources::{SourceId, Sources};
use crate::stack::Stack;
use crate::start::Followed;
use crate::waiting::{PendingRead, Wanted};
pub(crate) use arrival::Loose;
use header_check::{HeaderState, HeaderStates};
use programs::looks_like_program;
use slot::Joined;
pub(crate) use slot::Slot;
pub(crate) use status::Counters;
pub use status::{Completeness, LayerStatus};
use sweep::Sweep;
pub(crate) use whole::Scanned;
use whole::Whole;
use write_out::WriteOut;

/// How a read is answered, once, on whatever thread has the bytes.
pub type Reply = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// A read gives no more bytes than this, whatever was asked for; the kernel asks for 1 MiB at most.
pub const MAX_READ: u32 = 16 << 20;

/// How often a layer that goes on growing is synced before it is left to be re-checked. Each time less has come meanwhile.
const SETTLING: u32 = 3;

/// Identity of an open layer within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LayerId(pub(crate) u64);

/// One layer file: the metadata is all here, the data as far as it was read.
#[derive(Debug)]
pub struct Layer {
    id: LayerId,
    key: LayerKey,
    directory: PathBuf,
    encoding: Encoding,
    metadata: String,
    tar_start: u64,
    tar_size: u64,
    file_size: u64,
    image: Image<Mapping>,
    file: File,
    windows: File,
    spans: SpanRows,
    headers: HeaderTable,
    header_states: HeaderStates,
    states: States,
    slots: Vec<Slot>,
    sources: Sources,
    ahead: Mutex<Ahead>,
    sweep: Sweep,
    /// The newest image that it is part of.
    stack: Mutex<Option<Arc<Stack>>>,
    followed: Mutex<Followed>,
    engine: Arc<Engine>,
    counters: Counters,
    completeness: watch::Sender<Completeness>,
    /// Spans that are not here.
    missing: AtomicUsize,
    whole: Whole,
    write_out: WriteOut,
}

/// Keeps a source attached to a layer; dropping it detaches the source and stops what is being fetched from it.
#[derive(Debug)]
#[must_use = "dropping it detaches the source"]
pub struct Attachment {
    layer: Arc<Layer>,
    id: SourceId,
}

impl Layer {
    pub(crate) fn new(key: LayerKey, directory: PathBuf, files: LayerFiles, engine: Arc<Engine>) -> Self {
        let LayerFiles { manifest, image, layer, windows, spans, headers, states, initial, checked } = files;
        let slots: Vec<Slot> = spans
            .iter()
            .zip(initial)
            // Nobody can need a span without bytes.
            .map(|(row, state)| Slot::new(if row.tar_len() == 0 { State::Present } else { state }))
            .collect();
        let missing = slots.iter().filter(|slot| !slot.is_present()).count();
        Self {
            id: engine.next_layer(),
            key,
            directory,
            encoding: manifest.encoding,
            metadata: manifest.metadata,
            tar_start: manifest.tar_start,
            tar_size: manifest.uncompressed_size,
            file_size: manifest.file_size,
            image,
            file: layer,
            windows,
            header_states: HeaderStates::new(headers.len()),
            spans,
            headers,
            states,
            slots,
            sources: Sources::new(),
            ahead: Mutex::new(Ahead::new(engine.options.max_streams)),
            sweep: Sweep::default(),
            stack: Mutex::default(),
            followed: Mutex::default(),
            engine,
            counters: Counters::new(),
            completeness: watch::Sender::new(Completeness::Incomplete),
            missing: AtomicUsize::new(missing),
            whole: Whole::new(checked),
            write_out: WriteOut::default(),
        }
    }

    pub(crate) fn options(&self) -> &StoreOptions {
        &self.engine.options
    }

    /// The pair that this layer file belongs to.
    pub fn key(&self) -> &LayerKey {
        &self.key
    }

    /// Names, attributes and places of everything in the layer.
    pub fn image(&self) -> &Image<Mapping> {
        &self.image
    }

    /// By which the file's metadata, and with it every inode number, can be told from other metadata that was made for the same pair: a checksum.
    pub fn metadata(&self) -> &str {
        &self.metadata
    }

    /// The layer file itself: EROFS metadata and the tar, with holes where nothing has been fetched.
    pub fn path(&self) -> PathBuf {
        self.directory.join(crate::disk::name::LAYER)
    }

    /// Adds a source. Several images can share one layer file, each with its own source: the newest is asked first, and the others when it fails.
    pub fn attach(self: &Arc<Self>, source: Arc<dyn BlobSource>) -> Attachment {
        let id = self.sources.attach(source);
        self.engine.sources_changed(self);
        self.judge();
        Attachment { id, layer: Arc::clone(self) }
    }

    /// Reads `len` bytes of a regular file from `offset`; fewer only at its end, or beyond [`MAX_READ`].
    ///
    /// If everything is here, `reply` runs on this thread before the call returns, and nothing that a fetch can hold is waited for.
    /// Otherwise the call returns at once, and `reply` runs later on a thread of the engine. It always runs exactly once,
    /// at the latest after [`crate::StoreOptions::read_deadline`]; it should not block.
    pub fn read(self: &Arc<Self>, nid: Nid, offset: u64, len: u32, reply: Reply) {
        self.answer(self.wanted(nid, offset, len), reply);
    }

    /// Reads `len` bytes of the layer file itself from `offset`, for a kernel that mounts it; fewer only at its end, or beyond [`MAX_READ`].
    ///
    /// The metadata are always here. Of the tar, a range is given when its spans are here and the header of every file that has a byte in it was
    /// compared: one file that cannot be read fails the whole range. Headers and padding themselves are of no interest to who reads files.
    /// `reply` runs as for [`Self::read`].
    pub fn read_file(self: &Arc<Self>, offset: u64, len: u32, reply: Reply) {
        self.answer(Ok(self.wanted_of_file(offset, len)), reply);
    }

    /// Bytes of the layer file: metadata and tar, a multiple of 512.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    fn answer(self: &Arc<Self>, wanted: Result<Option<Wanted>, ReadError>, reply: Reply) {
        match wanted {
            Err(error) => reply(Err(error)),
            Ok(None) => reply(Ok(&[])),
            Ok(Some(wanted)) => {
                self.count(&wanted.tar);
                if self.can_serve(&wanted) {
                    self.notice(&wanted);
                    self.serve(&wanted, &[], reply);
                } else {
                    self.wait(wanted, Demand::Read, reply);
                }
            }
        }
    }

    /// Somebody reads these bytes.
    fn count(&self, tar: &Range<u64>) {
        if tar.is_empty() {
            return;
        }
        self.sweep.reads(tar.end.saturating_sub(tar.start));
        for span in self.spans.covering(tar) {
            if self.slots.get(span).is_some_and(Slot::pass) {
                self.sweep.passes(self.spans.get(span).map_or(0, |row| row.tar_len()));
            }
        }
    }

    /// Whether who reads it reads nearly all that he comes past.
    pub(crate) fn is_swept(&self) -> bool {
        self.sweep.is_thorough()
    }

    /// Which bytes a read of a file means; `None` if there are none.
    pub(super) fn wanted(&self, nid: Nid, offset: u64, len: u32) -> Result<Option<Wanted>, ReadError> {
        let inode =
            self.image.inode(nid).map_err(|source| ReadError::Metadata { nid, source: Arc::new(source) })?;
        if inode.kind != Kind::Regular {
            return Err(ReadError::NotAFile { nid });
        }
        let Some(file) = inode.tar_range else { return Ok(None) };
        let start = file.start.checked_add(offset).filter(|start| *start < file.end);
        let Some(start) = start.filter(|_| len > 0) else { return Ok(None) };
        let place = start..start.saturating_add(u64::from(len.min(MAX_READ))).min(file.end);
        let header = self.headers.of_file(nid.0);
        let (Some(tar), Some(header)) = (self.tar_of(&place), header) else {
            return Err(ReadError::Header { nid });
        };
        if tar.is_empty() || tar.end > self.tar_size {
            return Err(ReadError::Header { nid });
        }
        Ok(Some(Wanted { place, tar, headers: header.0..header.0.saturating_add(1) }))
    }

    /// Which bytes a read of the layer file means; `None` if there are none.
    fn wanted_of_file(&self, offset: u64, len: u32) -> Option<Wanted> {
        let end = offset.checked_add(u64::from(len.min(MAX_READ)))?.min(self.file_size);
        let place = offset..end;
        if place.is_empty() {
            return None;
        }
        // What lies before the tar or, up to a whole block, behind it, is here.
        let tar = offset.max(self.tar_start)..end.min(self.tar_start.saturating_add(self.tar_size));
        let tar = self.tar_of(&tar).filter(|tar| !tar.is_empty()).unwrap_or_default();
        Some(Wanted { headers: self.headers.with_data_in(&tar), place, tar })
    }

    /// A range of the layer file, counted from the beginning of the tar.
    pub(super) fn tar_of(&self, place: &Range<u64>) -> Option<Range<u64>> {
        Some(place.start.checked_sub(self.tar_start)?..place.end.checked_sub(self.tar_start)?)
    }

    /// Whether an answer needs nothing from outside. Touches no lock.
    pub(super) fn can_serve(&self, wanted: &Wanted) -> bool {
        let mut known = true;
        for header in self.headers_of(wanted) {
            match self.header_states.get(header) {
                HeaderState::Bad => return true,
                HeaderState::Good => {}
                HeaderState::Unknown => {
                    known = known && self.headers.get(header).is_some_and(|row| self.has_all(&row.range));
                }
            }
        }
        known && self.has_all(&wanted.tar)
    }

    /// Answers a read whose spans are all here, or among `loose`, on this thread.
    pub(crate) fn serve(self: &Arc<Self>, wanted: &Wanted, loose: &[Loose], reply: Reply) {
        if self.whole.is_refused() {
            return reply(Err(ReadError::Refused));
        }
        for header in self.headers_of(wanted) {
            match self.check_header(header, loose) {
                Err(error) => return reply(Err(error)),
                Ok(HeaderState::Good) => {}
                Ok(HeaderState::Bad | HeaderState::Unknown) => {
                    let nid = self.headers.get(header).and_then(|row| row.nid).unwrap_or(0);
                    return reply(Err(ReadError::Header { nid: Nid(nid) }));
                }
            }
        }
        let len = usize::try_from(wanted.place.end.saturating_sub(wanted.place.start)).unwrap_or(usize::MAX);
        self.engine.buffers.with(len, |buffer| match self.read_place(buffer, wanted.place.start, loose) {
            Ok(()) => {
                if !wanted.tar.is_empty() && looks_like_program(buffer) {
                    self.engine.program_is_read(self, wanted.place.start);
                }
                reply(Ok(buffer));
            }
            Err(error) => reply(Err(error)),
        });
    }

    /// Lets a read wait for the spans that it lacks, and has those fetched that nobody fetches.
    pub(super) fn wait(self: &Arc<Self>, wanted: Wanted, demand: Demand, reply: Reply) {
        let is_read = demand == Demand::Read;
        if is_read {
            self.counters.waits();
        }
        let options = &self.engine.options;
        let (needed, tar) = (self.needed(&wanted), wanted.tar.clone());
        let read = PendingRead::new(Arc::clone(self), wanted, is_read, reply, options.read_deadline);
        let mut to_fetch = Vec::with_capacity(needed.len());
        for span in &needed {
            let Some(slot) = self.slots.get(*span) else { continue };
            read.joins();
            match slot.join(&read, options.max_waiters) {
                Joined::Present => read.arrived(),
                Joined::Waiting => to_fetch.push((*span, demand)),
                Joined::Full => read.fail(ReadError::Busy { span: self.number(*span) }),
            }
        }
        if is_read && !tar.is_empty() {
            if self.take_ahead(&tar) {
                self.ahead.lock().was_read();
            }
            to_fetch.extend(self.expected(&tar, true));
        }
        self.engine.want(self, &to_fetch);
        read.arm(&self.engine.runtime, options.read_deadline);
        read.arrived();
    }

    /// A read is answered from what is here. If that was fetched ahead, more of it is fetched, by another thread.
    fn notice(self: &Arc<Self>, wanted: &Wanted) {
        if !wanted.tar.is_empty() && self.take_ahead(&wanted.tar) {
            self.engine.hint(self, wanted.tar.clone());
        }
    }

    /// Whether any span of `tar` was fetched ahead and is read for the first time now.
    fn take_ahead(&self, tar: &Range<u64>) -> bool {
        let first_read = |span: &usize| self.slots.get(*span).is_some_and(Slot::take_ahead);
        // Each is asked: it is news once.
        self.spans.covering(tar).filter(first_read).count() > 0
    }

    /// Fetches what is expected to be read after `tar`, which had been fetched ahead.
    pub(crate) fn read_ahead(self: &Arc<Self>, tar: &Range<u64>) {
        self.ahead.lock().was_read();
        let expected = self.expected(tar, false);
        if !expected.is_empty() {
            self.engine.want(self, &expected);
        }
    }

    /// What is expected to be read after `tar`.
    fn expected(&self, tar: &Range<u64>, missed: bool) -> Vec<(usize, Demand)> {
        let max = self.engine.options.max_read_ahead;
        if max == 0 {
            return Vec::new();
        }
        let spans = self.spans.covering(tar);
        let file = self.headers.file_around(tar.end.saturating_sub(1), self.tar_size);
        let file = file.map(|bytes| (bytes.clone(), self.spans.covering(&bytes)));
        // A program that ends here has said what it needs; what follows it is something else.
        let told = file.as_ref().is_some_and(|(bytes, of_file)| {
            of_file.end() <= spans.end() && self.is_followed(self.place(bytes.start))
        });
        let enters = self.spans.get(*spans.end()).is_some_and(|row| enters(&row.tar, tar.start));
        let touch = Touch { spans, missed, enters, file };
        let len = |span: usize| self.spans.get(span).map(|row| row.compressed_len());
        let is_missing = |span: &usize| self.slots.get(*span).is_some_and(|slot| !slot.is_present());
        let is_new = |span: usize| is_missing(&span) && !self.engine.is_wanted(self, span);
        let mut ahead = self.ahead.lock();
        let ranges = ahead.after(&touch, max, len);
        let mut missing: Vec<usize> = ranges.into_iter().flatten().filter(is_missing).collect();
        let mut new = missing.iter().filter(|span| is_new(**span)).count();
        if new == 0
            && !told
            && let Some(guess) = ahead.guess(&touch, self.engine.options.max_guesses, is_new)
        {
            missing.push(guess);
            new = 1;
        }
        ahead.made(new);
        drop(ahead);
        missing.into_iter().map(|span| (span, Demand::ReadAhead)).collect()
    }

    /// The spans that an answer needs: those of the bytes, and those of the headers that were not compared yet. Ascending.
    pub(super) fn needed(&self, wanted: &Wanted) -> Vec<usize> {
        let mut spans: Vec<usize> = Vec::new();
        if !wanted.tar.is_empty() {
            spans.extend(self.spans.covering(&wanted.tar));
        }
        for header in self.headers_of(wanted) {
            if self.header_states.get(header) == HeaderState::Unknown
                && let Some(row) = self.headers.get(header)
            {
                spans.extend(self.spans.covering(&row.range));
            }
        }
        spans.sort_unstable();
        spans.dedup();
        spans
    }

    /// The headers that must be good before the bytes are given.
    fn headers_of(&self, wanted: &Wanted) -> impl Iterator<Item = HeaderId> {
        self.headers.files_in(wanted.headers.clone())
    }

    fn has_all(&self, tar: &Range<u64>) -> bool {
        tar.is_empty() || self.spans.covering(tar).all(|span| self.has(span))
    }

    fn is_all_here(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    fn has(&self, span: usize) -> bool {
        self.slots.get(span).is_some_and(Slot::is_present)
    }

    /// Where a byte of the tar is in the layer file.
    fn place(&self, tar_offset: u64) -> u64 {
        self.tar_start.saturating_add(tar_offset)
    }

    /// A span's number as it is shown; the wire format cannot count further.
    pub(crate) fn number(&self, span: usize) -> u32 {
        u32::try_from(span).unwrap_or(u32::MAX)
    }

    pub(crate) fn slot(&self, span: usize) -> Option<&Slot> {
        self.slots.get(span)
    }

    pub(crate) fn spans(&self) -> &SpanRows {
        &self.spans
    }

    /// The compressed bytes of adjacent spans.
    pub(crate) fn compressed(&self, spans: &Range<usize>) -> Range<u64> {
        let start = self.spans.get(spans.start).map_or(0, |row| row.compressed.start);
        let last = spans.end.checked_sub(1).and_then(|last| self.spans.get(last));
        start..last.map_or(start, |row| row.compressed.end)
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    pub(crate) fn has_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    pub(crate) fn id(&self) -> LayerId {
        self.id
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Brings everything to the disk and says so there. Spans may go on coming meanwhile: then, in the end, it is not said, and they are re-checked after
    /// a reboot.
    pub(crate) fn settle(&self) -> std::io::Result<()> {
        for _ in 0..SETTLING {
            let records = self.states.records();
            sync::data(&self.file)?;
            if self.write_out.has_failed() {
                return Err(std::io::Error::other("what was written before is not on the disk"));
            }
            if self.states.mark_clean(records)? {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Attachment {
    /// Leaves the source to those who still read the layer: because of it, nothing more is fetched that nobody asked for.
    pub fn for_reads_only(&self) {
        self.layer.sources.for_reads_only(self.id);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.layer.sources.detach(self.id);
        self.layer.engine.sources_changed(&self.layer);
    }
}
