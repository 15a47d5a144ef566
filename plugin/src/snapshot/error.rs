//! What the verbs fail with.

use std::path::PathBuf;

use super::filter::FilterError;
use super::store::StoreError;

/// Why a verb did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A filter that cannot be understood.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The layer is here already, or has just come: containerd need not unpack it. Not a failure.
    #[error("target snapshot {target:?}: already exists")]
    Prepared {
        /// Its chain ID.
        target: String,
    },
    /// A lazily loaded layer in the chain is not mounted.
    #[error("layer {id:?} unavailable")]
    Unavailable {
        /// Number of its snapshot.
        id: String,
    },
    /// The layer's directory is in a state that nobody knows.
    #[error("mount layer: {0}")]
    Stuck(String),
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The work was dropped because the daemon ends.
    #[error("the daemon is stopping")]
    Stopping,
}
