//! Building over a plain tar.

use crate::zinfo::{TarZinfo, Zinfo};
use crate::{UncompressedOffset, ZinfoError};

use super::digests::SpanHasher;
use super::members::Members;
use super::{BuildError, Scanned, Unindexable};

/// One plain tar under way, cut into spans of one size.
pub(super) struct PlainEngine {
    span_size: u64,
    /// What is missing to the end of the span under way.
    left: u64,
    size: u64,
    spans: SpanHasher,
    members: Members,
}

impl PlainEngine {
    /// `span_size` is at least 1 and at most `i64::MAX`.
    pub(super) fn new(span_size: u64) -> Self {
        Self { span_size, left: 0, size: 0, spans: SpanHasher::default(), members: Members::default() }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // A span begins with its first byte, so that there is no empty one at the end.
            if self.left == 0 {
                self.spans.begin(None);
                self.left = self.span_size;
            }
            let len = usize::try_from(self.left).unwrap_or(usize::MAX);
            let (taken, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            rest = after;
            self.spans.update(taken);
            self.left = self.left.saturating_sub(taken.len() as u64);
            self.size = self.size.saturating_add(taken.len() as u64);
        }
        self.members.push(bytes)
    }

    pub(super) fn encoded_len(&self) -> usize {
        self.members.encoded_len().saturating_add(super::digests_len(self.spans.len()))
    }

    pub(super) fn finish(self) -> Result<Scanned, BuildError> {
        if self.size == 0 {
            return Err(BuildError::Unindexable {
                offset: UncompressedOffset(0),
                reason: Unindexable::Empty,
            });
        }
        let (entries, end) = self.members.finish()?;
        let size = i64::try_from(self.size).map_err(|_| ZinfoError::TooMany(self.size))?;
        Ok(Scanned {
            entries,
            uncompressed_size: end.0,
            zinfo: Zinfo::Tar(TarZinfo::new(self.span_size.cast_signed(), size)?),
            digests: self.spans.finish(),
            diff_id: None,
        })
    }
}
