//! From a stream of compressed bytes to a reader of tar bytes, with a digest of each.

use std::io::{self, BufReader, Chain, Cursor, Read};

use bytes::{Buf as _, Bytes};
use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

/// What travels from the task that downloads to the thread that unpacks.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes of the blob.
    Bytes(Bytes),
    /// That was all. A channel that closes without it was cut off.
    End,
    /// No more, and why.
    Failed(String),
}

/// The thread's end of the channel. Blocking.
#[derive(Debug)]
pub(super) struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

/// Digests what passes.
#[derive(Debug)]
pub(super) struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

/// A layer blob, decompressed as its first bytes say, whatever its media type says: as containerd does.
pub(super) enum Decompressed {
    Gzip(Box<MultiGzDecoder<Sniffed>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Sniffed>>>),
    Tar(Sniffed),
}

type Sniffed = Chain<Cursor<Vec<u8>>, Hashed<Pieces>>;

// === impl Pieces ===

impl Pieces {
    pub(super) fn new(receiver: mpsc::Receiver<Piece>) -> Pieces {
        Pieces { receiver, current: Bytes::new(), ended: false }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(reason)) => return Err(io::Error::other(reason)),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = buffer.len().min(self.current.len());
        if let Some(buffer) = buffer.get_mut(..length) {
            self.current.copy_to_slice(buffer);
        }
        Ok(length)
    }
}

// === impl Hashed ===

impl<R> Hashed<R> {
    pub(super) fn new(inner: R) -> Hashed<R> {
        Hashed { inner, hash: Sha256::new() }
    }

    pub(super) fn inner(self) -> R {
        self.inner
    }

    /// `sha256:…` of everything that was read so far.
    pub(super) fn digest(&self) -> String {
        soci_index::digest_from(self.hash.clone().finalize().into()).to_string()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

// === impl Decompressed ===

impl Decompressed {
    /// Looks at the first bytes of the blob.
    pub(super) fn new(mut blob: Hashed<Pieces>) -> io::Result<Decompressed> {
        let mut magic = Vec::new();
        blob.by_ref().take(4).read_to_end(&mut magic)?;
        let kind = magic.clone();
        let sniffed = Read::chain(Cursor::new(magic), blob);
        Ok(match kind.as_slice() {
            [0x1f, 0x8b, ..] => Decompressed::Gzip(Box::new(MultiGzDecoder::new(sniffed))),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                Decompressed::Zstd(Box::new(zstd::stream::read::Decoder::new(sniffed)?))
            }
            // Skippable frames may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                Decompressed::Zstd(Box::new(zstd::stream::read::Decoder::new(sniffed)?))
            }
            _ => Decompressed::Tar(sniffed),
        })
    }

    /// The blob below, once this has been read to its end.
    pub(super) fn into_blob(self) -> Hashed<Pieces> {
        match self {
            Decompressed::Gzip(decoder) => decoder.into_inner(),
            Decompressed::Zstd(decoder) => decoder.finish().into_inner(),
            Decompressed::Tar(sniffed) => sniffed,
        }
        .into_inner()
        .1
    }
}

impl Read for Decompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decompressed::Gzip(decoder) => decoder.read(buffer),
            Decompressed::Zstd(decoder) => decoder.read(buffer),
            Decompressed::Tar(sniffed) => sniffed.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(blob: &[u8], end: bool) -> io::Result<(Vec<u8>, String)> {
        let (sender, receiver) = mpsc::channel(1000);
        for piece in blob.chunks(7) {
            sender.try_send(Piece::Bytes(Bytes::copy_from_slice(piece))).unwrap();
        }
        if end {
            sender.try_send(Piece::End).unwrap();
        }
        drop(sender);
        let mut decompressed = Decompressed::new(Hashed::new(Pieces::new(receiver)))?;
        let mut bytes = Vec::new();
        decompressed.read_to_end(&mut bytes)?;
        let mut blob = decompressed.into_blob();
        io::copy(&mut blob, &mut io::sink())?;
        Ok((bytes, blob.digest()))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_first_bytes_say_what_it_is() {
        let text = b"neither gzip nor zstd".repeat(20);
        let zstd = zstd::encode_all(text.as_slice(), 3).unwrap();
        let mut members = gzip(&text[..100]);
        members.extend(gzip(&text[100..]));
        for blob in [text.clone(), gzip(&text), members, zstd] {
            let (bytes, digest) = read(&blob, true).unwrap();
            assert_eq!(bytes, text);
            assert_eq!(digest, soci_index::digest_of(&blob).to_string());
        }
        assert_eq!(read(b"", true).unwrap().0, b"");
        assert_eq!(read(b"abc", true).unwrap().0, b"abc");
    }

    #[test]
    fn what_was_cut_off_is_an_error() {
        for blob in [b"some plain text".to_vec(), gzip(b"some text"), Vec::new()] {
            assert!(read(&blob, false).is_err());
        }
        let whole = gzip(&b"text".repeat(1000));
        assert!(read(&whole[..whole.len() - 3], true).is_err());
    }
}
