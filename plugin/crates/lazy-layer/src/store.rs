//! All layers of one daemon.

use std::collections::{HashMap, HashSet};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use ztoc::Ztoc;

use crate::disk::boot::BootId;
use crate::disk::directory::{self, DirectoryError, LayerFiles};
use crate::disk::manifest;
use crate::engine::Engine;
use crate::error::{CreateError, FileError, OpenError, OpenLayerError};
use crate::key::LayerKey;
use crate::layer::Layer;
use crate::options::StoreOptions;
use crate::toc::Plan;

/// The layer files below one root, and the engine that fills them. Only one store may be open on a root.
#[derive(Debug)]
pub struct LayerStore {
    engine: Arc<Engine>,
    layers: PathBuf,
    boot: BootId,
    /// Layers that were opened, each with a lock for those who work on its directory.
    open: Mutex<HashMap<LayerKey, Arc<Place>>>,
}

/// How long `remove_unused` waits for the engine to let go of layers that have no source any more, altogether.
const RELEASE: Duration = Duration::from_secs(1);

/// One layer's place: held while its directory is made, opened or removed.
#[derive(Debug, Default)]
struct Place(Mutex<Weak<Layer>>);

impl LayerStore {
    /// Opens the store, making its directory where it is missing, and starts the inflate threads. `runtime` runs the fetches.
    ///
    /// What a daemon that died left half made or half removed is removed. Blocking.
    pub fn open(options: StoreOptions, runtime: Handle) -> Result<Self, OpenError> {
        let boot = BootId::read(&options.boot_id).map_err(FileError::of("read", &options.boot_id))?;
        let layers = options.root.join("layers");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&layers)
            .map_err(FileError::of("create", &layers))?;
        for name in names(&layers)? {
            if name.starts_with(directory::MAKING) || name.starts_with(directory::TRASH) {
                let path = layers.join(name);
                std::fs::remove_dir_all(&path).map_err(FileError::of("remove", &path))?;
            }
        }
        let engine = Engine::start(options, runtime).map_err(|source| OpenError::Thread { source })?;
        Ok(Self { engine, layers, boot, open: Mutex::default() })
    }

    /// The layer, if it is on disk (from before a restart, or for another image): needs neither zTOC nor network.
    ///
    /// Damaged files are removed, and the layer then counts as absent. Blocking; call it off the async threads.
    pub fn open_layer(&self, key: &LayerKey) -> Result<Option<Arc<Layer>>, OpenLayerError> {
        let name = key.directory_name()?;
        let place = self.place(key);
        let mut current = self.lock(&place, key)?;
        self.open_locked(key, &name, &mut current)
    }

    /// The layer, made from its zTOC unless it is there already. Blocking; call it off the async threads.
    ///
    /// Takes a few milliseconds for each ten thousand files, and what the disk needs to have the result for good.
    pub fn create_layer(&self, key: &LayerKey, ztoc: &[u8]) -> Result<Arc<Layer>, CreateError> {
        let open = |source| CreateError::Open { source: Box::new(source) };
        let name = key.directory_name()?;
        let place = self.place(key);
        let mut current = self.lock(&place, key).map_err(open)?;
        if let Some(layer) = self.open_locked(key, &name, &mut current).map_err(open)? {
            return Ok(layer);
        }
        let actual: [u8; 32] = Sha256::digest(ztoc).into();
        let actual = actual.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if actual != key.ztoc.digest() {
            return Err(CreateError::Digest { expected: key.ztoc.to_string(), actual });
        }
        let ztoc = Ztoc::decode(ztoc).map_err(|source| CreateError::Decode { source })?;
        let plan = Plan::of(&ztoc, self.engine.options.max_span)?;
        directory::create(&self.layers, key, &name, &plan, &ztoc)?;
        self.open_locked(key, &name, &mut current)
            .map_err(open)?
            .ok_or_else(|| CreateError::ReadBack { key: key.clone() })
    }

    /// Removes every layer that is neither in `keep` nor held by anybody (an [`Arc<Layer>`] alive), and returns how many bytes of disk that
    /// freed. A layer that cannot be removed is logged and left for the next time. Blocking.
    pub fn remove_unused(&self, keep: &HashSet<LayerKey>) -> Result<u64, FileError> {
        let mut freed = 0u64;
        let patience = Instant::now() + RELEASE;
        for name in names(&self.layers)? {
            let Some(key) = LayerKey::from_directory_name(&name).filter(|key| !keep.contains(key)) else {
                continue;
            };
            let place = self.place(&key);
            // Somebody who works on it needs it.
            let Some(current) = place.0.try_lock() else { continue };
            if !released(&current, patience) {
                continue;
            }
            let bytes = directory::disk_use(&self.layers.join(&name));
            match bytes.and_then(|bytes| directory::remove(&self.layers, &name).map(|()| bytes)) {
                Ok(bytes) => freed = freed.saturating_add(bytes),
                Err(error) => {
                    tracing::warn!(%key, error = &error as &dyn std::error::Error, "a layer could not be removed")
                }
            }
            drop(current);
            self.forget(&key);
        }
        Ok(freed)
    }

    /// Bytes of disk that all layers take. Blocking.
    pub fn disk_use(&self) -> Result<u64, FileError> {
        let mut bytes = 0u64;
        for name in names(&self.layers)? {
            bytes = bytes.saturating_add(directory::disk_use(&self.layers.join(name))?);
        }
        Ok(bytes)
    }

    /// The layers on disk, in no particular order. Blocking.
    pub fn keys(&self) -> Result<Vec<LayerKey>, FileError> {
        Ok(names(&self.layers)?.iter().filter_map(|name| LayerKey::from_directory_name(name)).collect())
    }

    /// The layers that are open. What holds one of them keeps it on disk.
    pub fn open_layers(&self) -> Vec<Arc<Layer>> {
        let places: Vec<Arc<Place>> = self.open.lock().values().cloned().collect();
        // A place that is being worked on has no layer to show yet.
        places.iter().filter_map(|place| place.0.try_lock()?.upgrade()).collect()
    }

    /// Brings the data of all open layers to the disk and marks it so, that after a reboot nothing has to be re-checked. For an orderly end; blocking.
    ///
    /// What could not be brought there is re-checked, nothing is lost. Returns the last failure, after trying all layers.
    pub fn close(&self) -> Result<(), FileError> {
        let mut result = Ok(());
        for layer in self.open_layers() {
            if let Err(error) = layer.settle() {
                result = Err(FileError::of("sync", layer.directory())(error));
            }
        }
        result
    }

    fn open_locked(
        &self,
        key: &LayerKey,
        name: &str,
        current: &mut Weak<Layer>,
    ) -> Result<Option<Arc<Layer>>, OpenLayerError> {
        if let Some(layer) = current.upgrade() {
            return Ok(Some(layer));
        }
        let path = self.layers.join(name);
        match LayerFiles::open(&path, key, self.boot) {
            Ok(files) => {
                let layer = Arc::new(Layer::new(key.clone(), path, files, Arc::clone(&self.engine)));
                *current = Arc::downgrade(&layer);
                Ok(Some(layer))
            }
            Err(DirectoryError::Absent) => Ok(None),
            Err(DirectoryError::Damaged(damage)) => {
                tracing::warn!(%key, %damage, "a damaged layer is removed");
                directory::remove(&self.layers, name)?;
                Ok(None)
            }
            Err(DirectoryError::Format(found)) => {
                Err(OpenLayerError::Format { key: key.clone(), found, known: manifest::FORMAT })
            }
            Err(DirectoryError::File(error)) => Err(error.into()),
        }
    }

    fn place(&self, key: &LayerKey) -> Arc<Place> {
        Arc::clone(self.open.lock().entry(key.clone()).or_default())
    }

    /// Drops the place of a layer that is gone, unless somebody has come for it again.
    fn forget(&self, key: &LayerKey) {
        let mut open = self.open.lock();
        if open.get(key).is_some_and(|place| {
            Arc::strong_count(place) == 2 && place.0.try_lock().is_some_and(|layer| layer.strong_count() == 0)
        }) {
            open.remove(key);
        }
    }

    fn lock<'a>(
        &self,
        place: &'a Place,
        key: &LayerKey,
    ) -> Result<MutexGuard<'a, Weak<Layer>>, OpenLayerError> {
        let waited = self.engine.options.lock_timeout;
        place.0.try_lock_for(waited).ok_or_else(|| OpenLayerError::Busy { key: key.clone(), waited })
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
fn names(directory: &Path) -> Result<Vec<String>, FileError> {
    let entries = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(FileError::of("list", directory))?;
    Ok(entries.into_iter().filter_map(|name| name.into_string().ok()).collect())
}
