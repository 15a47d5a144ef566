//! All layers of one daemon.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::{Arc, Weak};

use oci_spec::image::Digest;
use tokio::runtime::Handle;

use crate::budget::Budget;
use crate::disk::boot::BootId;
use crate::disk::directory::{self, DirectoryError, LayerFiles};
use crate::disk::manifest;
use crate::engine::Engine;
use crate::error::{CreateError, FileError, OpenError, OpenLayerError};
use crate::key::LayerKey;
use crate::layer::Layer;
use crate::options::StoreOptions;
use crate::shelf::{self, Pin, Shelf};
use crate::start::Command;
use crate::toc::{self, Plan};

/// The layer files below one root, and the engine that fills them. Only one store may be open on a root.
#[derive(Debug)]
pub struct LayerStore {
    engine: Arc<Engine>,
    boot: BootId,
    shelf: Arc<Shelf>,
}

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
        for name in shelf::names(&layers)? {
            if name.starts_with(directory::MAKING) || name.starts_with(directory::TRASH) {
                let path = layers.join(name);
                std::fs::remove_dir_all(&path).map_err(FileError::of("remove", &path))?;
            }
        }
        let budget = Budget::open(&layers, &options, shelf::disk_use(&layers)?)
            .map_err(FileError::of("open", &layers))?;
        let budget = Arc::new(budget);
        let (release, trim_pause) = (options.release, options.trim_pause);
        let engine = Engine::start(options, Arc::clone(&budget), runtime.clone())
            .map_err(|source| OpenError::Thread { source })?;
        let shelf = Arc::new(Shelf::new(layers, Arc::clone(&budget), release));
        runtime.spawn(shelf::make_room(Arc::downgrade(&shelf), budget, trim_pause));
        Ok(Self { engine, boot, shelf })
    }

    /// The layer, if it is on disk (from before a restart, or for another image): needs neither zTOC nor network.
    ///
    /// Damaged files are removed, and the layer then counts as absent. Blocking; call it off the async threads.
    pub fn open_layer(&self, key: &LayerKey) -> Result<Option<Arc<Layer>>, OpenLayerError> {
        let name = key.directory_name()?;
        let place = self.shelf.place(key);
        let mut current = place.lock(key, self.engine.options.lock_timeout)?;
        let opened = self.open_locked(key, &name, &mut current);
        drop(current);
        if !matches!(opened, Ok(Some(_))) {
            self.shelf.forget(key);
        }
        opened
    }

    /// The layer, made from its zTOC unless it is there already. Blocking; call it off the async threads.
    ///
    /// Takes a few milliseconds for each ten thousand files, and what the disk needs to have the result for good.
    pub fn create_layer(&self, key: &LayerKey, ztoc: &[u8]) -> Result<Arc<Layer>, CreateError> {
        let open = |source| CreateError::Open { source: Box::new(source) };
        let name = key.directory_name()?;
        let place = self.shelf.place(key);
        let mut current = place.lock(key, self.engine.options.lock_timeout).map_err(open)?;
        let created = self.create_locked(key, &name, ztoc, &mut current);
        drop(current);
        if created.is_err() {
            self.shelf.forget(key);
        }
        created
    }

    fn create_locked(
        &self,
        key: &LayerKey,
        name: &str,
        ztoc: &[u8],
        current: &mut Weak<Layer>,
    ) -> Result<Arc<Layer>, CreateError> {
        let open = |source| CreateError::Open { source: Box::new(source) };
        if let Some(layer) = self.open_locked(key, name, current).map_err(open)? {
            return Ok(layer);
        }
        // What is wrong with something else than was asked for is of no interest.
        let plan = Plan::of(ztoc, self.engine.options.max_span)
            .or_else(|error| toc::compare(ztoc, &key.ztoc).and(Err(error)))?;
        let layers = self.shelf.layers();
        directory::create(layers, key, name, &plan, self.boot)?;
        self.engine.budget.spent(directory::disk_use(&layers.join(name))?);
        self.open_locked(key, name, current)
            .map_err(open)?
            .ok_or_else(|| CreateError::ReadBack { key: key.clone() })
    }

    /// Keeps a layer on disk, whether or not anybody has it open: somebody is about to open it, who needs this very file.
    pub fn pin(&self, key: LayerKey) -> Pin {
        self.shelf.pin(key)
    }

    /// Removes every layer that is neither in `keep` nor pinned nor held by anybody (an [`Arc<Layer>`] alive), and returns how many bytes of disk that
    /// freed. A layer that cannot be removed is logged and left for the next time. Blocking.
    pub fn remove_unused(&self, keep: &HashSet<LayerKey>) -> Result<u64, FileError> {
        self.shelf.remove_unused(keep)
    }

    /// A container is about to start on these layers, the uppermost first: the files that nearly every start reads are fetched. From now on, what a
    /// program needs that is read from one of them is looked for in all, and fetched ahead of it.
    pub fn starts(&self, from_above: &[Arc<Layer>]) {
        self.engine.starts(from_above);
    }

    /// A container on these layers, the uppermost first, is about to run this: what its command line names is fetched, and what that needs.
    pub fn runs(&self, from_above: &[Arc<Layer>], command: Command) {
        self.engine.runs(from_above, command);
    }

    /// Layer files that can be mounted in the place of one that would have to be made: of the same layer by another zTOC, complete, checked as a whole, and
    /// what the configuration of the image says that they were mounted for. Each comes with its diff ID; whoever mounts one for another image has to compare that with what that image's own
    /// configuration says. Nothing where the layer's own file is here. Blocking.
    pub fn twins(&self, key: &LayerKey) -> Result<Vec<(LayerKey, Digest)>, FileError> {
        self.shelf.twins(key)
    }

    /// Bytes of disk that all layers take. Blocking.
    pub fn disk_use(&self) -> Result<u64, FileError> {
        shelf::disk_use(self.shelf.layers())
    }

    /// The layers on disk, in no particular order. Blocking.
    pub fn keys(&self) -> Result<Vec<LayerKey>, FileError> {
        self.shelf.keys()
    }

    /// The layers that are open. What holds one of them keeps it on disk.
    pub fn open_layers(&self) -> Vec<Arc<Layer>> {
        self.shelf.open_layers()
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
        let path = self.shelf.layers().join(name);
        match LayerFiles::open(&path, key, self.boot) {
            Ok(files) => {
                let layer = Arc::new(Layer::new(key.clone(), path, files, Arc::clone(&self.engine)));
                *current = Arc::downgrade(&layer);
                // What an earlier life found out counts from the beginning.
                layer.judge();
                Ok(Some(layer))
            }
            Err(DirectoryError::Absent) => Ok(None),
            Err(DirectoryError::Damaged(damage)) => {
                tracing::warn!(%key, %damage, "a damaged layer is removed");
                directory::remove(self.shelf.layers(), name)?;
                Ok(None)
            }
            Err(DirectoryError::Format(found)) => {
                Err(OpenLayerError::Format { key: key.clone(), found, known: manifest::FORMAT })
            }
            Err(DirectoryError::File(error)) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever names layers that never come here must not make the daemon grow.
    #[tokio::test]
    async fn what_never_came_here_is_not_remembered() {
        let root = tempfile::tempdir().unwrap();
        let store = LayerStore::open(StoreOptions::new(root.path()), Handle::current()).unwrap();
        let digest = |digit: char| format!("sha256:{}", String::from(digit).repeat(64)).parse().unwrap();
        let key = LayerKey { layer: digest('a'), ztoc: digest('b') };
        assert!(store.open_layer(&key).unwrap().is_none());
        assert!(matches!(store.create_layer(&key, b"no zTOC"), Err(CreateError::Digest { .. })));
        assert_eq!(store.shelf.places(), 0);
    }
}
