//! Making, opening and removing a layer's directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use erofs_image::Image;
use ztoc::SpanId;

use super::boot::BootId;
use super::checked::Checked;
use super::checksum::{Checksum, Summed, Summing};
use super::headers::{self, HeaderTable};
use super::manifest::{self, Encoding, Manifest, ManifestError};
use super::spans::SpanRows;
use super::states::{self, State, States};
use super::{Damaged, WINDOW, name, sync};
use crate::aside;
use crate::error::{CreateError, FileError};
use crate::key::LayerKey;
use crate::mapping::Mapping;
use crate::toc::Plan;

/// Prefix of directories that are being made; left behind only by a daemon that died.
pub(crate) const MAKING: &str = ".new-";
/// Prefix of directories that are being removed.
pub(crate) const TRASH: &str = ".old-";

/// An open layer directory.
#[derive(Debug)]
pub(crate) struct LayerFiles {
    pub(crate) manifest: Manifest,
    pub(crate) image: Image<Mapping>,
    pub(crate) layer: File,
    pub(crate) windows: File,
    pub(crate) spans: SpanRows,
    pub(crate) headers: HeaderTable,
    pub(crate) states: States,
    pub(crate) initial: Vec<State>,
    pub(crate) checked: Option<Checked>,
}

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    /// There is none.
    #[error("not there")]
    Absent,
    /// It cannot be used and should be removed.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// Another version of this program made it.
    #[error("unknown format {0}")]
    Format(u64),
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl LayerFiles {
    /// Opens a directory and checks everything but the windows, which are checked when they are used, and the tar's bytes, which `states` answers for.
    pub(crate) fn open(directory: &Path, key: &LayerKey, boot: BootId) -> Result<Self, DirectoryError> {
        let manifest = read_manifest(directory, key)?;
        let damaged = |file, reason| DirectoryError::Damaged(Damaged { file, reason });

        let layer = open(directory, name::LAYER, true)?;
        let length = |file: &File, of| {
            file.metadata().map(|meta| meta.len()).map_err(FileError::of("stat", &directory.join(of)))
        };
        if length(&layer, name::LAYER)? != manifest.file_size
            || manifest.tar_start > manifest.file_size
            || !manifest.tar_start.is_multiple_of(4096)
        {
            return Err(damaged(name::LAYER, "wrong length"));
        }
        let metadata = Mapping::of(&layer, manifest.tar_start)
            .map_err(FileError::of("map", &directory.join(name::LAYER)))?;
        if Checksum::of(metadata.as_ref()).to_string() != manifest.metadata {
            return Err(damaged(name::LAYER, "wrong checksum of the metadata"));
        }
        let image = Image::open(metadata).map_err(|_| damaged(name::LAYER, "no EROFS metadata"))?;

        let table = std::fs::read(directory.join(name::SPANS)).map_err(absent_or(directory, name::SPANS))?;
        if Checksum::of(&table).to_string() != manifest.spans {
            return Err(damaged(name::SPANS, "wrong checksum"));
        }
        let spans = SpanRows::decode(&table, manifest.compressed_size, manifest.uncompressed_size)?;

        let file = open(directory, name::HEADERS, false)?;
        let table = Mapping::of(&file, length(&file, name::HEADERS)?)
            .map_err(|_| damaged(name::HEADERS, "too short"))?;
        if Checksum::of(table.as_ref()).to_string() != manifest.headers {
            return Err(damaged(name::HEADERS, "wrong checksum"));
        }
        let headers = HeaderTable::new(table)?;

        let windows = open(directory, name::WINDOWS, false)?;
        let expected = match manifest.encoding {
            Encoding::Gzip => (spans.len() as u64).saturating_mul(WINDOW as u64),
            Encoding::Tar => 0,
        };
        if length(&windows, name::WINDOWS)? != expected {
            return Err(damaged(name::WINDOWS, "wrong length"));
        }

        let (states, initial) = States::open(directory, spans.len(), boot)?;
        let checked = Checked::read(directory);
        Ok(Self { manifest, image, layer, windows, spans, headers, states, initial, checked })
    }
}

/// Writes a directory under a temporary name, waits until it is on the disk, and gives it its name. The digest of the zTOC is compared before that.
pub(crate) fn create(
    layers: &Path,
    key: &LayerKey,
    directory: &str,
    plan: &Plan<'_>,
    boot: BootId,
) -> Result<(), CreateError> {
    let making = temporary(layers, MAKING);
    DirBuilder::new().mode(0o700).create(&making).map_err(FileError::of("create", &making))?;
    let result = fill(&making, key, plan, boot).and_then(|()| {
        let place = layers.join(directory);
        std::fs::rename(&making, &place).map_err(FileError::of("rename to", &place))?;
        Ok(sync_directory(layers)?)
    });
    if result.is_err() {
        // Best effort: what is left is removed when the store is opened the next time.
        let _ = std::fs::remove_dir_all(&making);
    }
    result
}

fn fill(directory: &Path, key: &LayerKey, plan: &Plan<'_>, boot: BootId) -> Result<(), CreateError> {
    // The largest file goes to the disk while the second largest is made, and the zTOC is compared with its digest.
    let aside = || {
        let mut sum = Summing::new();
        let file = write_new(directory, name::HEADERS, |file| {
            headers::write(Summed { to: file, sum: &mut sum }, plan.headers())
        })?;
        plan.compare(&key.ztoc)?;
        Ok::<_, CreateError>((file, sum.finish()))
    };
    let here = || {
        let mut sum = Summing::new();
        let file = write_new(directory, name::LAYER, |file| {
            plan.image.write_metadata(Summed { to: &mut *file, sum: &mut sum })?;
            file.set_len(plan.image.file_size())
        })?;
        sync::all(&file).map_err(FileError::of("sync", &directory.join(name::LAYER)))?;
        Ok::<_, CreateError>(sum.finish())
    };
    let (headers, metadata) = aside::both(aside, here);
    let ((headers_file, headers), metadata) = (headers?, metadata?);
    let spans = plan.spans.encode();
    let windows = |file: &mut File| {
        let windows = (0..plan.spans.len())
            .filter_map(|span| plan.checkpoints().checkpoint(SpanId(u32::try_from(span).ok()?)));
        let mut out = io::BufWriter::with_capacity(1 << 20, file);
        if plan.encoding() == Encoding::Gzip {
            for checkpoint in windows {
                out.write_all(checkpoint.window)?;
            }
        }
        out.flush()
    };
    let manifest = Manifest {
        format: manifest::FORMAT,
        layer: key.layer.to_string(),
        ztoc: key.ztoc.to_string(),
        encoding: plan.encoding(),
        compressed_size: plan.compressed_size(),
        uncompressed_size: plan.tar_size(),
        tar_start: plan.image.tar_start(),
        file_size: plan.image.file_size(),
        metadata: metadata.to_string(),
        spans: Checksum::of(&spans).to_string(),
        headers: headers.to_string(),
        check: String::new(),
    };
    let json = manifest
        .encode()
        .map_err(|error| FileError::of("encode", &directory.join(name::MANIFEST))(error.into()))?;
    let states = states::fresh(plan.spans.len(), boot);
    let files = [
        (name::HEADERS, headers_file),
        (name::SPANS, write_new(directory, name::SPANS, |file| file.write_all(&spans))?),
        (name::WINDOWS, write_new(directory, name::WINDOWS, windows)?),
        (name::STATES, write_new(directory, name::STATES, |file| file.write_all(&states))?),
        (name::MANIFEST, write_new(directory, name::MANIFEST, |file| file.write_all(&json))?),
    ];
    // After all have been written: what the file system has to do for one brings most of the others to the disk, too.
    for (name, file) in &files {
        sync::all(file).map_err(FileError::of("sync", &directory.join(name)))?;
    }
    Ok(sync_directory(directory)?)
}

/// Takes a directory out of use at once, and then removes it.
pub(crate) fn remove(layers: &Path, directory: &str) -> Result<(), FileError> {
    let place = layers.join(directory);
    let trash = temporary(layers, TRASH);
    match std::fs::rename(&place, &trash) {
        Ok(()) => std::fs::remove_dir_all(&trash).map_err(FileError::of("remove", &trash)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FileError::of("rename", &place)(error)),
    }
}

/// Bytes of disk that the files of a directory take; 0 if it is not there.
pub(crate) fn disk_use(directory: &Path) -> Result<u64, FileError> {
    let failed = |error| FileError::of("list", directory)(error);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = 0u64;
    for entry in entries {
        match entry.map_err(failed)?.metadata() {
            // st_blocks counts units of 512 bytes, whatever the file system's blocks are.
            Ok(meta) => bytes = bytes.saturating_add(meta.blocks().saturating_mul(512)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(bytes)
}

/// Makes a directory that is still mounted count as absent from the next opening on.
pub(crate) fn condemn(directory: &Path) -> io::Result<()> {
    std::fs::remove_file(directory.join(name::MANIFEST))
}

fn read_manifest(directory: &Path, key: &LayerKey) -> Result<Manifest, DirectoryError> {
    if !directory.try_exists().map_err(FileError::of("look for", directory))? {
        return Err(DirectoryError::Absent);
    }
    let path = directory.join(name::MANIFEST);
    let file = File::open(&path).map_err(absent_or(directory, name::MANIFEST))?;
    let mut json = Vec::new();
    file.take(manifest::LIMIT).read_to_end(&mut json).map_err(FileError::of("read", &path))?;
    let manifest = Manifest::decode(&json).map_err(|error| match error {
        ManifestError::Format(found) => DirectoryError::Format(found),
        ManifestError::Damaged(damaged) => DirectoryError::Damaged(damaged),
    })?;
    if manifest.layer != key.layer.to_string() || manifest.ztoc != key.ztoc.to_string() {
        return Err(DirectoryError::Damaged(Damaged {
            file: name::MANIFEST,
            reason: "it is another layer's",
        }));
    }
    Ok(manifest)
}

fn open(directory: &Path, file: &'static str, write: bool) -> Result<File, DirectoryError> {
    OpenOptions::new().read(true).write(write).open(directory.join(file)).map_err(absent_or(directory, file))
}

/// A file that is not there is damage; everything else that the system says is an error.
fn absent_or(directory: &Path, file: &'static str) -> impl FnOnce(io::Error) -> DirectoryError {
    move |error| {
        if error.kind() == io::ErrorKind::NotFound {
            DirectoryError::Damaged(Damaged { file, reason: "it is missing" })
        } else {
            DirectoryError::File(FileError::of("open", &directory.join(file))(error))
        }
    }
}

fn write_new(
    directory: &Path,
    file: &str,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<File, FileError> {
    let path = directory.join(file);
    let result =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
            write(&mut file)?;
            Ok(file)
        });
    result.map_err(FileError::of("write", &path))
}

fn sync_directory(directory: &Path) -> Result<(), FileError> {
    File::open(directory).and_then(|file| sync::all(&file)).map_err(FileError::of("sync", directory))
}

/// A name that no other directory of this process has.
fn temporary(layers: &Path, prefix: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    layers.join(format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}
