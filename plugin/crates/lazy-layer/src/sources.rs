//! The sources that are attached to a layer.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::source::BlobSource;

/// Identity of an attachment within its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceId(u64);

/// A source with its identity.
#[derive(Clone, Debug)]
pub(crate) struct AttachedSource {
    pub(crate) id: SourceId,
    pub(crate) source: Arc<dyn BlobSource>,
    /// It has refused, which is believed until then.
    refuses_until: Arc<Mutex<Option<Instant>>>,
    /// Nobody begins anything on the layer because of it any more: it is there for what is read.
    reads_only: bool,
}

/// The sources of one layer, newest first.
#[derive(Debug)]
pub(crate) struct Sources(watch::Sender<List>);

#[derive(Debug, Default)]
struct List {
    next: u64,
    attached: Vec<AttachedSource>,
}

impl Sources {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(List::default()))
    }

    pub(crate) fn attach(&self, source: Arc<dyn BlobSource>) -> SourceId {
        let mut id = SourceId(0);
        self.0.send_modify(|list| {
            id = SourceId(list.next);
            list.next = list.next.wrapping_add(1);
            let new = AttachedSource { id, source, refuses_until: Arc::default(), reads_only: false };
            list.attached.insert(0, new);
        });
        id
    }

    pub(crate) fn detach(&self, id: SourceId) {
        self.0.send_modify(|list| list.attached.retain(|attached| attached.id != id));
    }

    /// From now on it is there for what is read.
    pub(crate) fn for_reads_only(&self, id: SourceId) {
        self.0.send_modify(|list| {
            let known = list.attached.iter_mut().find(|attached| attached.id == id);
            known.into_iter().for_each(|attached| attached.reads_only = true);
        });
    }

    /// Whether anybody wants the layer to be complete some day.
    pub(crate) fn fill(&self) -> bool {
        self.0.borrow().attached.iter().any(|attached| !attached.reads_only)
    }

    /// The sources as they are now.
    pub(crate) fn list(&self) -> Vec<AttachedSource> {
        self.0.borrow().attached.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().attached.is_empty()
    }

    /// The source to ask after so many failures in a row: the newest, and another one after each; not one of `refused`. One that has refused lately is asked only if
    /// somebody `waits`, and no other is left.
    pub(crate) fn choose(
        &self,
        failures: u32,
        refused: &[SourceId],
        waits: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<AttachedSource> {
        let list = self.0.borrow();
        let left = || list.attached.iter().filter(|attached| !refused.contains(&attached.id));
        let mut usable: Vec<_> = left().filter(|attached| attached.refuses(now).is_none()).collect();
        if usable.is_empty() && waits() {
            usable = left().collect();
        }
        let turn = usize::try_from(failures).ok()?.checked_rem(usable.len())?;
        usable.into_iter().nth(turn).cloned()
    }

    /// Whether all there are have refused lately.
    pub(crate) fn all_refuse(&self, now: Instant) -> bool {
        self.0.borrow().attached.iter().all(|attached| attached.refuses(now).is_some())
    }

    /// When the first that has refused lately is asked again.
    pub(crate) fn asked_again_at(&self, now: Instant) -> Option<Instant> {
        self.0.borrow().attached.iter().filter_map(|attached| attached.refuses(now)).min()
    }

    /// Resolves when the source has been detached.
    pub(crate) async fn detached(&self, id: SourceId) {
        let mut changes = self.0.subscribe();
        let gone = |list: &List| !list.attached.iter().any(|attached| attached.id == id);
        // The sender lives as long as `self`, so this cannot fail.
        let _ = changes.wait_for(gone).await;
    }
}

// === impl AttachedSource ===

impl AttachedSource {
    /// It will not deliver (gone, forbidden), or so it says: it is asked after all others until then, and not for what nobody waits for.
    pub(crate) fn refused(&self, until: Instant) {
        *self.refuses_until.lock() = Some(until);
    }

    /// It has delivered.
    pub(crate) fn delivered(&self) {
        *self.refuses_until.lock() = None;
    }

    fn refuses(&self, now: Instant) -> Option<Instant> {
        self.refuses_until.lock().filter(|until| *until > now)
    }
}
