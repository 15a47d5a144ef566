//! A lease for as long as a pull takes.

use std::time::Duration;

use soci_store::Containerd;

use crate::error::{Error, one_line};
use crate::interrupt::Interrupts;

/// Should we be killed, the lease ends by itself.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// Does `work` with a handle under a lease, ends early when interrupted, runs `clean_up` in every case, and gives the lease back.
pub(crate) async fn under_lease<T, W, C>(
    containerd: &Containerd,
    work: impl FnOnce(Containerd) -> (W, C),
) -> Result<T, Error>
where
    W: Future<Output = Result<T, Error>>,
    C: AsyncFnOnce(),
{
    // Before the lease: a Ctrl-C in between would leave it behind.
    let mut interrupts = Interrupts::listen()?;
    let leases = containerd.leases();
    let lease = leases.create(EXPIRY).await?;
    let (work, clean_up) = work(containerd.with_lease(&lease));
    let outcome = interrupts.unless(work).await;
    clean_up().await;
    if let Err(error) = leases.delete(&lease).await {
        tracing::warn!(lease = lease.id(), error = one_line(&error), "the lease stays until it expires");
    }
    outcome
}
