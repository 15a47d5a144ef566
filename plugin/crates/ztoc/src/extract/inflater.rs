//! A span's deflate stream, pushed in piece by piece.

use zlib_rs::{Inflate, InflateError, InflateFlush, Status};

use super::prefix::Prefix;
use super::{CheckpointRef, ExtractError};
use crate::gzip;

const WINDOW_BITS: u8 = 15;
/// A gzip header with names longer than this is taken for none.
const MAX_HEADER: usize = 1 << 20;

/// Decodes a span of a gzip layer from its compressed bytes as they arrive, in pieces of any size. The bytes must be those of
/// [`crate::Span::compressed`], from the first on. Takes about 50 KiB.
pub struct SpanInflater {
    inflate: Inflate,
    bits: u8,
    prefix: Prefix,
    /// How much of the prefix is consumed.
    prefix_used: usize,
    state: State,
    written: usize,
}

/// What a push came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Bytes of the input that are consumed; the others have to be pushed again, with new room for output.
    pub consumed: usize,
    /// Bytes of the output that were written.
    pub written: usize,
}

#[derive(Debug)]
enum State {
    /// The first byte is missing, some bits of which belong to the span.
    FirstByte,
    Deflate,
    /// So many bytes of a member's trailer are still to come.
    Trailer(usize),
    /// The header of the next member, as far as it came.
    Header(Vec<u8>),
}

// === impl SpanInflater ===

impl std::fmt::Debug for SpanInflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpanInflater")
            .field("state", &self.state)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl SpanInflater {
    /// At a checkpoint.
    ///
    /// # Errors
    ///
    /// When the checkpoint is none.
    pub fn new(checkpoint: CheckpointRef<'_>) -> Result<Self, ExtractError> {
        let mut inflate = Inflate::new(false, WINDOW_BITS);
        if !checkpoint.window.is_empty() {
            inflate.set_dictionary(checkpoint.window).map_err(deflate_error)?;
        }
        let state = match checkpoint.bits {
            0 => State::Deflate,
            1..=7 => State::FirstByte,
            bits => return Err(ExtractError::Bits(bits)),
        };
        Ok(Self { inflate, bits: checkpoint.bits, prefix: Prefix::none(), prefix_used: 0, state, written: 0 })
    }

    /// Decodes as much of `input` as `out` has room for. If `out` is full afterwards, there may be more, even if `input` is consumed.
    ///
    /// # Errors
    ///
    /// When the stream is damaged; there is no going on after that.
    pub fn push(&mut self, input: &[u8], out: &mut [u8]) -> Result<Pushed, ExtractError> {
        let (mut rest, mut filled) = (input, 0);
        loop {
            match &mut self.state {
                State::FirstByte => {
                    let Some((first, after)) = rest.split_first() else { break };
                    self.prefix = Prefix::new(self.bits, *first);
                    rest = after;
                    self.state = State::Deflate;
                }
                State::Deflate => {
                    let room = out.get_mut(filled..).unwrap_or_default();
                    if room.is_empty() {
                        break;
                    }
                    // Even with no input left there may be output, which there was no room for the last time.
                    let in_prefix = !self.prefix_is_used();
                    let (consumed, written, ended) = self.inflate(rest, room)?;
                    rest = rest.get(consumed..).unwrap_or_default();
                    filled = filled.saturating_add(written);
                    if ended {
                        self.state = State::Trailer(gzip::TRAILER_LEN);
                    } else if consumed == 0 && written == 0 && !in_prefix {
                        break;
                    }
                }
                State::Trailer(missing) => {
                    let (taken, after) = rest.split_at(rest.len().min(*missing));
                    *missing = missing.saturating_sub(taken.len());
                    rest = after;
                    if *missing > 0 || rest.is_empty() {
                        break;
                    }
                    self.state = State::Header(Vec::new());
                }
                State::Header(header) => {
                    let before = header.len();
                    header.extend_from_slice(rest);
                    let Some(after) = gzip::skip_header(header) else {
                        if gzip::may_become_header(header) && header.len() <= MAX_HEADER {
                            rest = &[];
                            break;
                        }
                        return Err(ExtractError::NotGzip(self.written.saturating_add(filled)));
                    };
                    let of_header = header.len().saturating_sub(after.len());
                    rest = rest.get(of_header.saturating_sub(before)..).unwrap_or_default();
                    // A member refers to nothing before it.
                    self.inflate.reset(false);
                    self.state = State::Deflate;
                }
            }
        }
        self.written = self.written.saturating_add(filled);
        Ok(Pushed { consumed: input.len().saturating_sub(rest.len()), written: filled })
    }

    /// Bytes decoded so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written
    }

    /// Whether the blob may end here: behind a member's trailer.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        matches!(self.state, State::Trailer(0))
    }

    fn prefix_is_used(&self) -> bool {
        self.prefix_used >= self.prefix.as_bytes().len()
    }

    /// One step: of the prefix, as long as there is any, else of `rest`. Consumed of `rest`, written, and whether the member ended.
    fn inflate(&mut self, rest: &[u8], room: &mut [u8]) -> Result<(usize, usize, bool), ExtractError> {
        let prefix = self.prefix.as_bytes().get(self.prefix_used..).unwrap_or_default();
        let in_prefix = !prefix.is_empty();
        let input = if in_prefix { prefix } else { rest };
        let (consumed_before, written_before) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self.inflate.decompress(input, room, InflateFlush::SyncFlush).map_err(deflate_error)?;
        let count = |now: u64, before: u64| usize::try_from(now.saturating_sub(before)).unwrap_or(usize::MAX);
        let consumed = count(self.inflate.total_in(), consumed_before);
        let written = count(self.inflate.total_out(), written_before);
        if in_prefix {
            self.prefix_used = self.prefix_used.saturating_add(consumed);
        }
        Ok((if in_prefix { 0 } else { consumed }, written, status == Status::StreamEnd))
    }
}

fn deflate_error(error: InflateError) -> ExtractError {
    ExtractError::Deflate(error.as_str())
}
