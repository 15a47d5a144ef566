//! Layers of any number of files and any number of bytes, as a tar stream.

use std::io::{self, Read, Write};

/// Files in a folder.
const PER_FOLDER: u64 = 250;
/// Seconds since 1970 that everything in the layer was last changed.
const EPOCH: u64 = 1_735_689_600;

/// Bytes that look random, and are the same each time.
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// The same seed makes the same bytes.
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits (xorshift64*).
    pub fn next_word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for piece in buffer.chunks_mut(8) {
            let word = self.next_word().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
        Ok(buffer.len())
    }
}

/// Writes `count` files of `bytes` noise each, in numbered folders below `files`, or a single one with the given name.
///
/// # Errors
/// Of the writer.
pub fn write(count: u64, bytes: u64, name: Option<&str>, to: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(to);
    for number in 0..count {
        if name.is_none() && number % PER_FOLDER == 0 {
            let folder = format!("files/{}/", number / PER_FOLDER);
            tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), folder, io::empty())?;
        }
        let path = match name {
            Some(name) => name.to_owned(),
            None => format!("files/{}/{number}", number / PER_FOLDER),
        };
        let noise = Noise::new(number).take(bytes);
        tar.append_data(&mut header(tar::EntryType::Regular, 0o644, bytes), path, noise)?;
    }
    tar.into_inner()?.flush()
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(EPOCH);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_as_were_asked_for() {
        let mut layer = Vec::new();
        write(600, 100, None, &mut layer).unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let mut files = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if entry.header().entry_type().is_file() {
                assert_eq!(bytes.len(), 100);
                files += 1;
            }
        }
        assert_eq!(files, 600);
    }

    #[test]
    fn one_large_file() {
        let (mut layer, mut again) = (Vec::new(), Vec::new());
        write(1, 3_000_000, Some("large"), &mut layer).unwrap();
        write(1, 3_000_000, Some("large"), &mut again).unwrap();
        assert!(layer == again, "the same bytes each time");
        let mut archive = tar::Archive::new(layer.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("large"));
        assert_eq!(entry.size(), 3_000_000);
        let distinct: std::collections::HashSet<&[u8]> = layer[512..3_000_512].chunks_exact(64).collect();
        assert!(distinct.len() > 46_000, "a compressor finds nothing");
    }
}
