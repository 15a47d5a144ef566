//! What happens when a span is here. Runs on the pool's threads.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ztoc::HeaderMismatch;

use crate::disk::checksum::{Checksum, Summing};
use crate::disk::headers::HeaderId;
use crate::disk::manifest::Encoding;
use crate::disk::spans::SpanRow;
use crate::disk::states::State;
use crate::disk::{WINDOW, directory};
use crate::error::ReadError;
use crate::layer::Layer;
use crate::pool::Scratch;

/// Bytes that are compared with a checksum at a time.
const STEP: u64 = 512 << 10;

/// A span that is in memory only, because the disk has no room for it.
#[derive(Clone, Debug)]
pub(crate) struct Loose {
    pub(crate) span: usize,
    pub(crate) bytes: Arc<Vec<u8>>,
}

impl Layer {
    /// The span's bytes are in the layer file and are right: records that, keeps what was found about the headers in it, and answers who waits.
    pub(crate) fn arrive(
        self: &Arc<Self>,
        span: usize,
        sum: Checksum,
        headers: Vec<(HeaderId, Result<(), HeaderMismatch>)>,
    ) -> Result<(), ReadError> {
        let row = self.row(span)?;
        for (header, found) in headers {
            self.conclude(header, found);
        }
        self.check_headers_of(span, &row.tar)?;
        if let Err(error) = self.states.record(span, State::Present, sum) {
            // The bytes are right and can be used; only a restart will fetch them again.
            tracing::warn!(layer = %self.key.layer, span, %error, "a span's state could not be recorded");
        }
        let (new, waiters) = self.slots.get(span).map(|slot| slot.complete()).unwrap_or_default();
        for waiter in waiters {
            waiter.arrived();
        }
        if new {
            self.missing.fetch_sub(1, Ordering::AcqRel);
            self.judge();
        }
        self.write_out(row.tar_len());
        Ok(())
    }

    /// The span's bytes are right, and there is no room for them: answers who waits, and forgets them.
    pub(crate) fn pass_by(
        &self,
        span: usize,
        bytes: Vec<u8>,
        headers: Vec<(HeaderId, Result<(), HeaderMismatch>)>,
    ) {
        for (header, found) in headers {
            self.conclude(header, found);
        }
        let loose = Loose { span, bytes: Arc::new(bytes) };
        for waiter in self.slots.get(span).map(|slot| slot.pass_by()).unwrap_or_default() {
            waiter.passed_by(loose.clone());
        }
    }

    /// Compares a span that was written before an unclean boot with its checksum; `false` if it has to be fetched again.
    pub(crate) fn recheck(self: &Arc<Self>, span: usize, scratch: &mut Scratch) -> Result<bool, ReadError> {
        let row = self.row(span)?;
        let expected = self.states.checksum(span).map_err(ReadError::io("read the span states"))?;
        let (mut sum, mut at) = (Summing::new(), row.tar.start);
        while at < row.tar.end {
            let len = row.tar.end.saturating_sub(at).min(STEP);
            let part = scratch.space(usize::try_from(len).unwrap_or(usize::MAX));
            self.read_tar(part, at)?;
            sum.add(part);
            at = at.saturating_add(len);
        }
        let sum = sum.finish();
        if expected != Some(sum) {
            tracing::info!(layer = %self.key.layer, span, "a span did not survive the boot and is fetched again");
            return Ok(false);
        }
        self.arrive(span, sum, Vec::new())?;
        Ok(true)
    }

    /// Writes where there is room by the disk's account and by ours; [`io::ErrorKind::StorageFull`] where there is none.
    pub(crate) fn write_tar(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.engine.budget.take(bytes.len() as u64) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(bytes, self.place(offset))
    }

    pub(crate) fn read_tar(&self, buffer: &mut [u8], offset: u64) -> Result<(), ReadError> {
        self.file.read_exact_at(buffer, self.place(offset)).map_err(ReadError::io("read the layer file"))
    }

    /// Reads the layer file, and what is missing in it from memory.
    pub(super) fn read_place(&self, buffer: &mut [u8], place: u64, loose: &[Loose]) -> Result<(), ReadError> {
        self.file.read_exact_at(buffer, place).map_err(ReadError::io("read the layer file"))?;
        for Loose { span, bytes } in loose {
            let start = self.place(self.row(*span)?.tar.start);
            // One of the two is 0: where the span begins in the buffer, or where the buffer begins in the span.
            let to = usize::try_from(start.saturating_sub(place)).unwrap_or(usize::MAX);
            let from = usize::try_from(place.saturating_sub(start)).unwrap_or(usize::MAX);
            let (to, from) =
                (buffer.get_mut(to..).unwrap_or_default(), bytes.get(from..).unwrap_or_default());
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    pub(crate) fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub(crate) fn window(&self, span: usize, row: &SpanRow) -> Result<Vec<u8>, ReadError> {
        let mut window = vec![0; WINDOW];
        let at = (span as u64).saturating_mul(WINDOW as u64);
        self.windows.read_exact_at(&mut window, at).map_err(ReadError::io("read a checkpoint window"))?;
        if Checksum::of(&window) == row.window {
            return Ok(window);
        }
        tracing::error!(layer = %self.key.layer, span, "a checkpoint window is damaged; the layer is made anew when it is opened next");
        if let Err(error) = directory::condemn(&self.directory) {
            tracing::warn!(layer = %self.key.layer, %error, "the damaged layer could not be marked");
        }
        Err(ReadError::io("check a checkpoint window")(io::ErrorKind::InvalidData.into()))
    }

    pub(crate) fn row(&self, span: usize) -> Result<&SpanRow, ReadError> {
        self.spans.get(span).ok_or(ReadError::GivenUp { span: self.number(span) })
    }
}
