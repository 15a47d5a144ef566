//! Being built.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::resolve::Resolver;
use crate::snapshot::labels::LayerRequest;

/// How to unpack.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Layers at the same time.
    pub at_once: usize,
    /// How long it may go without a byte.
    pub stall: Duration,
    /// Which attribute marks an opaque directory.
    pub userxattr: bool,
}

/// Unpacks layers.
#[derive(Debug)]
pub struct Unpacker {
    _options: Options,
    _resolver: Arc<Resolver>,
}

/// Why not.
#[derive(Debug, thiserror::Error)]
#[error("unpacking here is not there yet")]
pub struct UnpackError;

impl Unpacker {
    /// Over the stores of `resolver`.
    #[must_use]
    pub fn new(options: Options, resolver: Arc<Resolver>) -> Unpacker {
        Unpacker { _options: options, _resolver: resolver }
    }

    /// Unpacks a layer.
    ///
    /// # Errors
    /// Always, yet.
    pub async fn unpack(
        &self,
        _namespace: Option<&str>,
        _request: &LayerRequest,
        _lower: Vec<PathBuf>,
        _at: PathBuf,
    ) -> Result<(), UnpackError> {
        Err(UnpackError)
    }
}
