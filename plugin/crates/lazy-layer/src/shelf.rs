//! The directories of a store's layers: which are open, which may go.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use oci_spec::image::Digest;
use parking_lot::{Mutex, MutexGuard};

use crate::budget::Budget;
use crate::disk::checked::Checked;
use crate::disk::{directory, name};
use crate::error::{FileError, OpenLayerError};
use crate::key::LayerKey;
use crate::layer::Layer;

/// All layers on disk, and those that are open.
#[derive(Debug)]
pub(crate) struct Shelf {
    layers: PathBuf,
    /// Layers that were opened, each with a lock for those who work on its directory.
    open: Mutex<HashMap<LayerKey, Arc<Place>>>,
    /// Layers that stay though nobody has them open, each with how often that was asked for.
    pinned: Mutex<HashMap<LayerKey, usize>>,
    budget: Arc<Budget>,
    /// See [`StoreOptions::release`](crate::StoreOptions::release).
    release: Duration,
}

/// Keeps one layer on disk, open or not, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the layer go"]
pub struct Pin {
    shelf: Arc<Shelf>,
    key: LayerKey,
}

/// One layer's place: held while its directory is made, opened or removed.
#[derive(Debug, Default)]
pub(crate) struct Place(Mutex<Weak<Layer>>);

// === impl Shelf ===

impl Shelf {
    pub(crate) fn new(layers: PathBuf, budget: Arc<Budget>, release: Duration) -> Self {
        Self { layers, open: Mutex::default(), pinned: Mutex::default(), budget, release }
    }

    /// The directory that the layers' directories are in.
    pub(crate) fn layers(&self) -> &Path {
        &self.layers
    }

    pub(crate) fn place(&self, key: &LayerKey) -> Arc<Place> {
        Arc::clone(self.open.lock().entry(key.clone()).or_default())
    }

    pub(crate) fn pin(self: &Arc<Self>, key: LayerKey) -> Pin {
        let mut pinned = self.pinned.lock();
        let times = pinned.entry(key.clone()).or_default();
        *times = times.saturating_add(1);
        drop(pinned);
        Pin { shelf: Arc::clone(self), key }
    }

    #[cfg(test)]
    pub(crate) fn places(&self) -> usize {
        self.open.lock().len()
    }

    /// The layers on disk, in no particular order.
    pub(crate) fn keys(&self) -> Result<Vec<LayerKey>, FileError> {
        Ok(names(&self.layers)?.iter().filter_map(|name| LayerKey::from_directory_name(name)).collect())
    }

    /// Other files of the same layer that are as described and what an image says, each with the digest of its tar; none where the layer's own is here.
    pub(crate) fn twins(&self, key: &LayerKey) -> Result<Vec<(LayerKey, Digest)>, FileError> {
        let keys = self.keys()?;
        if keys.contains(key) {
            return Ok(Vec::new());
        }
        let of_layer = keys.into_iter().filter(|other| other.layer == key.layer);
        let twin = |other: LayerKey| {
            let found = Checked::read(&self.layers.join(other.directory_name().ok()?))?;
            let hex: String = found.digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let is_right = found.as_described && found.confirmed;
            Some((other, format!("sha256:{hex}").parse().ok()?)).filter(|_| is_right)
        };
        Ok(of_layer.filter_map(twin).collect())
    }

    /// The layers that are open.
    pub(crate) fn open_layers(&self) -> Vec<Arc<Layer>> {
        let places: Vec<Arc<Place>> = self.open.lock().values().cloned().collect();
        // A place that is being worked on has no layer to show yet.
        places.iter().filter_map(|place| place.0.try_lock()?.upgrade()).collect()
    }

    /// Removes every layer that is neither in `keep` nor pinned nor held by anybody, and says how many bytes that freed.
    pub(crate) fn remove_unused(&self, keep: &HashSet<LayerKey>) -> Result<u64, FileError> {
        let mut freed = 0u64;
        let patience = Instant::now() + self.release;
        for key in self.keys()?.into_iter().filter(|key| !keep.contains(key)) {
            freed = freed.saturating_add(self.remove(&key, patience).unwrap_or(0));
        }
        Ok(freed)
    }

    /// Makes room: layers that nobody has open go, those first whose last opening is longest ago. What is open or pinned stays, whatever it takes.
    pub(crate) fn trim(&self) -> Result<u64, FileError> {
        self.budget.measured(disk_use(&self.layers)?);
        let mut closed: Vec<(SystemTime, LayerKey)> = self
            .keys()?
            .into_iter()
            .filter_map(|key| {
                let states = self.layers.join(key.directory_name().ok()?).join(name::STATES);
                let opened = std::fs::metadata(states).and_then(|meta| meta.modified());
                Some((opened.unwrap_or(SystemTime::UNIX_EPOCH), key))
            })
            .collect();
        closed.sort_by_key(|(opened, _)| *opened);
        let mut freed = 0u64;
        for (_, key) in closed {
            if self.budget.excess() == 0 {
                break;
            }
            if let Some(bytes) = self.remove(&key, Instant::now()) {
                tracing::info!(%key, bytes, "a layer that is not mounted was removed to make room");
                freed = freed.saturating_add(bytes);
            }
        }
        Ok(freed)
    }

    /// Removes a layer that is not pinned and that nobody holds, and says how many bytes that freed. None where it stays.
    fn remove(&self, key: &LayerKey, patience: Instant) -> Option<u64> {
        let name = key.directory_name().ok()?;
        let place = self.place(key);
        // Somebody who works on it needs it.
        let current = place.0.try_lock()?;
        if self.pinned.lock().contains_key(key) || !released(&current, patience) {
            return None;
        }
        let bytes = directory::disk_use(&self.layers.join(&name));
        let removed = bytes.and_then(|bytes| directory::remove(&self.layers, &name).map(|()| bytes));
        drop(current);
        self.forget(key);
        match removed {
            Ok(bytes) => {
                self.budget.give_back(bytes);
                Some(bytes)
            }
            Err(error) => {
                tracing::warn!(%key, error = &error as &dyn std::error::Error, "a layer could not be removed");
                None
            }
        }
    }

    /// Drops the place of a layer that is not there, which the caller has, unless somebody else has come for it.
    pub(crate) fn forget(&self, key: &LayerKey) {
        let mut open = self.open.lock();
        if open.get(key).is_some_and(|place| {
            Arc::strong_count(place) == 2 && place.0.try_lock().is_some_and(|layer| layer.strong_count() == 0)
        }) {
            open.remove(key);
        }
    }
}

// === impl Pin ===

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = self.shelf.pinned.lock();
        if let Some(times) = pinned.get_mut(&self.key) {
            *times = times.saturating_sub(1);
            if *times == 0 {
                pinned.remove(&self.key);
            }
        }
    }
}

// === impl Place ===

impl Place {
    /// Waits for whoever works on the directory, `patience` at most.
    pub(crate) fn lock(
        &self,
        key: &LayerKey,
        patience: Duration,
    ) -> Result<MutexGuard<'_, Weak<Layer>>, OpenLayerError> {
        let busy = || OpenLayerError::Busy { key: key.clone(), waited: patience };
        self.0.try_lock_for(patience).ok_or_else(busy)
    }
}

/// Makes room whenever somebody found none, for as long as there is a shelf; `pause` is between two looks for what can go.
pub(crate) async fn make_room(shelf: Weak<Shelf>, budget: Arc<Budget>, pause: Duration) {
    loop {
        budget.shortage().await;
        let Some(shelf) = shelf.upgrade() else { return };
        match tokio::task::spawn_blocking(move || shelf.trim()).await {
            Ok(Ok(bytes)) => tracing::debug!(bytes, "looked for layers that can go"),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no room could be made for layers");
            }
            // The runtime ends.
            Err(_) => return,
        }
        // What is left is in use: looking again and again would free nothing.
        tokio::time::sleep(pause).await;
    }
}

/// Whether nobody holds the layer. The engine lets go of a layer a moment after its last source was detached: that moment is waited for.
fn released(layer: &Weak<Layer>, patience: Instant) -> bool {
    while let Some(held) = layer.upgrade() {
        if held.has_sources() || Instant::now() > patience {
            return false;
        }
        drop(held);
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// The names in a directory; those that are no text are none of ours.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, FileError> {
    let entries = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(FileError::of("list", directory))?;
    Ok(entries.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// Bytes of disk that all layers of a directory take.
pub(crate) fn disk_use(layers: &Path) -> Result<u64, FileError> {
    let mut bytes = 0u64;
    for name in names(layers)? {
        bytes = bytes.saturating_add(directory::disk_use(&layers.join(name))?);
    }
    Ok(bytes)
}
