//! The sources that are attached to a layer.

use std::sync::Arc;

use tokio::sync::watch;

use crate::source::BlobSource;

/// Identity of an attachment within its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceId(u64);

/// A source with its identity.
#[derive(Clone, Debug)]
pub(crate) struct AttachedSource {
    pub(crate) id: SourceId,
    pub(crate) source: Arc<dyn BlobSource>,
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
            list.attached.insert(0, AttachedSource { id, source });
        });
        id
    }

    pub(crate) fn detach(&self, id: SourceId) {
        self.0.send_modify(|list| list.attached.retain(|attached| attached.id != id));
    }

    /// The sources as they are now.
    pub(crate) fn list(&self) -> Vec<AttachedSource> {
        self.0.borrow().attached.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().attached.is_empty()
    }

    /// Resolves when the source has been detached.
    pub(crate) async fn detached(&self, id: SourceId) {
        let mut changes = self.0.subscribe();
        let gone = |list: &List| !list.attached.iter().any(|attached| attached.id == id);
        // The sender lives as long as `self`, so this cannot fail.
        let _ = changes.wait_for(gone).await;
    }
}
