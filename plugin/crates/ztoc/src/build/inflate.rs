//! Inflating a gzip stream and stopping at every deflate block: the one module with unsafe code.
//!
//! Only zlib's C API stops at block boundaries and tells how many bits of the last byte are unread, which is what a checkpoint is made
//! of. zlib-rs offers that API in Rust; this module makes it safe to use.
#![allow(unsafe_code, reason = "zlib's C API, which alone stops at deflate blocks")]

use std::ffi::c_int;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_MEM_ERROR, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateInit2_, inflateReset,
    uInt, z_stream, zlibVersion,
};

/// Window of 32 KiB, and a gzip header is required: zlib's own format is not what a layer is in.
const GZIP_WINDOW_BITS: c_int = 16 + 15;

/// Bits of `data_type` after a call with `Z_BLOCK`: unread bits of the last byte, "in the final block", "at the start of a block or of
/// the final block's trailer".
const UNREAD_BITS: c_int = 63;
const IN_FINAL_BLOCK: c_int = 64;
const AT_BOUNDARY: c_int = 128;

/// What one call has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Bytes taken off the input.
    pub(super) consumed: usize,
    /// Bytes written to the output.
    pub(super) written: usize,
    /// Why it stopped.
    pub(super) stop: Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The input is used up or the output is full.
    Exhausted,
    /// The next bit is the first of a deflate block, one of `unread_bits` bits of the last byte taken that belong to what follows.
    BlockStart { unread_bits: u8 },
    /// The member's last block has ended; its trailer has not been read.
    LastBlockEnd,
    /// The member and its trailer have ended, and the trailer is right.
    MemberEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InflateError {
    OutOfMemory,
    /// The stream is damaged or no gzip, or its checksum is wrong.
    Data,
}

/// A gzip decoder that stops at block boundaries.
pub(super) struct BlockInflate {
    /// Initialised by `inflateInit2_` and nowhere replaced, until `Drop` ends it. Its buffer pointers are null except during a call.
    stream: Box<z_stream>,
}

// SAFETY: the decoder's state is heap memory that only this value refers to (zlib-rs keeps nothing in thread-local or global
// variables), and the buffer pointers are null between calls, so that another thread finds nothing that belongs to this one.
unsafe impl Send for BlockInflate {}

impl BlockInflate {
    pub(super) fn new() -> Result<Self, InflateError> {
        let mut stream = Box::new(z_stream::default());
        let size = c_int::try_from(size_of::<z_stream>()).map_err(|_| InflateError::OutOfMemory)?;
        // SAFETY: `stream` is a valid, exclusive z_stream whose `default` has set the allocator fields; the version and the size are
        // those of the very library that is called.
        let code = unsafe { inflateInit2_(&raw mut *stream, GZIP_WINDOW_BITS, zlibVersion(), size) };
        match code {
            Z_OK => Ok(Self { stream }),
            _ => Err(InflateError::OutOfMemory),
        }
    }

    /// Begins another member.
    pub(super) fn reset(&mut self) -> Result<(), InflateError> {
        // SAFETY: `stream` was initialised by `inflateInit2_`, is exclusive, and has not been ended.
        match unsafe { inflateReset(&raw mut *self.stream) } {
            Z_OK => Ok(()),
            _ => Err(InflateError::Data),
        }
    }

    /// Inflates from `input` to `output` up to the next boundary.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, InflateError> {
        let (input_len, output_len) = (clamp(input.len()), clamp(output.len()));
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = input_len;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = output_len;
        // SAFETY: `stream` was initialised by `inflateInit2_`, is exclusive, and has not been ended. `next_in` and `avail_in` describe
        // `input`, or its first `uInt::MAX` bytes, which is borrowed over the call and only read; `next_out` and `avail_out` describe
        // `output` in the same way, which is borrowed mutably over the call and initialised.
        let code = unsafe { inflate(&raw mut *self.stream, Z_BLOCK) };
        let (input_left, output_left) = (self.stream.avail_in, self.stream.avail_out);
        self.stream.next_in = std::ptr::null();
        self.stream.avail_in = 0;
        self.stream.next_out = std::ptr::null_mut();
        self.stream.avail_out = 0;

        let state = self.stream.data_type;
        let stop = match code {
            Z_STREAM_END => Stop::MemberEnd,
            // Without progress a call returns Z_BUF_ERROR; it may have come to a boundary all the same, in bits taken before.
            Z_OK | Z_BUF_ERROR if state & AT_BOUNDARY == 0 => Stop::Exhausted,
            Z_OK | Z_BUF_ERROR if state & IN_FINAL_BLOCK != 0 => Stop::LastBlockEnd,
            Z_OK | Z_BUF_ERROR => {
                let unread_bits = u8::try_from(state & UNREAD_BITS).map_err(|_| InflateError::Data)?;
                Stop::BlockStart { unread_bits }
            }
            Z_MEM_ERROR => return Err(InflateError::OutOfMemory),
            _ => return Err(InflateError::Data),
        };
        let (consumed, written) =
            (input_len.saturating_sub(input_left), output_len.saturating_sub(output_left));
        Ok(Step { consumed: consumed as usize, written: written as usize, stop })
    }
}

impl Drop for BlockInflate {
    fn drop(&mut self) {
        // SAFETY: `stream` was initialised by `inflateInit2_` and is ended here only; nobody can use it afterwards.
        unsafe { inflateEnd(&raw mut *self.stream) };
    }
}

fn clamp(len: usize) -> uInt {
    uInt::try_from(len).unwrap_or(uInt::MAX)
}
