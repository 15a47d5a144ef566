//! One span's tar bytes from its compressed bytes.
//!
//! This reads what a registry sent on the hot path, so it is safe code: zlib-rs's own Rust API, which cannot begin inside a byte. See
//! [`prefix`] for how it is made to.

mod inflater;
mod prefix;

use thiserror::Error;

use crate::Checkpoint;

pub use self::inflater::{Pushed, SpanInflater};

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
    let mut inflater = SpanInflater::new(checkpoint)?;
    let (mut out, mut rest) = (Vec::new(), compressed);
    loop {
        let filled = inflater.written();
        // One byte more than the limit tells the end of the stream from a longer one.
        let len = limit.saturating_add(1).min(filled.saturating_add(STEP.max(filled)));
        out.resize(len, 0);
        let pushed = inflater.push(rest, out.get_mut(filled..).unwrap_or_default())?;
        rest = rest.get(pushed.consumed..).unwrap_or_default();
        let filled = inflater.written();
        if filled > limit {
            return Err(ExtractError::TooLong(limit));
        }
        if filled < len {
            out.truncate(filled);
            return if inflater.is_at_end() { Ok(out) } else { Err(ExtractError::Truncated(filled)) };
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
    let mut inflater = SpanInflater::new(checkpoint)?;
    let mut rest = compressed;
    while let Some(room) = out.get_mut(inflater.written()..).filter(|room| !room.is_empty()) {
        let len = room.len();
        let pushed = inflater.push(rest, room)?;
        rest = rest.get(pushed.consumed..).unwrap_or_default();
        if pushed.written < len {
            return Err(ExtractError::Truncated(inflater.written()));
        }
    }
    Ok(())
}
