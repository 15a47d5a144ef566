//! A layer's tar becomes a directory for overlayfs: owners, modes, times, attributes, links, devices, and whiteouts in overlayfs' own form.

use std::cell::Cell;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use tar::{Archive, Entry, EntryType};

use crate::snapshot::Below;

use super::root::{Inside, Place, Root, is_directory, is_whiteout};

/// `.wh.<name>` says that `<name>` of the layers below is not there any more.
const WHITEOUT: &[u8] = b".wh.";
/// Says that nothing of the directory's content in the layers below is there any more.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that aufs kept for itself.
const AUFS: &[u8] = b".wh..wh.";
/// Bytes of one entry that are kept in memory, from the end of the one before: its headers, three extensions of 1 MiB, the map of a sparse file.
const MAX_HEADERS: u64 = 4 << 20;
/// Bytes that directories take whose times are set in the end: enough for a million of them. An entry of the same directory costs as much as
/// another one, and next to nothing in a compressed layer.
const MAX_DIRECTORIES: usize = 128 << 20;

/// What was read from one header.
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Ends a tar whose headers are longer than what is kept of one entry.
struct Bounded<'a, R> {
    inner: R,
    /// Bytes that may still be read.
    room: &'a Cell<u64>,
}

/// Unpacks a tar into an empty directory. The reader is left where the tar ends.
pub(super) fn apply(
    tar: &mut impl Read,
    at: &std::path::Path,
    lower: &[Below],
    userxattr: bool,
) -> io::Result<()> {
    let room = Cell::new(MAX_HEADERS);
    let mut layer = Applying {
        root: Root::open(at, lower)?,
        opaque: if userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" },
        room: &room,
        directories: Vec::new(),
        remembered: 0,
    };
    // It reads extensions to their end, however long they are.
    let mut archive = Archive::new(Bounded { inner: tar, room: &room });
    for entry in archive.entries()? {
        let mut entry = entry?;
        layer.entry(&mut entry)?;
        room.set(u64::MAX);
        io::copy(&mut entry, &mut io::sink())?;
        room.set(MAX_HEADERS);
    }
    layer.finish()
}

struct Applying<'a> {
    root: Root,
    opaque: &'static str,
    /// Of the reader below.
    room: &'a Cell<u64>,
    /// Times of directories, which change as long as something is made in them.
    directories: Vec<(PathBuf, Timespec)>,
    /// Bytes that they take.
    remembered: usize,
}

// === impl Bounded ===

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room.get();
        if room == 0 {
            return Err(io::Error::other("the headers of an entry are too long"));
        }
        let most = usize::try_from(room).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.room.set(room.saturating_sub(length as u64));
        Ok(length)
    }
}

// === impl Applying ===

impl Applying<'_> {
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        let attributes = attributes(entry).map_err(|error| of(&name, error))?;
        let path = Inside::of(&name).ok_or_else(|| of(&name, io::Error::other("not a usable name")))?;
        self.make(entry, kind, &path, &attributes).map_err(|error| of(&name, error))
    }

    fn make(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        kind: EntryType,
        path: &Inside,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let Some(place) = self.root.place(path)? else {
            // The root is there; only its attributes are the layer's.
            return self.dress_top(attributes);
        };
        if place.name == OPAQUE {
            return self.make_opaque(path);
        }
        if place.name.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = place.name.strip_prefix(WHITEOUT) {
            return white_out(Place { parent: place.parent, name: hidden.to_vec() });
        }
        let there = place.stat()?;
        let mut replaces_whiteout = false;
        if let Some(stat) = &there {
            replaces_whiteout = is_whiteout(stat);
            if !(kind == EntryType::Directory && is_directory(stat)) {
                place.clear()?;
            }
        }
        match kind {
            EntryType::Directory => {
                if !there.as_ref().is_some_and(is_directory) {
                    rustix::fs::mkdirat(&place.parent, place.name.as_slice(), Mode::from_raw_mode(0o700))?;
                }
                if replaces_whiteout {
                    // The directory below is gone, not merged.
                    place.set_xattr(self.opaque.as_bytes(), b"y")?;
                }
                self.remember(path, attributes.mtime)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(
                    &place.parent,
                    place.name.as_slice(),
                    flags,
                    Mode::from_raw_mode(0o600),
                )?;
                self.room.set(u64::MAX);
                let copied = io::copy(entry, &mut std::fs::File::from(file))?;
                if copied != entry.size() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            EntryType::Link => {
                // Shares everything with its target, attributes included.
                return self.hard_link(entry, &place);
            }
            EntryType::Symlink => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| io::Error::other("a symbolic link to nothing"))?;
                rustix::fs::symlinkat(target.as_ref(), &place.parent, place.name.as_slice())?;
            }
            EntryType::Char | EntryType::Block => {
                let number = |part: io::Result<Option<u32>>| part.map(Option::unwrap_or_default);
                let header = entry.header();
                let device =
                    rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?);
                let kind =
                    if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
                if kind == FileType::CharacterDevice && device == 0 {
                    // It would hide a file of the layers below; only a whiteout may.
                    return Err(io::Error::other("a device that overlayfs would take for a whiteout"));
                }
                rustix::fs::mknodat(
                    &place.parent,
                    place.name.as_slice(),
                    kind,
                    Mode::from_raw_mode(0o600),
                    device,
                )?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(
                    &place.parent,
                    place.name.as_slice(),
                    FileType::Fifo,
                    Mode::from_raw_mode(0o600),
                    0,
                )?;
            }
            other => {
                return Err(io::Error::other(format!(
                    "entries of type {:?} are not supported",
                    char::from(other.as_byte())
                )));
            }
        }
        dress(&place, attributes, kind == EntryType::Symlink)
    }

    fn hard_link(&self, entry: &Entry<'_, impl Read>, place: &Place) -> io::Result<()> {
        let target = entry.link_name_bytes().ok_or_else(|| io::Error::other("a hard link to nothing"))?;
        let target =
            Inside::of(&target).ok_or_else(|| io::Error::other("a hard link to an unusable name"))?;
        let target = self.root.place(&target)?.ok_or_else(|| io::Error::other("a hard link to the root"))?;
        rustix::fs::linkat(
            &target.parent,
            target.name.as_slice(),
            &place.parent,
            place.name.as_slice(),
            AtFlags::empty(),
        )?;
        Ok(())
    }

    fn make_opaque(&self, path: &Inside) -> io::Result<()> {
        let Some((directory, _)) = path.split() else { return Ok(()) };
        let opened = self.root.directory(&directory)?;
        let place = Place { parent: opened, name: b".".to_vec() };
        place.set_xattr(self.opaque.as_bytes(), b"y")
    }

    fn dress_top(&mut self, attributes: &Attributes) -> io::Result<()> {
        let place = Place { parent: self.root.top().try_clone_to_owned()?, name: b".".to_vec() };
        self.remember(&Inside::TOP, attributes.mtime)?;
        dress(&place, attributes, false)
    }

    /// That a directory is to have this time in the end.
    fn remember(&mut self, directory: &Inside, mtime: Timespec) -> io::Result<()> {
        let path = directory.path();
        let size = size_of::<(PathBuf, Timespec)>().saturating_add(path.capacity());
        self.remembered = self.remembered.saturating_add(size);
        if self.remembered > MAX_DIRECTORIES {
            return Err(io::Error::other("too many directories"));
        }
        self.directories.push((path, mtime));
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        for (path, mtime) in self.directories.iter().rev() {
            let Some(path) = Inside::of(path.as_os_str().as_bytes()) else { continue };
            let place = match self.root.place(&path)? {
                Some(place) => place,
                None => Place { parent: self.root.top().try_clone_to_owned()?, name: b".".to_vec() },
            };
            // It may have been replaced since.
            if place.stat()?.as_ref().is_some_and(is_directory) {
                set_time(&place, *mtime)?;
            }
        }
        Ok(())
    }
}

/// A 0/0 character device, unless the same layer has something of that name: whiteouts are about the layers below.
fn white_out(place: Place) -> io::Result<()> {
    if place.name.is_empty() || place.name == b"." || place.name == b".." || place.stat()?.is_some() {
        return Ok(());
    }
    rustix::fs::mknodat(
        &place.parent,
        place.name.as_slice(),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o600),
        0,
    )?;
    Ok(())
}

/// Owner first, since a change of it clears set-user-ID bits and capabilities.
fn dress(place: &Place, attributes: &Attributes, is_link: bool) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::chownat(
        &place.parent,
        place.name.as_slice(),
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    for (name, value) in &attributes.xattrs {
        place.set_xattr(name, value)?;
    }
    if !is_link {
        rustix::fs::chmodat(
            &place.parent,
            place.name.as_slice(),
            Mode::from_raw_mode(attributes.mode),
            AtFlags::empty(),
        )?;
    }
    set_time(place, attributes.mtime)
}

fn set_time(place: &Place, mtime: Timespec) -> io::Result<()> {
    let times = Timestamps { last_access: mtime, last_modification: mtime };
    Ok(rustix::fs::utimensat(&place.parent, place.name.as_slice(), &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn attributes(entry: &mut Entry<'_, impl Read>) -> io::Result<Attributes> {
    let header = entry.header();
    let number =
        |value: u64| u32::try_from(value).map_err(|_| io::Error::other("an owner that does not fit 32 bits"));
    let mut attributes = Attributes {
        mode: header.mode()? & 0o7777,
        uid: number(header.uid()?)?,
        gid: number(header.gid()?)?,
        mtime: Timespec { tv_sec: i64::try_from(header.mtime()?).unwrap_or(0), tv_nsec: 0 },
        xattrs: Vec::new(),
    };
    let Some(extensions) = entry.pax_extensions()? else { return Ok(attributes) };
    for extension in extensions {
        let extension = extension?;
        let (key, value) = (extension.key_bytes(), extension.value_bytes());
        match key {
            b"mtime" => {
                if let Some(mtime) = std::str::from_utf8(value).ok().and_then(time) {
                    attributes.mtime = mtime;
                }
            }
            b"uid" | b"gid" => {
                let text =
                    std::str::from_utf8(value).map_err(|_| io::Error::other("an owner that is no number"))?;
                let id = text.parse().map_err(|_| io::Error::other("an owner that is no number"))?;
                if key == b"uid" { attributes.uid = id } else { attributes.gid = id }
            }
            _ if key.starts_with(b"GNU.sparse.") => {
                // What follows is a map of the file, not the file.
                return Err(io::Error::other("sparse files in PAX format are not supported"));
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    // overlayfs' own are not the image's to set: they can point anywhere in the layers below.
                    if !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.") {
                        attributes.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
    }
    Ok(attributes)
}

/// `-1.25`, as PAX writes times.
fn time(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: i64 = digits.parse().ok()?;
    if nanos == 0 {
        return Some(Timespec { tv_sec: seconds, tv_nsec: 0 });
    }
    if whole.starts_with('-') {
        // Nanoseconds count forward.
        return Some(Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos });
    }
    Some(Timespec { tv_sec: seconds, tv_nsec: nanos })
}

fn of(name: &[u8], error: io::Error) -> io::Error {
    let name: String = String::from_utf8_lossy(name).chars().take(200).collect();
    io::Error::new(error.kind(), format!("{name:?}: {error}"))
}

#[cfg(test)]
mod tests;
