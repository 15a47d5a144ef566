//! Read-only views of this crate's own files, and the only unsafe code in it.
#![allow(unsafe_code, reason = "mapping a file is unsafe by nature; see Mapping::of")]

use std::fmt;
use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};

/// The first bytes of a file of ours, mapped read-only: the metadata of a layer file, or its header table.
///
/// Tar bytes are never mapped (they are read with `pread`), so a fault can only mean that somebody cut a file in the daemon's
/// own root-only directory.
pub struct Mapping(Mmap);

impl Mapping {
    /// Maps the first `len` bytes of `file`.
    ///
    /// Fails if the file is shorter than that, or `len` is 0.
    pub(crate) fn of(file: &File, len: u64) -> io::Result<Self> {
        let bytes = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if bytes == 0 || file.metadata()?.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: the mapping must not change or vanish while it is borrowed. The file lies in a directory that only root can
        // enter and that only this crate writes. The mapped region is written before the directory gets its final name and
        // never after; the one file that is written later (tar bytes) is written beyond `len`, and the region ends on a 4096-byte
        // border, so no page is shared with what changes. The file is never truncated; removing it keeps the inode alive
        // as long as the mapping. Its length was checked just above.
        let map = unsafe { MmapOptions::new().len(bytes).map(file)? };
        Ok(Self(map))
    }
}

// === impl Mapping ===

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("len", &self.0.len()).finish()
    }
}
