//! One span's tar bytes from its compressed bytes.
//!
//! This reads what a registry sent on the hot path, so it is safe code: zlib-rs's own Rust API, which cannot begin inside a byte. See
//! [`prefix`] for how it is made to.

mod prefix;

use thiserror::Error;
use zlib_rs::{Inflate, InflateError, InflateFlush, Status};

use crate::{Checkpoint, gzip};

use self::prefix::Prefix;

const WINDOW_BITS: u8 = 15;
/// Output is asked for in steps of this size where its length is not known.
const STEP: usize = 256 * 1024;

/// Enough of a checkpoint to decode its span.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointRef<'a> {
    /// How many high bits of the span's first byte belong to its first block, 0..=7; with 0 the block begins with that byte.
    pub bits: u8,
    /// The tar bytes before the span, at most 32 KiB of them count. Shorter than that means that nothing farther back is referred to.
    pub window: &'a [u8],
}

impl<'a> From<Checkpoint<'a>> for CheckpointRef<'a> {
    fn from(checkpoint: Checkpoint<'a>) -> Self {
        Self { bits: checkpoint.bits, window: checkpoint.window }
    }
}

/// How much of a span to decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// This many bytes, and not one less.
    Exactly(usize),
    /// Everything up to the end of the blob, which the compressed bytes must reach: of the last span, with the padding behind the archive.
    ToEnd {
        /// More bytes than this are an error.
        limit: usize,
    },
}

/// Why a span does not decode to what it should.
#[derive(Debug, Error)]
pub enum ExtractError {
    /// The checkpoint has more than seven bits.
    #[error("checkpoint has {0} bits")]
    Bits(u8),
    /// The deflate stream is damaged.
    #[error("deflate stream is damaged: {0}")]
    Deflate(&'static str),
    /// The compressed bytes end before the output is complete.
    #[error("compressed bytes end after {0} bytes of output")]
    Truncated(usize),
    /// What follows a gzip member is not another one.
    #[error("no gzip member after the one that ends at {0} bytes of output")]
    NotGzip(usize),
    /// The stream holds more than the limit.
    #[error("more than {0} bytes of output")]
    TooLong(usize),
}

/// Decodes a span of a gzip layer. `compressed` is exactly [`crate::Span::compressed`].
///
/// # Errors
///
/// When these bytes do not decode to what is wanted.
pub fn extract_gzip(
    checkpoint: CheckpointRef<'_>,
    compressed: &[u8],
    want: Want,
) -> Result<Vec<u8>, ExtractError> {
    let limit = match want {
        Want::Exactly(len) => {
            let mut out = vec![0; len];
            extract_gzip_into(checkpoint, compressed, &mut out)?;
            return Ok(out);
        }
        Want::ToEnd { limit } => limit,
    };
    let mut decoder = Decoder::new(checkpoint, compressed)?;
    let mut out = Vec::new();
    let mut filled = 0;
    loop {
        if filled == out.len() {
            // One byte more than the limit tells the end of the stream from a longer one.
            let len = limit.saturating_add(1).min(filled.saturating_add(STEP.max(filled)));
            out.resize(len, 0);
        }
        let room = out.get_mut(filled..).unwrap_or_default();
        let written = decoder.read(room, filled)?;
        filled = filled.saturating_add(written);
        if filled > limit {
            return Err(ExtractError::TooLong(limit));
        }
        if decoder.member_ended && !decoder.next_member(filled)? {
            out.truncate(filled);
            return Ok(out);
        }
    }
}

/// Decodes a span of a gzip layer into `out`, all of it. `compressed` is exactly [`crate::Span::compressed`].
///
/// # Errors
///
/// When these bytes decode to less than `out` has room for. What `out` holds then means nothing.
pub fn extract_gzip_into(
    checkpoint: CheckpointRef<'_>,
    compressed: &[u8],
    out: &mut [u8],
) -> Result<(), ExtractError> {
    let mut decoder = Decoder::new(checkpoint, compressed)?;
    let mut filled = 0;
    while let Some(room) = out.get_mut(filled..).filter(|room| !room.is_empty()) {
        let written = decoder.read(room, filled)?;
        filled = filled.saturating_add(written);
        if decoder.member_ended && filled < out.len() && !decoder.next_member(filled)? {
            return Err(ExtractError::Truncated(filled));
        }
    }
    Ok(())
}

/// A deflate stream that begins at a checkpoint, and the gzip members after it.
struct Decoder<'a> {
    inflate: Inflate,
    prefix: Prefix,
    /// How much of the prefix is consumed.
    prefix_used: usize,
    /// What is not yet consumed, after the prefix.
    rest: &'a [u8],
    member_ended: bool,
}

impl<'a> Decoder<'a> {
    fn new(checkpoint: CheckpointRef<'_>, compressed: &'a [u8]) -> Result<Self, ExtractError> {
        let mut inflate = Inflate::new(false, WINDOW_BITS);
        if !checkpoint.window.is_empty() {
            inflate.set_dictionary(checkpoint.window).map_err(deflate_error)?;
        }
        let (prefix, rest) = match checkpoint.bits {
            0 => (Prefix::none(), compressed),
            bits @ 1..=7 => {
                let (first, rest) = compressed.split_first().ok_or(ExtractError::Truncated(0))?;
                (Prefix::new(bits, *first), rest)
            }
            bits => return Err(ExtractError::Bits(bits)),
        };
        Ok(Self { inflate, prefix, prefix_used: 0, rest, member_ended: false })
    }

    /// Decodes into `out`, which is not empty, until it is full or the member ends; `so_far` is for the error.
    fn read(&mut self, out: &mut [u8], so_far: usize) -> Result<usize, ExtractError> {
        let mut filled = 0;
        while let Some(room) = out.get_mut(filled..).filter(|room| !room.is_empty()) {
            let prefix = self.prefix.as_bytes().get(self.prefix_used..).unwrap_or_default();
            let input = if prefix.is_empty() { self.rest } else { prefix };
            let (consumed_before, written_before) = (self.inflate.total_in(), self.inflate.total_out());
            let status =
                self.inflate.decompress(input, room, InflateFlush::SyncFlush).map_err(deflate_error)?;
            let consumed = usize::try_from(self.inflate.total_in() - consumed_before).unwrap_or(usize::MAX);
            let written = usize::try_from(self.inflate.total_out() - written_before).unwrap_or(usize::MAX);
            if prefix.is_empty() {
                self.rest = self.rest.get(consumed..).unwrap_or_default();
            } else {
                self.prefix_used = self.prefix_used.saturating_add(consumed);
            }
            filled = filled.saturating_add(written);
            if status == Status::StreamEnd {
                self.member_ended = true;
                break;
            }
            if consumed == 0 && written == 0 {
                return Err(ExtractError::Truncated(so_far.saturating_add(filled)));
            }
        }
        Ok(filled)
    }

    /// Goes on to the next gzip member; `false` if the blob ends here.
    fn next_member(&mut self, so_far: usize) -> Result<bool, ExtractError> {
        let rest = self.rest.get(gzip::TRAILER_LEN..).ok_or(ExtractError::Truncated(so_far))?;
        if rest.is_empty() {
            self.rest = rest;
            return Ok(false);
        }
        self.rest = gzip::skip_header(rest).ok_or(ExtractError::NotGzip(so_far))?;
        // A member refers to nothing before it.
        self.inflate.reset(false);
        self.member_ended = false;
        Ok(true)
    }
}

fn deflate_error(error: InflateError) -> ExtractError {
    ExtractError::Deflate(error.as_str())
}
