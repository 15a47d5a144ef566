//! Errors as statuses: the only such table.

use tonic::{Code, Status};

use crate::snapshot::SnapshotError;
use crate::snapshot::store::StoreError;
use crate::telemetry::chain;

/// The status that containerd understands, with the text that goes with it. What is our own trouble is logged here, once.
#[must_use]
pub fn status_of(error: &SnapshotError) -> Status {
    let code = match error {
        SnapshotError::Store(error) => code_of(error),
        SnapshotError::Filter(_) => Code::InvalidArgument,
        SnapshotError::Prepared { .. } => Code::AlreadyExists,
        SnapshotError::Unavailable { .. } | SnapshotError::Stuck(_) | SnapshotError::Stopping => {
            Code::Unavailable
        }
        SnapshotError::File { .. } => Code::Internal,
    };
    let text = chain(error);
    if code == Code::Internal {
        tracing::error!(error = text, "snapshot request failed");
    }
    Status::new(code, text)
}

fn code_of(error: &StoreError) -> Code {
    match error {
        StoreError::NotFound { .. } => Code::NotFound,
        StoreError::AlreadyExists { .. } => Code::AlreadyExists,
        StoreError::ParentNotCommitted { .. } | StoreError::BadKey(_) | StoreError::Immutable(_) => {
            Code::InvalidArgument
        }
        StoreError::NotActive { .. }
        | StoreError::HasChildren { .. }
        | StoreError::OtherParent { .. }
        | StoreError::TooDeep { .. } => Code::FailedPrecondition,
        StoreError::Place(_)
        | StoreError::Damaged { .. }
        | StoreError::Format { .. }
        | StoreError::Open { .. }
        | StoreError::Database(_) => Code::Internal,
    }
}
