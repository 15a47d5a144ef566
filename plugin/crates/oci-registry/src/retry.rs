//! When to try again.

use crate::client::ClientOptions;
use crate::error::RegistryError;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

/// The retries that one operation has left.
#[derive(Debug)]
pub(crate) struct Retry {
    allowed: u32,
    left: u32,
    backoff: Duration,
    min: Duration,
    max: Duration,
}

impl Retry {
    pub(crate) fn new(options: &ClientOptions) -> Self {
        Self {
            allowed: options.retries,
            left: options.retries,
            backoff: options.min_backoff,
            min: options.min_backoff,
            max: options.max_backoff,
        }
    }

    /// Waits, so that the caller can try again; or gives the error back, where trying again is of no use.
    pub(crate) async fn pause(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if self.left == 0 || !error.is_transient() {
            return Err(error);
        }
        self.left = self.left.saturating_sub(1);
        // At least what the registry asks for, though never more than we are willing to wait.
        let base = error.retry_after().unwrap_or(self.backoff).min(self.max);
        let wait = base.saturating_add(base.mul_f64(random_fraction() / 4.0));
        self.backoff = self.backoff.saturating_mul(2).min(self.max);
        tracing::debug!(%error, wait_ms = wait.as_millis(), "retrying request");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// There will be none.
    pub(crate) fn exhaust(&mut self) {
        self.left = 0;
    }

    /// All retries are there again: the operation came on.
    pub(crate) fn reset(&mut self) {
        self.left = self.allowed;
        self.backoff = self.min;
    }
}

/// In [0, 1). Not for secrets: it only spreads clients that met.
pub(crate) fn random_fraction() -> f64 {
    let bits = std::hash::RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(bits >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
}
