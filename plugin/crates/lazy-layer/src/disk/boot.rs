//! Whether the machine has been running since something was written.

use std::fs;
use std::io;
use std::path::Path;

use super::checksum::Checksum;

/// Identity of one boot of the machine: what a process wrote during it can be read back, synced or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BootId(pub(crate) [u8; 16]);

impl BootId {
    /// Reads the identity of the running boot: any text that changes from boot to boot.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read(path)?;
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self(Checksum::of(text).to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_has_one_id() {
        let kernel = Path::new(crate::options::BOOT_ID);
        assert_eq!(BootId::read(kernel).unwrap(), BootId::read(kernel).unwrap());
        let other = tempfile::NamedTempFile::new().unwrap();
        assert!(BootId::read(other.path()).is_err());
        fs::write(other.path(), "6f6a8b0e-0000-4000-8000-000000000000\n").unwrap();
        assert_ne!(BootId::read(other.path()).unwrap(), BootId::read(kernel).unwrap());
    }
}
