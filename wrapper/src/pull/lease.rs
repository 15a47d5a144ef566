//! A lease for as long as a pull takes.

use std::time::Duration;

use soci_store::Containerd;

use crate::context::Context;
use crate::error::{Error, one_line};
use crate::interrupt::Interrupts;

/// Should we be killed, the lease ends by itself.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// Does `work` with a handle under a lease, ends early when interrupted or when `--timeout` is over, runs `clean_up` in every case, and gives
/// the lease back. A second interrupt ends the clean-up.
pub(crate) async fn under_lease<T, W, C>(
    context: &Context,
    work: impl FnOnce(Containerd) -> (W, C),
) -> Result<T, Error>
where
    W: Future<Output = Result<T, Error>>,
    C: AsyncFnOnce(),
{
    // Before the lease: a Ctrl-C in between would leave it behind.
    let mut interrupts = Interrupts::listen(context)?;
    let containerd = context.containerd();
    let leases = containerd.leases();
    let lease = leases.create(EXPIRY).await?;
    let (work, clean_up) = work(containerd.with_lease(&lease));
    let outcome = interrupts.unless(work).await;
    let cleaned = async {
        clean_up().await;
        // A call that was cut short may have made what only the lease knows of, and nothing else makes containerd look for it.
        let ended = match &outcome {
            Ok(_) => leases.delete(&lease).await,
            Err(_) => leases.delete_and_collect(&lease).await,
        };
        if let Err(error) = ended {
            tracing::warn!(lease = lease.id(), error = one_line(&error), "the lease stays until it expires");
        }
    };
    interrupts.clean_up(cleaned).await;
    outcome
}
