//! Beginning to inflate inside a byte.
//!
//! A checkpoint's block may begin at any bit. zlib's C API takes the odd bits with `inflatePrime`; the safe API has nothing like it, and
//! shifting the whole input is wrong, since stored blocks align to bytes of the *original* stream. So the stream is given a beginning:
//! empty deflate blocks, which decode to nothing, whose total length is congruent to the wanted bit position. After them the decoder
//! stands at the right bit of the span's first byte, and every byte after it is where it was.

/// The beginning of a stream: empty blocks, and in the last byte the bits of the span's first byte.
pub(super) struct Prefix {
    bytes: [u8; Self::MAX_LEN],
    len: usize,
}

/// An empty block with fixed codes: not final, type 1, and the seven zero bits of its end.
const EMPTY_FIXED: (u64, u32) = (0b010, 10);

impl Prefix {
    /// 91 bits of the block with its own codes, up to three fixed ones, and the byte that they end in.
    const MAX_LEN: usize = 17;

    /// For a block that begins on a byte.
    pub(super) fn none() -> Self {
        Self { bytes: [0; Self::MAX_LEN], len: 0 }
    }

    /// For a block whose first `bits` bits, 1..=7, are the high bits of `first`.
    pub(super) fn new(bits: u8, first: u8) -> Self {
        let skipped = u32::from(8 - bits.clamp(1, 7));
        let mut writer = BitWriter { prefix: Self::none(), pending: 0, pending_len: 0 };
        // Fixed blocks move the position by 10, that is by 2 modulo 8; an odd one needs a block of odd length: 91 = 3 modulo 8.
        let remaining = if skipped % 2 == 1 {
            writer.empty_dynamic();
            (skipped + 5) % 8
        } else {
            skipped
        };
        for _ in 0..remaining / 2 {
            writer.put(EMPTY_FIXED.0, EMPTY_FIXED.1);
        }
        debug_assert_eq!(writer.pending_len, skipped);
        writer.put(u64::from(first >> skipped), 8 - skipped);
        writer.prefix
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

struct BitWriter {
    prefix: Prefix,
    pending: u64,
    pending_len: u32,
}

impl BitWriter {
    /// Appends the low `len` bits, at most 32 of them, lowest first.
    fn put(&mut self, bits: u64, len: u32) {
        self.pending |= bits << self.pending_len;
        self.pending_len += len;
        while self.pending_len >= 8 {
            if let Some(byte) = self.prefix.bytes.get_mut(self.prefix.len) {
                *byte = (self.pending & 0xff) as u8;
                self.prefix.len += 1;
            }
            self.pending >>= 8;
            self.pending_len -= 8;
        }
    }

    /// An empty block of 91 bits with codes of its own: not final, type 2, in which literal 0, the end and distance 0 have one-bit codes.
    fn empty_dynamic(&mut self) {
        self.put(0b100, 3);
        self.put(0, 5); // 257 literal and length codes
        self.put(0, 5); // 1 distance code
        self.put(18 - 4, 4); // 18 code length codes, in the order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1
        for position in 0..18 {
            // One-bit codes for "length 1" (code 0) and "11 to 138 zeros" (code 1).
            self.put(u64::from(position == 2 || position == 17), 3);
        }
        self.put(0, 1); // literal 0 has length 1
        for zeros in [138, 117] {
            self.put(1, 1);
            self.put(zeros - 11, 7);
        }
        self.put(0, 1); // the end has length 1
        self.put(0, 1); // distance 0 has length 1
        self.put(1, 1); // the end, second of the two codes
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_literal_block_decodes_from_every_bit() {
        // A final fixed block with the literals "abc" (8 bits each: 0x30 + byte, most significant bit first) and the end.
        let mut block: Vec<bool> = vec![true, true, false];
        for literal in b"abc" {
            block.extend((0..8).rev().map(|bit| (literal + 0x30) >> bit & 1 == 1));
        }
        block.extend([false; 7]);
        for bits in 0..8_u8 {
            let skipped = if bits == 0 { 0 } else { 8 - bits };
            let mut stream: Vec<bool> = (0..skipped).map(|bit| bit % 3 == 1).collect();
            stream.extend(&block);
            let bytes: Vec<u8> = stream
                .chunks(8)
                .map(|byte| byte.iter().enumerate().fold(0, |sum, (bit, &set)| sum | u8::from(set) << bit))
                .collect();
            let checkpoint = crate::CheckpointRef { bits, window: &[] };
            let mut out = [0; 3];
            crate::extract_gzip_into(checkpoint, &bytes, &mut out).unwrap();
            assert_eq!(&out, b"abc", "bits {bits}");
        }
    }
}
