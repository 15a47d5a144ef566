//! The TOC of a tar that goes by.

use crate::encode::entry_len;
use crate::{Entry, TarError, TarScanner, UncompressedOffset};

use super::{BuildError, Unindexable};

/// Collects the members, and refuses those that would make the zTOC unusable.
#[derive(Debug, Default)]
pub(super) struct Members {
    scanner: TarScanner,
    entries: Vec<Entry>,
    encoded_len: usize,
}

impl Members {
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        let Self { scanner, entries, encoded_len } = self;
        let mut unindexable = None;
        scanner.push(bytes, &mut |scanned| {
            let entry = scanned.entry;
            if entry.size > 0 && !entry.kind.has_body() {
                let reason = Unindexable::SizeWithoutBody(entry.kind);
                unindexable.get_or_insert(BuildError::Unindexable { offset: entry.data_offset, reason });
            }
            *encoded_len = encoded_len.saturating_add(entry_len(&entry));
            entries.push(entry);
        })?;
        unindexable.map_or(Ok(()), Err)
    }

    /// What the entries will take in the zTOC, at most.
    pub(super) fn encoded_len(&self) -> usize {
        self.encoded_len
    }

    /// The members, and where the archive ends.
    pub(super) fn finish(self) -> Result<(Vec<Entry>, UncompressedOffset), BuildError> {
        let end = self.scanner.finish()?;
        Ok((self.entries, end))
    }
}

impl From<TarError> for BuildError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Sparse { offset } => Self::Unindexable { offset, reason: Unindexable::Sparse },
            TarError::Unsupported { typeflag, offset } => Self::UnsupportedEntry { typeflag, offset },
            error => Self::Tar(error),
        }
    }
}
