//! What all layers of a store share.

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::buffers::Buffers;
use crate::options::StoreOptions;
use crate::pool::Pool;

/// Memory is counted in units of this many bytes.
const UNIT: u64 = 1024;

/// The shared parts of the fetch engine, with their bounds.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) options: StoreOptions,
    pub(crate) runtime: Handle,
    pub(crate) pool: Pool,
    pub(crate) buffers: Buffers,
    /// One permit for each ranged read under way.
    pub(crate) fetches: Arc<Semaphore>,
    /// One permit for each KiB of compressed bytes in memory.
    pub(crate) memory: Arc<Semaphore>,
}

impl Engine {
    pub(crate) fn start(options: StoreOptions, runtime: Handle) -> io::Result<Arc<Self>> {
        let units =
            usize::try_from(memory_units(options.max_bytes_in_flight, u64::MAX)).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            pool: Pool::start(options.inflate_threads)?,
            buffers: Buffers::new(options.pooled_buffers),
            fetches: Arc::new(Semaphore::new(options.max_fetches.clamp(1, Semaphore::MAX_PERMITS))),
            memory: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            options,
            runtime,
        }))
    }

    /// Permits that `bytes` in memory need: never more than there are.
    pub(crate) fn memory_for(&self, bytes: u64) -> u32 {
        memory_units(bytes, self.options.max_bytes_in_flight)
    }
}

fn memory_units(bytes: u64, limit: u64) -> u32 {
    u32::try_from(bytes.min(limit).div_ceil(UNIT).max(1)).unwrap_or(u32::MAX)
}
