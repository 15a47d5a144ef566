//! Requests that a daemon was given and never answered, on a kernel that cannot send them again (before Linux 6.9).
//!
//! Nothing tells a successor which these are, and nobody but he can end them: whoever asked waits as long as the mount is there. But they have
//! numbers, which the kernel counts up, and an answer to a number that nobody waits for is refused and does no harm. So he answers every number that
//! his predecessors can have been given, the latest first, before he takes requests himself (an answer costs a microsecond or two). All that has to be
//! kept for that is a bound ([`Asked`]), which rises in steps, so that a request costs a comparison.
//!
//! The answer is [`ERROR`]. What the kernel read ahead for somebody it asks for again, by itself; so do system calls that look for a name, which
//! takes this error for a handle of a server that was restarted. Others see the error.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::handshake;
use crate::keeper::Hold;

/// What a request ends with.
const ERROR: Errno = Errno::STALE;
/// From one request's number to the next (`FUSE_REQ_ID_STEP`; an odd one is an interrupt's).
const NEXT: u64 = 2;
/// How far the bound is ahead when it rises. It rises at half of that, so that requests that are given to several threads at the same time, and those
/// that nobody notes, are below it, too.
const STEP: u64 = 1 << 13;
/// Numbers that are answered before the first new request is taken: about a tenth of a second. A request below them waits for as many others to be
/// answered, and has waited for longer already.
const LATEST: u64 = 1 << 17;
/// Between two looks whether the mount is still there.
const PIECE: u64 = 1 << 17;
/// Stack of the thread that answers the rest.
const STACK: usize = 128 << 10;

/// A bound on the numbers of the requests that this daemon was given, kept for its successor.
#[derive(Debug)]
pub(super) struct Asked {
    hold: Arc<Hold>,
    /// What is kept. Nothing is where the kernel sends requests again: then it is never reached.
    bound: AtomicU64,
    rising: Mutex<()>,
}

// === impl Asked ===

impl Asked {
    /// Keeps nothing until [`Asked::begin`] is called.
    pub(super) fn new(hold: Arc<Hold>) -> Asked {
        Asked { hold, bound: AtomicU64::new(u64::MAX), rising: Mutex::default() }
    }

    /// From now on a bound is kept: the predecessor's, or a first one.
    pub(super) fn begin(&self, earlier: Option<u64>) {
        match earlier {
            Some(bound) => self.bound.store(bound, Ordering::Release),
            None => self.raise(0),
        }
    }

    /// A request has come.
    pub(super) fn note(&self, number: u64) {
        if self.is_near(number) {
            let _rising = self.rising.lock();
            if self.is_near(number) {
                self.raise(number);
            }
        }
    }

    fn is_near(&self, number: u64) -> bool {
        let bound = self.bound.load(Ordering::Acquire);
        bound != u64::MAX && number.saturating_add(STEP / 2) >= bound
    }

    /// Kept first: a successor has to know more than has come, never less.
    fn raise(&self, number: u64) {
        let bound = number.saturating_add(STEP);
        self.hold.asked(bound);
        self.bound.store(bound, Ordering::Release);
    }
}

/// Ends what the predecessors left unanswered, with numbers up to `bound`. Returns how many of the latest requests there were; earlier ones, if there are
/// so many, are looked for by a thread of its own. Has to be called before requests are taken.
pub(super) fn end(device: &OwnedFd, bound: u64, asked: &Arc<Asked>) -> io::Result<usize> {
    let lowest = bound.saturating_sub(LATEST);
    let ended = answer(device.as_fd(), lowest, bound)?;
    if lowest > 0 {
        // Every request with such a number was taken by a predecessor: the kernel hands them out in their order.
        let (device, asked) = (device.try_clone()?, Arc::downgrade(asked));
        let rest = move || {
            if let Err(error) = end_rest(&device, lowest, &asked) {
                tracing::debug!(error = %error, "requests of an earlier daemon cannot be ended");
            }
        };
        thread::Builder::new().name("fuse-unanswered".into()).stack_size(STACK).spawn(rest)?;
    }
    Ok(ended)
}

/// The same for numbers below `bound`, as long as there is a session.
fn end_rest(device: &OwnedFd, mut bound: u64, session: &Weak<Asked>) -> io::Result<()> {
    while bound > 0 && session.strong_count() > 0 {
        let lowest = bound.saturating_sub(PIECE);
        answer(device.as_fd(), lowest, bound)?;
        bound = lowest;
    }
    Ok(())
}

/// Answers requests with numbers above `lowest` and up to `bound`, the highest first. Returns for how many somebody waited.
fn answer(device: BorrowedFd<'_>, lowest: u64, bound: u64) -> io::Result<usize> {
    let (mut number, mut ended) = (bound & !1, 0_usize);
    while number > lowest {
        match rustix::io::write(device, &handshake::refusal(number, ERROR)) {
            Ok(_) => ended = ended.saturating_add(1),
            // Nobody waits for it.
            Err(Errno::NOENT) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        number = number.saturating_sub(NEXT);
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn asked() -> Asked {
        Asked::new(Arc::new(Hold::none()))
    }

    fn bound(asked: &Asked) -> u64 {
        asked.bound.load(Ordering::Relaxed)
    }

    /// Takes answers as a device of an old connection does not: all of them.
    fn device() -> (OwnedFd, File) {
        let file = rustix::fs::memfd_create("device", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        (file.try_clone().unwrap(), File::from(file))
    }

    /// Number and error of every answer.
    fn answers(file: &File) -> Vec<(u64, i32)> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let answers = bytes.chunks(16).map(|answer| {
            assert_eq!(answer[..4], 16_u32.to_ne_bytes());
            let error = i32::from_ne_bytes(answer[4..8].try_into().unwrap());
            (u64::from_ne_bytes(answer[8..].try_into().unwrap()), error)
        });
        answers.collect()
    }

    #[test]
    fn the_bound_is_always_ahead() {
        let asked = asked();
        asked.begin(None);
        let mut rises = 0;
        for number in (2..20 * STEP).step_by(2) {
            let before = bound(&asked);
            asked.note(number);
            assert!(bound(&asked) > number + STEP / 2 && bound(&asked) >= before, "{number}");
            rises += u64::from(bound(&asked) > before);
        }
        assert!((20..=40).contains(&rises), "{rises}");
    }

    #[test]
    fn a_predecessors_bound_rises_with_requests_alone() {
        let asked = asked();
        asked.begin(Some(100 * STEP));
        assert_eq!(bound(&asked), 100 * STEP);
        asked.note(99 * STEP);
        assert_eq!(bound(&asked), 100 * STEP);
        asked.note(100 * STEP);
        assert_eq!(bound(&asked), 101 * STEP);
    }

    #[test]
    fn nothing_is_kept_where_requests_are_sent_again() {
        let asked = asked();
        for number in [2, 1 << 40, u64::MAX - 1] {
            asked.note(number);
            assert_eq!(bound(&asked), u64::MAX);
        }
    }

    #[test]
    fn the_latest_come_first_and_each_once() {
        let (device, file) = device();
        let asked = Arc::new(asked());
        assert_eq!(end(&device, 9, &asked).unwrap(), 4);
        assert_eq!(answers(&file), [8, 6, 4, 2].map(|number| (number, -ERROR.raw_os_error())));
    }

    #[test]
    fn the_rest_ends_with_the_session() {
        let bound = 2 * PIECE + 6;
        let (device, file) = device();
        let session = Arc::new(asked());
        end_rest(&device, bound, &Arc::downgrade(&session)).unwrap();
        let numbers: Vec<u64> = answers(&file).into_iter().map(|(number, _)| number).collect();
        assert!(numbers.iter().copied().eq((2..=bound).rev().step_by(2)));
        let ended = Arc::downgrade(&session);
        drop(session);
        file.set_len(0).unwrap();
        end_rest(&device, bound, &ended).unwrap();
        assert_eq!(answers(&file), []);
    }
}
