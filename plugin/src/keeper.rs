//! The keeper: holds what must not end with the daemon, so that kill -9, a crash, a restart and an upgrade are no events for containers.
//!
//! A FUSE mount lives as long as somebody has its `/dev/fuse` descriptor open. The daemon gives a copy of each to a keeper before it mounts,
//! and a successor takes them back and goes on (`fuse::handshake`). A keeper is a store of descriptors by name and knows nothing else: systemd's
//! where there is one ([`systemd`]), else a process of this same program ([`process`], [`client`], [`wire`]), or both ([`place`]). What belongs to a descriptor is
//! in a memory file beside it ([`record`]); so are the credentials that rpull handed over. Nothing of it is ever on disk.
//!
//! Where no keeper can be had there is one warning, and mounts end with the daemon.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};

pub(crate) mod client;
mod place;
pub mod process;
mod record;
mod systemd;
mod wire;

#[cfg(test)]
mod tests;

pub use process::HolderOptions;
pub use record::{Agreed, MountRecord};

use crate::snapshot::{Id, LazyRecord};
use client::Client;
use place::Place;
use record::{Content, RecordFile};

const MOUNT: &str = "soci-mount-";
const SECRETS: &str = "soci-secrets-";

/// How a keeper is found, and what it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeeperOptions {
    /// For a keeper process that is started; one that is there goes on with its own.
    pub holder: HolderOptions,
    /// How long it may take to answer, that it is looked for at the start, and between two attempts to replace one that died.
    pub answer: Duration,
    /// Bytes of secrets that are taken back.
    pub secrets_bytes: usize,
}

/// A handle on the keeper, wherever it is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: KeeperOptions,
    place: Mutex<Place>,
    next: AtomicU64,
    warned: AtomicBool,
    /// Under which name the secrets are.
    secrets: Mutex<Option<Name>>,
}

/// What a keeper still had at the start.
#[derive(Debug, Default)]
pub struct Kept {
    /// Mounts, in the order in which they were made.
    pub mounts: Vec<KeptMount>,
    /// What [`Keeper::keep_secrets`] was given last.
    pub secrets: Option<Vec<u8>>,
    /// Mounts that only a later version of this program can go on with. They stay with the keeper.
    pub later: usize,
}

/// A mount that was handed over.
#[derive(Debug)]
pub struct KeptMount {
    /// What is known of it.
    pub record: MountRecord,
    device: OwnedFd,
    hold: Hold,
}

/// A mount that was found.
#[derive(Debug)]
enum Mount {
    Ours(Box<KeptMount>),
    /// Its record has this format.
    Later(u32),
}

/// The keeper's hold on one mount. Stays when it is dropped, unless [`Hold::release`] is called.
#[derive(Debug)]
pub struct Hold(Option<Holding>);

#[derive(Debug)]
struct Holding {
    keeper: Keeper,
    name: Name,
    record: RecordFile,
}

/// Name of something that is held: `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name(String);

/// Why something is not kept.
#[derive(Debug, thiserror::Error)]
enum HoldError {
    #[error("the keeper has no room")]
    Full,
    #[error("failed to reach the keeper")]
    System(#[source] io::Error),
}

// === impl Name ===

impl Name {
    const MAX: usize = 64;

    fn from_bytes(bytes: &[u8]) -> Option<Name> {
        let valid = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        let text = std::str::from_utf8(bytes).ok()?;
        ((1..=Name::MAX).contains(&bytes.len()) && bytes.iter().all(valid)).then(|| Name(text.to_owned()))
    }

    /// Sorts by number.
    fn numbered(kind: &str, number: u64) -> Name {
        Name(format!("{kind}{number:016x}"))
    }

    fn number(&self) -> Option<u64> {
        let digits = self.0.strip_prefix(MOUNT).or_else(|| self.0.strip_prefix(SECRETS))?;
        u64::from_str_radix(digits, 16).ok()
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Keeper ===

impl Keeper {
    /// Whether something of this name, which a service manager passed, is for [`Keeper::open`].
    #[must_use]
    pub fn owns(name: &str) -> bool {
        named(name).is_some()
    }

    /// The keeper of the daemon at `root` (an absolute path), started where there is none, and what it kept. `inherited` is what a service
    /// manager kept. Blocking.
    pub fn open(root: &Path, inherited: Vec<(String, OwnedFd)>, options: KeeperOptions) -> (Keeper, Kept) {
        let mut found: BTreeMap<Name, Vec<OwnedFd>> = BTreeMap::new();
        for (name, descriptor) in inherited {
            if let Some(name) = named(&name) {
                found.entry(name).or_default().push(descriptor);
            }
        }
        let place = Place::open(root, &mut found, options);
        let next = found.keys().filter_map(Name::number).max().map_or(0, |last| last.saturating_add(1));
        let keeper = Keeper(Arc::new(Shared {
            options,
            place: Mutex::new(place),
            next: AtomicU64::new(next),
            warned: AtomicBool::new(false),
            secrets: Mutex::default(),
        }));
        keeper.watch();
        let kept = keeper.take(found);
        (keeper, kept)
    }

    /// Whether what this process leaves mounted is kept for a successor.
    #[must_use]
    pub fn keeps(&self) -> bool {
        !matches!(*self.0.place.lock(), Place::Nowhere)
    }

    /// Holds the device of a mount that is about to be made, see [`MountRecord`]. What cannot be held is mounted all the same, and ends with the daemon.
    pub fn hold(
        &self,
        snapshot: Id,
        lazy: &LazyRecord,
        layer_file: bool,
        metadata: &str,
        device: impl AsFd,
    ) -> Hold {
        let record = RecordFile::begin(snapshot, lazy, layer_file, metadata);
        let held = record.map_err(HoldError::System).and_then(|record| {
            let copy =
                |descriptor: &dyn AsFd| descriptor.as_fd().try_clone_to_owned().map_err(HoldError::System);
            let descriptors = vec![copy(&device)?, copy(record.descriptor())?];
            let name = Name::numbered(MOUNT, self.0.next.fetch_add(1, Ordering::Relaxed));
            let kept = self.0.place.lock().hold(name.clone(), descriptors)?;
            Ok(kept.then(|| Holding { keeper: self.clone(), name, record }))
        });
        Hold(held.unwrap_or_else(|error| {
            self.warn(&error);
            None
        }))
    }

    /// Keeps some bytes in the place of those that it was given before. They are never shown. `secrets` is asked when it is this call's turn, so
    /// that the last call has the last word. Blocking, for moments.
    pub fn keep_secrets(&self, secrets: impl FnOnce() -> Vec<u8>) {
        let mut current = self.0.secrets.lock();
        let held = record::memory("soci-secrets").map_err(HoldError::System).and_then(|file| {
            let file = File::from(file);
            file.write_all_at(&secrets(), 0).map_err(HoldError::System)?;
            let name = Name::numbered(SECRETS, self.0.next.fetch_add(1, Ordering::Relaxed));
            let kept = self.0.place.lock().hold(name.clone(), vec![file.into()])?;
            Ok(kept.then_some(name))
        });
        match held {
            Ok(Some(name)) => {
                if let Some(old) = current.replace(name) {
                    self.release(&old);
                }
            }
            Ok(None) => {}
            Err(error) => self.warn(&error),
        }
    }

    /// Lets go of everything; a keeper process ends.
    pub fn end(&self) {
        let ended = self.0.place.lock().end();
        if let Err(error) = ended {
            tracing::warn!(error = %error, "failed to end the keeper");
        }
    }

    /// Ends the keeper process of the daemon at `root`, where there is one and no daemon.
    ///
    /// # Errors
    /// It does not answer.
    pub fn end_of(root: &Path, options: KeeperOptions) -> io::Result<()> {
        match Client::find(root, options) {
            Some(mut client) => client.end(),
            None => Ok(()),
        }
    }

    fn release(&self, name: &Name) {
        let released = self.0.place.lock().release(name);
        if let Err(error) = released {
            self.warn(&HoldError::System(error));
        }
    }

    fn warn(&self, error: &HoldError) {
        if !self.0.warned.swap(true, Ordering::Relaxed) {
            let error = crate::telemetry::chain(error);
            tracing::warn!(error, "the keeper fails; some of what is mounted now ends with this process");
        }
    }

    /// Sorts what was found.
    fn take(&self, found: BTreeMap<Name, Vec<OwnedFd>>) -> Kept {
        let mut kept = Kept::default();
        for (name, descriptors) in found {
            if name.0.starts_with(SECRETS) {
                let secrets = descriptors.into_iter().next().map(File::from);
                match secrets.and_then(|file| record::read(&file, self.0.options.secrets_bytes).ok()) {
                    // Names are sorted: the last one counts.
                    Some(secrets) => {
                        kept.secrets = Some(secrets);
                        if let Some(old) = self.0.secrets.lock().replace(name) {
                            self.release(&old);
                        }
                    }
                    None => self.release(&name),
                }
                continue;
            }
            match self.mount(name.clone(), descriptors) {
                Some(Mount::Ours(mount)) => kept.mounts.push(*mount),
                Some(Mount::Later(format)) => {
                    tracing::warn!(%name, format, "a mount of a later version of this program is kept for it");
                    kept.later = kept.later.saturating_add(1);
                }
                None => {
                    tracing::warn!(%name, "a kept mount that is not understood; it ends");
                    self.release(&name);
                }
            }
        }
        kept
    }

    fn mount(&self, name: Name, descriptors: Vec<OwnedFd>) -> Option<Mount> {
        let (mut device, mut file) = (None, None);
        for descriptor in descriptors {
            let descriptor = File::from(descriptor);
            let is_device = descriptor.metadata().ok()?.file_type().is_char_device();
            if is_device { &mut device } else { &mut file }.replace(OwnedFd::from(descriptor));
        }
        let file = RecordFile::from(file?);
        let record = match file.read().ok()? {
            Content::Record(record) => *record,
            Content::Later(format) => return Some(Mount::Later(format)),
            Content::Nothing => return None,
        };
        let hold = Hold(Some(Holding { keeper: self.clone(), name, record: file }));
        Some(Mount::Ours(Box::new(KeptMount { record, device: device?, hold })))
    }

    /// Gives everything to another keeper process as soon as this one dies.
    fn watch(&self) {
        if self.0.place.lock().client().is_none() {
            return;
        }
        let shared = Arc::downgrade(&self.0);
        let watch =
            thread::Builder::new().name("keeper-watch".into()).spawn(move || while watched(&shared) {});
        if let Err(error) = watch {
            tracing::warn!(error = %error, "the keeper is not watched");
        }
    }
}

/// Waits for the end of a connection and sees to the next; false when there is to be none.
fn watched(shared: &Weak<Shared>) -> bool {
    let connection = {
        let Some(shared) = shared.upgrade() else { return false };
        let place = shared.place.lock();
        place.client().and_then(Client::watched)
    };
    let Some(connection) = connection else { return false };
    let mut polled = [PollFd::new(&connection, PollFlags::RDHUP)];
    if rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None)).is_err() {
        return false;
    }
    let Some(shared) = shared.upgrade() else { return false };
    let again = shared.place.lock().client_mut().map_or(Ok(false), Client::again);
    match again {
        Ok(true) => tracing::warn!("the keeper had ended; there is another one"),
        Ok(false) => return false,
        Err(error) => {
            tracing::error!(error = %error, "the keeper has ended and cannot be started again");
            let pause = shared.options.answer;
            drop(shared);
            thread::sleep(pause);
        }
    }
    true
}

/// The name of something that this program had held.
fn named(text: &str) -> Option<Name> {
    Name::from_bytes(text.as_bytes()).filter(|name| name.number().is_some())
}

// === impl KeptMount ===

impl KeptMount {
    /// The device, and the hold on it.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Hold) {
        (self.device, self.hold)
    }

    /// Lets go of it: with the last other user of the device the mount is dead.
    pub fn release(self) {
        self.hold.release();
    }
}

// === impl Hold ===

impl Hold {
    /// None: the mount ends with this process.
    #[must_use]
    pub fn none() -> Hold {
        Hold(None)
    }

    /// Notes that the mount is made, and what was agreed on.
    pub fn ready(&self, agreed: Agreed) {
        if let Some(Holding { keeper, record, .. }) = &self.0
            && let Err(error) = record.ready(agreed)
        {
            keeper.warn(&HoldError::System(error));
        }
    }

    /// Notes that the daemon may have been given requests with numbers up to this one, see [`MountRecord::asked`].
    pub fn asked(&self, number: u64) {
        if let Some(Holding { keeper, record, .. }) = &self.0
            && let Err(error) = record.asked(number)
        {
            keeper.warn(&HoldError::System(error));
        }
    }

    /// Lets go: the mount is gone.
    pub fn release(&self) {
        if let Some(Holding { keeper, name, .. }) = &self.0 {
            keeper.release(name);
        }
    }
}
