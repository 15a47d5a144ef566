//! One piece of work done beside another, while a layer is made: somebody waits for that, and machines have several cores.

use std::thread;

/// Does `aside` on a thread of its own and `here` on this one. Where there is no thread to be had, one after the other.
pub(crate) fn both<A: Send, B>(aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    let mut found = None;
    let done = thread::scope(|scope| {
        let work = || found = Some(aside());
        let _ = thread::Builder::new().name("soci-aside".into()).spawn_scoped(scope, work);
        here()
    });
    (found.unwrap_or_else(aside), done)
}
