//! `checked`: what a complete layer turned out to be. Written when all of it was here and on the disk; a layer without it, or with a damaged
//! one, is checked again when it is complete.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | version |
//! | 12 | 1 | 1: every member of the tar is as the zTOC says, and there are no others |
//! | 13 | 1 | 1: an image's configuration says the same |
//! | 14 | 2 | 0 |
//! | 16 | 32 | SHA-256 of the whole tar, padding behind the archive included |
//! | 48 | 8 | XXH3-64 of the 48 bytes before |

use std::fs;
use std::path::Path;

use super::bytes::{array, u32_at, u64_at};
use super::checksum::check;
use super::{name, sync};
use crate::error::FileError;

const MAGIC: [u8; 8] = *b"SOCIDONE";
const VERSION: u32 = 1;
const BODY: usize = 48;

/// What was found in all of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Every member of the tar is as the zTOC says, and there are no others.
    pub(crate) as_described: bool,
    /// SHA-256 of the whole tar: the layer's diff ID.
    pub(crate) digest: [u8; 32],
    /// An image's configuration says the same: who opens the layer again need not wait for one.
    pub(crate) confirmed: bool,
}

impl Checked {
    /// What is on disk, if it is intact.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        // Whatever is wrong with it costs one more check.
        Self::decode(&fs::read(directory.join(name::CHECKED)).ok()?)
    }

    /// Puts it in its place, whole or not at all.
    pub(crate) fn write(self, directory: &Path) -> Result<(), FileError> {
        let (place, new) = (directory.join(name::CHECKED), directory.join("checked.new"));
        fs::write(&new, self.encode())
            .and_then(|()| sync::data(&fs::File::open(&new)?))
            .and_then(|()| fs::rename(&new, &place))
            .map_err(FileError::of("write", &place))
    }

    fn encode(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[u8::from(self.as_described), u8::from(self.confirmed), 0, 0]);
        bytes.extend_from_slice(&self.digest);
        bytes.extend_from_slice(&check(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let body = bytes.get(..BODY)?;
        let intact = u64_at(bytes, BODY)? == check(body) && array(body, 0)? == MAGIC;
        (intact && u32_at(body, 8)? == VERSION).then_some(Self {
            as_described: *body.get(12)? == 1,
            digest: array(body, 16)?,
            confirmed: *body.get(13)? == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_damage_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Checked::read(directory.path()), None);
        for (as_described, confirmed) in [(true, true), (true, false), (false, true), (false, false)] {
            let checked = Checked { as_described, digest: [7; 32], confirmed };
            checked.write(directory.path()).unwrap();
            assert_eq!(Checked::read(directory.path()), Some(checked));
            let bytes = checked.encode();
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                assert_eq!(Checked::decode(&damaged), None, "byte {at}");
                assert_eq!(Checked::decode(&bytes[..at]), None, "{at} bytes");
            }
        }
    }
}
