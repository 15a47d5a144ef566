//! What happens to a span between the network and the layer file. Runs on the pool's threads.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use ztoc::{CheckpointRef, extract_gzip_into};

use crate::disk::checksum::Checksum;
use crate::disk::manifest::Encoding;
use crate::disk::spans::SpanRow;
use crate::disk::states::State;
use crate::disk::{WINDOW, directory};
use crate::error::ReadError;
use crate::layer::Layer;
use crate::pool::Scratch;

impl Layer {
    /// Checks, inflates and stores the compressed bytes of a span, and answers who waits for it.
    ///
    /// [`ReadError::Digest`] and [`ReadError::Inflate`] mean that the bytes were wrong.
    pub(crate) fn land(
        &self,
        span: usize,
        compressed: &[u8],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let number = self.number(span);
        let row = self.row(span)?;
        if <[u8; 32]>::from(Sha256::digest(compressed)) != row.digest {
            return Err(ReadError::Digest { span: number });
        }
        let len = usize::try_from(row.tar_len()).map_err(|_| ReadError::GivenUp { span: number })?;
        let tar = match self.encoding {
            Encoding::Tar => compressed.get(..len).ok_or(ReadError::Digest { span: number })?,
            Encoding::Gzip => {
                let window = self.window(span, row)?;
                let checkpoint = CheckpointRef { bits: row.bits, window: &window };
                let space = scratch.space(len);
                extract_gzip_into(checkpoint, compressed, space)
                    .map_err(|source| ReadError::Inflate { span: number, source: Arc::new(source) })?;
                space
            }
        };
        self.file.write_all_at(tar, self.place(row.tar.start)).map_err(ReadError::io("write a span"))?;
        self.arrive(span, row, tar)
    }

    /// Compares a span that was written before an unclean boot with its checksum; `false` if it has to be fetched again.
    pub(crate) fn recheck(&self, span: usize, scratch: &mut Scratch) -> Result<bool, ReadError> {
        let row = self.row(span)?;
        let space = scratch.space(usize::try_from(row.tar_len()).unwrap_or(usize::MAX));
        let expected = self.states.checksum(span).map_err(ReadError::io("read the span states"))?;
        self.read_tar(space, row.tar.start)?;
        if expected != Some(Checksum::of(space)) {
            tracing::info!(layer = %self.key.layer, span, "a span did not survive the boot and is fetched again");
            if let Some(slot) = self.slots.get(span) {
                slot.lost();
            }
            return Ok(false);
        }
        self.arrive(span, row, space)?;
        Ok(true)
    }

    /// The span's bytes are in the file: compares the headers in them, records it, and answers who waits.
    fn arrive(&self, span: usize, row: &SpanRow, tar: &[u8]) -> Result<(), ReadError> {
        self.check_headers_in(span, &row.tar, tar)?;
        if let Err(error) = self.states.record(span, State::Present, Checksum::of(tar)) {
            // The bytes are right and can be used; only a restart will fetch them again.
            tracing::warn!(layer = %self.key.layer, span, %error, "a span's state could not be recorded");
        }
        for waiter in self.slots.get(span).map(|slot| slot.complete()).unwrap_or_default() {
            waiter.arrived();
        }
        Ok(())
    }

    fn window(&self, span: usize, row: &SpanRow) -> Result<Vec<u8>, ReadError> {
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
        Err(ReadError::io("check a checkpoint window")(std::io::ErrorKind::InvalidData.into()))
    }

    fn row(&self, span: usize) -> Result<&SpanRow, ReadError> {
        self.spans.get(span).ok_or(ReadError::GivenUp { span: self.number(span) })
    }
}
