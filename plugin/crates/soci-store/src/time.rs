//! Times on the wire.

use jiff::Timestamp;

/// A protobuf time stamp; `None` for one out of range.
pub(crate) fn from_proto(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
}
