//! Whether this machine can, found out by doing it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use erofs_image::{Attributes, BLOCK_SIZE, Content, NewImage, TreeBuilder};

use super::device::Device;
use super::{KernelOptions, erofs};

const CONTENT: &[u8] = b"read by way of EROFS and a loop device\n";

/// What the machine lacks.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no loop device, or it does not go by our files.
    #[error("loop devices do not work")]
    Loop(#[source] io::Error),
    /// EROFS is not there, or knows no blocks of 512 bytes.
    #[error("EROFS with blocks of 512 bytes does not work")]
    Erofs(#[source] io::Error),
    /// What was mounted is not what was written.
    #[error("an EROFS image could not be read back")]
    Read(#[source] io::Error),
    /// Nothing could be tried.
    #[error("failed to write to {}", path.display())]
    Scratch {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Mounts a small image and reads it back. Gives whether the same goes without a loop device. Leaves nothing behind.
pub(super) fn probe(scratch: &Path, options: KernelOptions) -> Result<bool, ProbeError> {
    let place = scratch.join("kernel-check");
    let scratch = |source| ProbeError::Scratch { path: place.clone(), source };
    let (image, at) = (place.join("image"), place.join("mounted"));
    // Of one that was killed.
    let _ = erofs::clear(&at);
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&at).map_err(scratch)?;
    let result = fs::write(&image, tiny()).map_err(scratch).and_then(|()| mounted(&image, &at, options));
    let result = result.and_then(|()| {
        erofs::clear(&at).map_err(scratch)?;
        Ok(erofs::mount_file(&image, &at).is_ok() && read_back(&at).is_ok())
    });
    let cleared = erofs::clear(&at).and_then(|()| fs::remove_dir_all(&place)).map_err(scratch);
    result.and_then(|without_device| cleared.map(|()| without_device))
}

fn mounted(image: &Path, at: &Path, options: KernelOptions) -> Result<(), ProbeError> {
    let device = File::open(image).and_then(|file| Device::over(&file, options.loop_attempts, false));
    let device = device.map_err(ProbeError::Loop)?;
    erofs::mount(&device, at).map_err(ProbeError::Erofs)?;
    read_back(at)
}

fn read_back(at: &Path) -> Result<(), ProbeError> {
    match fs::read(at.join("file")) {
        Ok(content) if content == CONTENT => Ok(()),
        Ok(_) => Err(ProbeError::Read(io::ErrorKind::InvalidData.into())),
        Err(error) => Err(ProbeError::Read(error)),
    }
}

/// An image of one file.
fn tiny() -> Vec<u8> {
    let mut tree = TreeBuilder::new();
    let file = Content::Regular { tar_offset: 0, size: CONTENT.len() as u64 };
    // Neither can fail: the path is plain, the data at the beginning of a tar of one block.
    let _ = tree.add(b"file", Attributes { permissions: 0o400, ..Attributes::default() }, file);
    let image = NewImage::of(tree.finish(), BLOCK_SIZE).ok();
    let mut image = image.map(|image| image.metadata()).unwrap_or_default();
    image.extend(CONTENT);
    image.resize(image.len().next_multiple_of(4096), 0);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_and_nothing_stays() {
        let scratch = tempfile::tempdir().unwrap();
        probe(scratch.path(), KernelOptions::default()).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(scratch.path().to_str().unwrap()));
    }

    #[test]
    fn where_nothing_can_be_written() {
        let error = probe(Path::new("/dev/null"), KernelOptions::default()).unwrap_err();
        assert!(matches!(error, ProbeError::Scratch { .. }), "{error:?}");
    }
}
