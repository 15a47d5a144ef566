//! zTOCs on their way: each is fetched once, however many want it, and no more bytes of them are in memory than there may be.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oci_registry::Repository;
use oci_spec::image::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Resolver;
use super::content::{Origin, What, fetch};
use super::flights::Flights;

/// Bytes are counted in these.
const UNIT: u64 = 1024;

/// All zTOCs that are in memory.
#[derive(Debug)]
pub(super) struct Ztocs {
    flights: Flights<Question, Result<Arc<Fetched>, Arc<str>>>,
    /// A permit for each unit.
    room: Arc<Semaphore>,
    units: u32,
    /// The half of it that those may take which only wait for containerd.
    waiting: Arc<Semaphore>,
}

/// Asked by namespace too, because that says which content store has it.
type Question = (Option<String>, Repository, Digest);

/// A zTOC, and its part of the room as long as anybody has it.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) bytes: Bytes,
    pub(super) origin: Origin,
    _room: OwnedSemaphorePermit,
}

/// A zTOC that waits for containerd.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ztoc: Arc<Fetched>,
    _room: OwnedSemaphorePermit,
}

// === impl Ztocs ===

impl Ztocs {
    /// At most so many bytes, which one of the largest has to fit into, of at most so many zTOCs.
    pub(super) fn new(bytes: u64, questions: usize) -> Ztocs {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(2);
        let semaphore = |units: u32| Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX));
        Ztocs {
            flights: Flights::new(questions),
            room: Arc::new(semaphore(units)),
            units,
            waiting: Arc::new(semaphore(units / 2)),
        }
    }

    /// Room for one of so many bytes, when there is some. One that would not fit at all has all of it.
    async fn room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).acquire_many_owned(self.units_of(bytes)).await.ok()
    }

    /// The same zTOC, to be kept until containerd has it; none where too many wait for that.
    pub(super) fn waiting(&self, ztoc: &Arc<Fetched>) -> Option<Waiting> {
        let units = self.units_of(ztoc.bytes.len() as u64);
        let room = Arc::clone(&self.waiting).try_acquire_many_owned(units).ok()?;
        Some(Waiting { ztoc: Arc::clone(ztoc), _room: room })
    }

    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units)
    }
}

// === impl Resolver ===

impl Resolver {
    /// A zTOC from containerd, else from the registry, within the mount deadline. `size` is what the index says; a larger one is refused. Its digest is
    /// still to be compared.
    pub(super) async fn ztoc(
        self: &Arc<Self>,
        namespace: Option<&str>,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Arc<Fetched>, String> {
        let deadline = self.options.mount_deadline;
        let late = || format!("ztoc {digest}: not here within {deadline:?}");
        let this = Arc::clone(self);
        let question = (namespace.map(str::to_owned), repository.clone(), digest.clone());
        let asked = question.clone();
        let find = move || async move {
            let (namespace, repository, digest) = asked;
            let found = this.find_ztoc(namespace.as_deref(), &repository, &digest, size);
            let found = tokio::time::timeout(deadline, found).await;
            found
                .unwrap_or_else(|_| Err(format!("ztoc {digest}: no answer within {deadline:?}")))
                .map_err(Arc::from)
        };
        let found = self.ztocs.flights.ask(question, deadline, |_| Duration::ZERO, find).await;
        found.ok_or_else(late)?.map_err(|error: Arc<str>| error.to_string())
    }

    /// The same for who does not compare its digest himself: where containerd's copy turns out to be damaged, the registry's.
    pub(super) async fn compared_ztoc(
        self: &Arc<Self>,
        namespace: Option<&str>,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Arc<Fetched>, String> {
        let ztoc = self.ztoc(namespace, repository, digest, size).await?;
        if ztoc.origin == Origin::Registry || soci_index::digest_of(&ztoc.bytes) == *digest {
            return Ok(ztoc);
        }
        // Its part of the room may be what the other one waits for.
        drop(ztoc);
        self.ztoc(None, repository, digest, size).await
    }

    async fn find_ztoc(
        &self,
        namespace: Option<&str>,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Arc<Fetched>, String> {
        let containerd = self.containerd(namespace);
        let size = match (size, &containerd) {
            (None, Some(containerd)) => {
                containerd.content().info(digest).await.ok().flatten().map(|found| found.size)
            }
            (size, _) => size,
        };
        let limit = size.unwrap_or(u64::MAX).min(self.options.max_ztoc_bytes);
        let room = self.ztocs.room(limit).await.ok_or("the daemon is stopping")?;
        let fetched =
            fetch(containerd.as_ref(), &self.registries, repository, digest, What::Ztoc, limit).await;
        let (bytes, origin) =
            fetched.map_err(|error| format!("ztoc {digest}: {}", crate::telemetry::chain(&error)))?;
        Ok(Arc::new(Fetched { bytes, origin, _room: room }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fetched(ztocs: &Ztocs, bytes: usize) -> Arc<Fetched> {
        let room = ztocs.room(bytes as u64).await.unwrap();
        Arc::new(Fetched { bytes: vec![0; bytes].into(), origin: Origin::Registry, _room: room })
    }

    #[tokio::test]
    async fn what_waits_for_containerd_leaves_half_the_room() {
        let ztocs = Ztocs::new(16 << 10, 4);
        let first = fetched(&ztocs, 5000).await;
        let waiting = ztocs.waiting(&first).unwrap();
        assert!(Arc::ptr_eq(&waiting.ztoc, &first));
        drop(first);
        assert_eq!(ztocs.room.available_permits(), 11);
        let second = fetched(&ztocs, 5000).await;
        assert!(ztocs.waiting(&second).is_none(), "another does not fit into the half");
        drop((waiting, second));
        assert_eq!((ztocs.room.available_permits(), ztocs.waiting.available_permits()), (16, 8));
        // Larger than all there is: nobody else has any then.
        let large = fetched(&ztocs, 64 << 10).await;
        assert_eq!(ztocs.room.available_permits(), 0);
        assert!(ztocs.waiting(&large).is_none());
    }
}
