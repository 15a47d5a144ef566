//! Building over a gzip layer.

use sha2::{Digest as _, Sha256};

use crate::zinfo::{GzipZinfoWriter, Row, WINDOW_LEN, Zinfo};

use super::digests::SpanHasher;
use super::inflate::{BlockInflate, InflateError, Stop};
use super::members::Members;
use super::{BuildError, Scanned};

/// Output room: the larger, the less often the window is moved. Measured to be worth 7 % over 32 KiB.
const OUTPUT_LEN: usize = 1 << 20;

/// One gzip layer under way. `in`, `out` and the window run on from member to member.
pub(super) struct GzipEngine {
    inflate: BlockInflate,
    position: Position,
    compressed: u64,
    uncompressed: u64,
    /// The last byte taken, which a span that begins inside it shares.
    last_byte: Option<u8>,
    /// The last [`WINDOW_LEN`] bytes of output (zeros at first), and room for more.
    output: Box<[u8]>,
    /// Where that room begins.
    filled: usize,
    zinfo: GzipZinfoWriter,
    span_size: u64,
    spans: SpanHasher,
    diff_id: Sha256,
    members: Members,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Header,
    Deflate,
    /// Between members, or at the end.
    Boundary,
}

impl GzipEngine {
    /// `span_size` is at most `i64::MAX`.
    pub(super) fn new(span_size: u64) -> Result<Self, BuildError> {
        Ok(Self {
            inflate: BlockInflate::new().map_err(|_| BuildError::OutOfMemory)?,
            position: Position::Header,
            compressed: 0,
            uncompressed: 0,
            last_byte: None,
            output: vec![0; WINDOW_LEN + OUTPUT_LEN].into_boxed_slice(),
            filled: WINDOW_LEN,
            zinfo: GzipZinfoWriter::new(span_size.cast_signed()),
            span_size,
            spans: SpanHasher::default(),
            diff_id: Sha256::new(),
            members: Members::default(),
        })
    }

    pub(super) fn write(&mut self, mut input: &[u8]) -> Result<(), BuildError> {
        loop {
            if self.position == Position::Boundary {
                if input.is_empty() {
                    return Ok(());
                }
                self.inflate.reset().map_err(|error| self.error(error))?;
                self.position = Position::Header;
            }
            if self.filled == self.output.len() {
                let window = self.output.len().saturating_sub(WINDOW_LEN);
                self.output.copy_within(window.., 0);
                self.filled = WINDOW_LEN;
            }
            let room = self.output.get_mut(self.filled..).unwrap_or_default();
            let room_len = room.len();
            let step = self.inflate.step(input, room).map_err(|error| self.error(error))?;

            let (consumed, rest) = input.split_at_checked(step.consumed).unwrap_or((input, &[]));
            input = rest;
            self.spans.update(consumed);
            self.last_byte = consumed.last().copied().or(self.last_byte);
            self.compressed = self.compressed.saturating_add(step.consumed as u64);
            let start = self.filled;
            self.filled = self.filled.saturating_add(step.written);
            let written = self.output.get(start..self.filled).unwrap_or_default();
            self.uncompressed = self.uncompressed.saturating_add(step.written as u64);
            self.diff_id.update(written);
            self.members.push(written)?;

            match step.stop {
                Stop::BlockStart { unread_bits } => {
                    self.position = Position::Deflate;
                    self.on_block(unread_bits)?;
                }
                Stop::LastBlockEnd => {}
                Stop::MemberEnd => self.position = Position::Boundary,
                Stop::Exhausted if step.written == room_len => {}
                Stop::Exhausted if input.is_empty() => return Ok(()),
                // Neither at a boundary nor short of anything: it would stay so.
                Stop::Exhausted if step.consumed == 0 && step.written == 0 => {
                    return Err(self.error(InflateError::Data));
                }
                Stop::Exhausted => {}
            }
        }
    }

    /// The next bit is the first of a block: a checkpoint, if the span is long enough by now.
    fn on_block(&mut self, unread_bits: u8) -> Result<(), BuildError> {
        // An upper bound would be wrong here: whatever a block decodes to, it is not cut.
        let is_due = self.uncompressed == 0
            || self
                .zinfo
                .last()
                .is_none_or(|last| self.uncompressed.saturating_sub(last.out) > self.span_size);
        if !is_due {
            return Ok(());
        }
        if unread_bits > 7 {
            return Err(self.error(InflateError::Data));
        }
        let row = Row { in_: self.compressed, out: self.uncompressed, bits: unread_bits };
        let window = self.output.get(self.filled.saturating_sub(WINDOW_LEN)..self.filled);
        self.zinfo.push(row, window.unwrap_or_default());
        self.spans.begin(self.last_byte.filter(|_| unread_bits != 0));
        Ok(())
    }

    fn error(&self, error: InflateError) -> BuildError {
        match (error, self.position) {
            (InflateError::OutOfMemory, _) => BuildError::OutOfMemory,
            (InflateError::Data, Position::Deflate) => BuildError::Gzip { offset: self.compressed },
            (InflateError::Data, Position::Header | Position::Boundary) => {
                BuildError::NotGzip { offset: self.compressed }
            }
        }
    }

    pub(super) fn encoded_len(&self) -> usize {
        let digests = super::digests_len(self.spans.len());
        self.members.encoded_len().saturating_add(self.zinfo.len()).saturating_add(digests)
    }

    pub(super) fn finish(self) -> Result<Scanned, BuildError> {
        if self.position != Position::Boundary {
            return Err(BuildError::Truncated { len: self.compressed });
        }
        let (entries, end) = self.members.finish()?;
        Ok(Scanned {
            entries,
            uncompressed_size: end.0,
            zinfo: Zinfo::Gzip(self.zinfo.finish()?),
            digests: self.spans.finish(),
            diff_id: Some(self.diff_id.finalize().into()),
        })
    }
}
