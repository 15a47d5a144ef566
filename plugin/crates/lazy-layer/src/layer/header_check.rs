//! That a file's tar header in the layer is what the zTOC says.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use ztoc::{HeaderMismatch, UncompressedOffset, verify_header};

use crate::disk::headers::{HeaderId, HeaderRow};
use crate::error::ReadError;
use crate::layer::{Layer, Loose};

const UNKNOWN: u8 = 0;
const GOOD: u8 = 1;
const BAD: u8 = 2;

/// What is known of each header. Kept in memory only: it follows from the tar's bytes, so a new process finds it out again.
#[derive(Debug)]
pub(crate) struct HeaderStates(Vec<AtomicU8>);

/// What is known of one header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderState {
    /// Not compared yet.
    Unknown,
    /// As the zTOC says.
    Good,
    /// Not as the zTOC says, or the zTOC lies about another name of the same file.
    Bad,
}

impl HeaderStates {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| AtomicU8::new(UNKNOWN)).collect())
    }

    pub(crate) fn get(&self, header: HeaderId) -> HeaderState {
        match self.0.get(header.0).map(|state| state.load(Ordering::Acquire)) {
            Some(UNKNOWN) => HeaderState::Unknown,
            Some(GOOD) => HeaderState::Good,
            _ => HeaderState::Bad,
        }
    }

    /// Good counts only where nothing bad was found before.
    fn set_good(&self, header: HeaderId) {
        if let Some(state) = self.0.get(header.0) {
            // Failing means that it was good or bad already.
            let _ = state.compare_exchange(UNKNOWN, GOOD, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    fn set_bad(&self, header: HeaderId) {
        if let Some(state) = self.0.get(header.0) {
            state.store(BAD, Ordering::Release);
        }
    }

    pub(crate) fn count_bad(&self) -> u64 {
        self.0.iter().filter(|state| state.load(Ordering::Relaxed) == BAD).count() as u64
    }
}

impl Layer {
    /// Compares a header whose spans are all here, unless that has been done, and says whether its file may be served.
    pub(super) fn check_header(&self, header: HeaderId, loose: &[Loose]) -> Result<HeaderState, ReadError> {
        if self.header_states.get(header) == HeaderState::Unknown
            && let Some(row) = self.headers.get(header)
        {
            self.conclude(header, judge(&row, &self.read_header(&row.range, loose)?));
        }
        Ok(self.header_states.get(header))
    }

    /// Compares the headers that lie wholly in `bytes`, which are at `tar`. Their digest need not be known yet: nothing follows before
    /// [`Self::conclude`] gets the result.
    pub(crate) fn judge_headers_in(
        &self,
        tar: &Range<u64>,
        bytes: &[u8],
        found: &mut Vec<(HeaderId, Result<(), HeaderMismatch>)>,
    ) {
        for at in self.headers.touching(tar) {
            let header = HeaderId(at);
            if self.header_states.get(header) == HeaderState::Unknown
                && let Some(row) = self.headers.get(header)
                && let Some(inside) = part(bytes, tar, &row.range)
            {
                found.push((header, judge(&row, inside)));
            }
        }
    }

    /// Keeps what was found about a header.
    pub(crate) fn conclude(&self, header: HeaderId, found: Result<(), HeaderMismatch>) {
        let Some(row) = self.headers.get(header) else { return };
        match found {
            Ok(()) => self.header_states.set_good(header),
            Err(mismatch) => self.refuse(header, &row, &mismatch),
        }
    }

    /// Compares the headers that are in a span of the layer file and were not compared yet: those that reach into another span, if that is here too.
    /// Otherwise they are when that arrives, or when their file is read.
    pub(crate) fn check_headers_of(&self, span: usize, tar: &Range<u64>) -> Result<(), ReadError> {
        for at in self.headers.touching(tar) {
            let header = HeaderId(at);
            if self.header_states.get(header) != HeaderState::Unknown {
                continue;
            }
            let Some(row) = self.headers.get(header) else { continue };
            if self.spans.covering(&row.range).all(|other| other == span || self.has(other)) {
                self.conclude(header, judge(&row, &self.read_header(&row.range, &[])?));
            }
        }
        Ok(())
    }

    fn read_header(&self, range: &Range<u64>, loose: &[Loose]) -> Result<Vec<u8>, ReadError> {
        // At most 4 MiB, which was checked when the layer was created.
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len];
        self.read_place(&mut bytes, self.place(range.start), loose)?;
        Ok(bytes)
    }

    /// A forged entry makes its file unreadable. If the entry is a further name of a file, the file cannot be told apart from its other
    /// names, and is unreadable as a whole.
    fn refuse(&self, header: HeaderId, row: &HeaderRow, mismatch: &HeaderMismatch) {
        tracing::warn!(layer = %self.key.layer, ztoc = %self.key.ztoc, offset = row.range.start, nid = row.nid, %mismatch, "the ztoc does not describe the layer's file");
        self.header_states.set_bad(header);
        if let Some(file) = row.nid.and_then(|nid| self.headers.of_file(nid)) {
            self.header_states.set_bad(file);
        }
    }
}

fn judge(row: &HeaderRow, bytes: &[u8]) -> Result<(), HeaderMismatch> {
    verify_header(
        bytes,
        &row.fingerprint,
        UncompressedOffset(row.range.end),
        UncompressedOffset(row.range.start),
    )
}

/// The bytes of `wanted`, if all of them are among `bytes`, which lie at `place`.
fn part<'a>(bytes: &'a [u8], place: &Range<u64>, wanted: &Range<u64>) -> Option<&'a [u8]> {
    let start = usize::try_from(wanted.start.checked_sub(place.start)?).ok()?;
    let len = usize::try_from(wanted.end.checked_sub(wanted.start)?).ok()?;
    bytes.get(start..start.checked_add(len)?)
}
