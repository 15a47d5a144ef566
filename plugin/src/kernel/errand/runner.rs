//! The daemon's side of errands: how many at a time, and how long they are waited for.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::{COMMAND, Errand, Said};
use crate::kernel::{Backing, DIRECTORY, KernelError, Unmounting, erofs, failed};

/// The program that this process runs, even if it has been replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Of all errands at a time, an exchange takes this part: it holds many files open.
const EXCHANGES: usize = 4;

/// How many there are at a time, and how long they are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrandOptions {
    /// Those that mount or exchange at the same time, and as many that unmount. Default 16, of which 4 exchange.
    pub at_once: usize,
    /// For an exchange of the backing file. Default 60 s.
    pub exchange: Duration,
    /// For the process that unmounts to come to it. Default 10 s.
    pub unmount: Duration,
    /// For reads that the kernel has begun ahead of readers who have gone. Default 200 ms.
    pub reads: Duration,
}

/// Starts processes for errands. Cheap to clone.
///
/// Nobody's thread waits for one, and who waits may give up: the process has its place among the others until it ends.
#[derive(Clone, Debug)]
pub struct Errands {
    options: ErrandOptions,
    program: PathBuf,
    runtime: Handle,
    places: Arc<Semaphore>,
    /// Of their own: what is stuck may end with an unmount.
    unmounts: Arc<Semaphore>,
}

/// What is heard of an unmount.
#[derive(Debug)]
enum Unmounted {
    InUse,
    Ended(Result<(), KernelError>),
}

// === impl ErrandOptions ===

impl Default for ErrandOptions {
    fn default() -> ErrandOptions {
        ErrandOptions {
            at_once: 16,
            exchange: Duration::from_secs(60),
            unmount: Duration::from_secs(10),
            reads: Duration::from_millis(200),
        }
    }
}

// === impl Errands ===

impl Errands {
    /// By this same program.
    #[must_use]
    pub fn new(options: ErrandOptions, runtime: Handle) -> Errands {
        let places = || Arc::new(Semaphore::new(options.at_once.clamp(1, Semaphore::MAX_PERMITS)));
        Errands {
            options,
            program: PathBuf::from(THIS_PROGRAM),
            runtime,
            places: places(),
            unmounts: places(),
        }
    }

    /// The same for a process that is not the daemon but has it at hand.
    #[must_use]
    pub fn with_program(self, program: PathBuf) -> Errands {
        Errands { program, ..self }
    }

    /// Has another process do it.
    ///
    /// # Errors
    /// Its own; or that it did not end within `deadline`, or [`ErrandOptions::exchange`] if that is none. It may be done all the same then; what is attached too late is unmounted again.
    pub(in crate::kernel) async fn perform(
        &self,
        errand: Errand,
        deadline: Option<Duration>,
    ) -> Result<Option<Backing>, KernelError> {
        let late = || errand.lost(io::ErrorKind::TimedOut.into());
        let deadline = tokio::time::Instant::now() + deadline.unwrap_or(self.options.exchange);
        let part = match errand {
            Errand::Exchange { .. } => (self.options.at_once / EXCHANGES).max(1),
            Errand::Attach { .. } | Errand::Replace { .. } | Errand::Unmount { .. } => 1,
        };
        let place = Arc::clone(&self.places).acquire_many_owned(u32::try_from(part).unwrap_or(u32::MAX));
        let place = tokio::time::timeout_at(deadline, place).await.map_err(|_| late())?;
        let mut working = self.begin(errand.clone(), place.ok(), || {});
        match tokio::time::timeout_at(deadline, &mut working).await {
            Ok(done) => done.unwrap_or_else(|_| Err(errand.lost(io::ErrorKind::Interrupted.into()))),
            Err(_) => {
                if let Errand::Attach { fuse, .. } = &errand {
                    let (this, at) = (self.clone(), fuse.with_file_name(DIRECTORY));
                    self.runtime.spawn(async move {
                        if let Ok(Ok(_)) = working.await {
                            let _ = this.begin(Errand::Unmount { at }, None, || {}).await;
                        }
                    });
                }
                Err(late())
            }
        }
    }

    /// Unmounts EROFS; what is in use is taken out of sight, and goes when its last user does. Nothing there is fine. Blocking, for [`ErrandOptions::unmount`] at most;
    /// not for a thread that runs tasks.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel refuses; it is still mounted then.
    pub fn unmount(&self, at: &Path) -> Result<Unmounting, KernelError> {
        let (said, heard) = mpsc::channel();
        let (this, errand) = (self.clone(), Errand::Unmount { at: at.to_owned() });
        let waiting = self.runtime.spawn(async move {
            let place = Arc::clone(&this.unmounts).acquire_owned().await.ok();
            let in_use = said.clone();
            // Nobody listens any more if it took long.
            let working = this.begin(errand, place, move || drop(in_use.send(Unmounted::InUse)));
            if let Ok(ended) = working.await {
                let _ = said.send(Unmounted::Ended(ended.map(drop)));
            }
        });
        let unmounted = self.unmounted(at, &heard);
        // What has not begun by now is for the next attempt.
        waiting.abort();
        unmounted
    }

    /// Waits until it is, or only the kernel's own reads are in the way.
    fn unmounted(&self, at: &Path, heard: &Receiver<Unmounted>) -> Result<Unmounting, KernelError> {
        let deadline = Instant::now() + self.options.unmount;
        let (mut in_use, mut out_of_sight) = (false, false);
        loop {
            match heard.recv_timeout(self.options.reads) {
                Ok(Unmounted::Ended(ended)) => return ended.map(|()| Unmounting::Done),
                Ok(Unmounted::InUse) => in_use = true,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed("unmount", at)(io::ErrorKind::Interrupted.into()));
                }
                Err(RecvTimeoutError::Timeout) if out_of_sight && in_use => return Ok(Unmounting::Done),
                // For so long, without a word that somebody uses it.
                Err(RecvTimeoutError::Timeout) if out_of_sight => return Ok(Unmounting::Waits),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    return Err(failed("unmount", at)(io::ErrorKind::TimedOut.into()));
                }
                Err(RecvTimeoutError::Timeout) => out_of_sight = !erofs::is_mounted(at),
            }
        }
    }

    /// Goes on whether or not anybody waits, and has its place until the process ends.
    fn begin(
        &self,
        errand: Errand,
        place: Option<OwnedSemaphorePermit>,
        in_use: impl FnMut() + Send + 'static,
    ) -> JoinHandle<Result<Option<Backing>, KernelError>> {
        let program = self.program.clone();
        self.runtime.spawn(async move {
            let _place = place;
            // A test's program does not have the hidden command.
            let said = if cfg!(test) {
                here(errand.clone(), in_use).await
            } else {
                send(&errand, &program, in_use).await
            };
            let last = said.map_err(|error| errand.lost(error))?;
            errand.outcome(last)
        })
    }
}

/// Has another process do it, and gives its last word; `in_use` hears that somebody uses what is to be unmounted.
async fn send(errand: &Errand, program: &Path, mut in_use: impl FnMut()) -> io::Result<Option<Said>> {
    let mut command = Command::new(program);
    command.arg(COMMAND).args(errand.arguments()).current_dir("/").env_clear();
    // Keeps `allocator::settle` from starting it once more.
    command.env("MALLOC_ARENA_MAX", "1");
    // Whatever happens here: the runtime reaps it.
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let said = child.stdout.take().ok_or(io::ErrorKind::NotConnected)?;
    let (mut lines, mut last) = (BufReader::new(said).lines(), None);
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line)? {
            Said::InUse => in_use(),
            said => last = Some(said),
        }
    }
    child.wait().await?;
    Ok(last)
}

/// The same in this process.
async fn here(errand: Errand, mut in_use: impl FnMut() + Send + 'static) -> io::Result<Option<Said>> {
    let work = tokio::task::spawn_blocking(move || {
        let mut last = None;
        super::run(&errand, &mut |said| {
            match said {
                Said::InUse => in_use(),
                said => last = Some(said),
            }
            Ok(())
        })?;
        Ok(last)
    });
    work.await.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))
}
