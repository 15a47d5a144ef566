//! One layer, readable before it is here.

mod arrival;
mod header_check;
mod slot;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use erofs_image::{Image, Kind, Nid};

use crate::disk::directory::LayerFiles;
use crate::disk::headers::HeaderTable;
use crate::disk::manifest::Encoding;
use crate::disk::spans::SpanRows;
use crate::disk::states::{State, States};
use crate::engine::Engine;
use crate::error::ReadError;
use crate::fetch::Flight;
use crate::key::LayerKey;
use crate::mapping::Mapping;
use crate::source::BlobSource;
use crate::sources::{SourceId, Sources};
use crate::waiting::{PendingRead, Wanted};
use header_check::{HeaderState, HeaderStates};
use slot::Joined;
pub(crate) use slot::{Slot, backoff};

/// How a read is answered, once, on whatever thread has the bytes.
pub type Reply = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// A read gives no more bytes than this, whatever was asked for; the kernel asks for 1 MiB at most.
pub const MAX_READ: u32 = 16 << 20;

/// One layer file: the metadata is all here, the data as far as it was read.
#[derive(Debug)]
pub struct Layer {
    key: LayerKey,
    directory: PathBuf,
    encoding: Encoding,
    tar_start: u64,
    tar_size: u64,
    image: Image<Mapping>,
    file: File,
    windows: File,
    spans: SpanRows,
    headers: HeaderTable,
    header_states: HeaderStates,
    states: States,
    slots: Vec<Slot>,
    sources: Sources,
    engine: Arc<Engine>,
    fetched_on_demand: AtomicU64,
    reads_that_waited: AtomicU64,
}

/// Keeps a source attached to a layer; dropping it detaches the source and stops what is being fetched from it.
#[derive(Debug)]
#[must_use = "dropping it detaches the source"]
pub struct Attachment {
    layer: Arc<Layer>,
    id: SourceId,
}

/// How far a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerStatus {
    /// Bytes of the layer's tar.
    pub size: u64,
    /// Bytes of the tar that are here. After an unclean boot those not re-checked yet do not count.
    pub present: u64,
    /// Spans of the layer.
    pub spans: u32,
    /// Spans that are here.
    pub spans_present: u32,
    /// Compressed bytes fetched because a read waited for them, since the layer was opened.
    pub fetched_on_demand: u64,
    /// Reads that had to wait, since the layer was opened.
    pub reads_that_waited: u64,
    /// Tar headers found to differ from the zTOC, since the layer was opened; their files cannot be read.
    pub headers_refused: u64,
}

impl Layer {
    pub(crate) fn new(key: LayerKey, directory: PathBuf, files: LayerFiles, engine: Arc<Engine>) -> Self {
        let LayerFiles { manifest, image, layer, windows, spans, headers, states, initial } = files;
        let slots = spans
            .iter()
            .zip(initial)
            // Nobody can need a span without bytes.
            .map(|(row, state)| Slot::new(if row.tar_len() == 0 { State::Present } else { state }))
            .collect();
        Self {
            key,
            directory,
            encoding: manifest.encoding,
            tar_start: manifest.tar_start,
            tar_size: manifest.uncompressed_size,
            image,
            file: layer,
            windows,
            header_states: HeaderStates::new(headers.len()),
            spans,
            headers,
            states,
            slots,
            sources: Sources::new(),
            engine,
            fetched_on_demand: AtomicU64::new(0),
            reads_that_waited: AtomicU64::new(0),
        }
    }

    /// The pair that this layer file belongs to.
    pub fn key(&self) -> &LayerKey {
        &self.key
    }

    /// Names, attributes and places of everything in the layer.
    pub fn image(&self) -> &Image<Mapping> {
        &self.image
    }

    /// The layer file itself: EROFS metadata and the tar, with holes where nothing has been fetched.
    pub fn path(&self) -> PathBuf {
        self.directory.join(crate::disk::name::LAYER)
    }

    /// Adds a source. Several images can share one layer file, each with its own source: the newest is asked first, and the others when it fails.
    pub fn attach(self: &Arc<Self>, source: Arc<dyn BlobSource>) -> Attachment {
        Attachment { id: self.sources.attach(source), layer: Arc::clone(self) }
    }

    /// Reads `len` bytes of a regular file from `offset`; fewer only at its end, or beyond [`MAX_READ`].
    ///
    /// If everything is here, `reply` runs on this thread before the call returns, and nothing that a fetch can hold is waited for.
    /// Otherwise the call returns at once, and `reply` runs later on a thread of the engine. It always runs exactly once,
    /// at the latest after [`crate::StoreOptions::read_deadline`]; it should not block.
    pub fn read(self: &Arc<Self>, nid: Nid, offset: u64, len: u32, reply: Reply) {
        match self.wanted(nid, offset, len) {
            Err(error) => reply(Err(error)),
            Ok(None) => reply(Ok(&[])),
            Ok(Some(wanted)) if self.can_serve(&wanted) => self.serve(&wanted, reply),
            Ok(Some(wanted)) => self.wait(wanted, reply),
        }
    }

    /// How far the layer is. Looks at every span: for a person's question, not for every read.
    pub fn status(&self) -> LayerStatus {
        let here = || self.spans.iter().zip(&self.slots).filter(|(_, slot)| slot.is_present());
        LayerStatus {
            size: self.tar_size,
            present: here().map(|(row, _)| row.tar_len()).sum(),
            spans: self.number(self.slots.len()),
            spans_present: self.number(here().count()),
            fetched_on_demand: self.fetched_on_demand.load(Ordering::Relaxed),
            reads_that_waited: self.reads_that_waited.load(Ordering::Relaxed),
            headers_refused: self.header_states.count_bad(),
        }
    }

    /// Which bytes of the tar a read means; `None` if there are none.
    fn wanted(&self, nid: Nid, offset: u64, len: u32) -> Result<Option<Wanted>, ReadError> {
        let inode =
            self.image.inode(nid).map_err(|source| ReadError::Metadata { nid, source: Arc::new(source) })?;
        if inode.kind != Kind::Regular {
            return Err(ReadError::NotAFile { nid });
        }
        let Some(place) = inode.tar_range else { return Ok(None) };
        let start = place.start.checked_add(offset).filter(|start| *start < place.end);
        let Some(start) = start.filter(|_| len > 0) else { return Ok(None) };
        let end = start.saturating_add(u64::from(len.min(MAX_READ))).min(place.end);
        let tar = start.checked_sub(self.tar_start).zip(end.checked_sub(self.tar_start));
        let header = self.headers.of_file(nid.0);
        let (Some((start, end)), Some(header)) = (tar, header) else { return Err(ReadError::Header { nid }) };
        if end > self.tar_size {
            return Err(ReadError::Header { nid });
        }
        Ok(Some(Wanted { nid: nid.0, header, tar: start..end }))
    }

    /// Whether an answer needs nothing from outside. Touches no lock.
    fn can_serve(&self, wanted: &Wanted) -> bool {
        match self.header_states.get(wanted.header) {
            HeaderState::Bad => true,
            HeaderState::Good => self.has_all(&wanted.tar),
            HeaderState::Unknown => {
                self.has_all(&wanted.tar)
                    && self.headers.get(wanted.header).is_some_and(|row| self.has_all(&row.range))
            }
        }
    }

    /// Answers a read whose spans are all here, on this thread.
    pub(crate) fn serve(&self, wanted: &Wanted, reply: Reply) {
        match self.check_header(wanted.header) {
            Err(error) => return reply(Err(error)),
            Ok(HeaderState::Good) => {}
            Ok(HeaderState::Bad | HeaderState::Unknown) => {
                return reply(Err(ReadError::Header { nid: Nid(wanted.nid) }));
            }
        }
        let len = usize::try_from(wanted.tar.end.saturating_sub(wanted.tar.start)).unwrap_or(usize::MAX);
        self.engine.buffers.with(len, |buffer| match self.read_tar(buffer, wanted.tar.start) {
            Ok(()) => reply(Ok(buffer)),
            Err(error) => reply(Err(error)),
        });
    }

    /// Lets a read wait for the spans that it lacks, and has those fetched that nobody fetches.
    fn wait(self: &Arc<Self>, wanted: Wanted, reply: Reply) {
        self.reads_that_waited.fetch_add(1, Ordering::Relaxed);
        let options = &self.engine.options;
        let needed = self.needed(&wanted);
        let read = PendingRead::new(Arc::clone(self), wanted, reply, options.read_deadline);
        let mut to_fetch = Vec::new();
        for span in needed {
            let Some(slot) = self.slots.get(span) else { continue };
            read.joins();
            match slot.join(&read, options.max_waiters) {
                Joined::Present => read.arrived(),
                Joined::Waiting => {}
                Joined::First => to_fetch.push(span),
                Joined::Full => read.fail(ReadError::Busy { span: self.number(span) }),
            }
        }
        Flight::launch(self, to_fetch);
        read.arm(&self.engine.runtime, options.read_deadline);
        read.arrived();
    }

    /// The spans that an answer needs: those of the bytes, and those of the header if it was not compared yet. Ascending.
    fn needed(&self, wanted: &Wanted) -> Vec<usize> {
        let mut spans: Vec<usize> = self.spans.covering(&wanted.tar).collect();
        if self.header_states.get(wanted.header) == HeaderState::Unknown
            && let Some(row) = self.headers.get(wanted.header)
        {
            spans.extend(self.spans.covering(&row.range));
        }
        spans.sort_unstable();
        spans.dedup();
        spans
    }

    fn has_all(&self, tar: &Range<u64>) -> bool {
        self.spans.covering(tar).all(|span| self.has(span))
    }

    fn has(&self, span: usize) -> bool {
        self.slots.get(span).is_some_and(Slot::is_present)
    }

    fn read_tar(&self, buffer: &mut [u8], offset: u64) -> Result<(), ReadError> {
        self.file.read_exact_at(buffer, self.place(offset)).map_err(ReadError::io("read the layer file"))
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

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    pub(crate) fn has_sources(&self) -> bool {
        !self.sources.list().is_empty()
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn count_fetched(&self, bytes: u64) {
        self.fetched_on_demand.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Brings everything to the disk and says so there.
    pub(crate) fn settle(&self) -> std::io::Result<()> {
        self.file.sync_data()?;
        self.states.mark_clean()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.layer.sources.detach(self.id);
    }
}
