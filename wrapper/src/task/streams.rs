//! Standard input and output of a container: fifos between us and the shim, and the threads that copy.
//!
//! No open here waits for the other side. For output we hold the reading end, opened without waiting, and, until the shim has opened its own
//! writing end, a writing end: without it a reader would see the end of file at once. For input it is the other way round.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use tempfile::TempDir;
use thiserror::Error;
use tokio::sync::oneshot;

/// What the shim holds open after the process's end can be a daemon's; we stop listening when this long nothing came.
const SILENCE: Duration = Duration::from_secs(3);

/// One copy moves this much, bytes.
const BUFFER: usize = 64 << 10;

/// Where the container's standard streams go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To our own.
    Here,
    /// Nowhere.
    Null,
    /// To a file or a program, as the runtime understands the URI.
    Log(String),
}

/// The fifos cannot be made.
#[derive(Debug, Error)]
#[error("cannot make a fifo in {}", directory.display())]
pub(crate) struct StreamsError {
    directory: PathBuf,
    source: io::Error,
}

/// The streams of a container, before its task is there.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    directory: Option<TempDir>,
    /// What the task is told: path of a fifo, a log URI, or nothing.
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    input: Option<Input>,
    outputs: Vec<Output>,
}

/// Our ends of the input fifo.
#[derive(Debug)]
struct Input {
    writer: File,
    /// What is written before the shim reads would be lost without it.
    reader: File,
}

/// Our ends of an output fifo.
#[derive(Debug)]
struct Output {
    reader: File,
    /// Gone as soon as the shim writes.
    writer: Option<File>,
    to_stderr: bool,
}

impl Streams {
    /// Makes what the destination needs; fifos go into a new directory below `fifo_dir`.
    ///
    /// # Errors
    /// The directory or a fifo cannot be made.
    pub(crate) fn new(
        destination: &Destination,
        fifo_dir: &Path,
        id: &str,
        terminal: bool,
    ) -> Result<Self, StreamsError> {
        match destination {
            Destination::Null => Ok(Self::default()),
            Destination::Log(uri) => Ok(Self { stdout: uri.clone(), stderr: uri.clone(), ..Self::default() }),
            Destination::Here => Self::fifos(fifo_dir, id, terminal)
                .map_err(|source| StreamsError { directory: fifo_dir.to_owned(), source }),
        }
    }

    fn fifos(fifo_dir: &Path, id: &str, terminal: bool) -> io::Result<Self> {
        std::fs::create_dir_all(fifo_dir)?;
        let directory = tempfile::Builder::new().prefix("soci-").tempdir_in(fifo_dir)?;
        let make = |name: &str| -> io::Result<(PathBuf, File, File)> {
            let path = directory.path().join(format!("{id}-{name}"));
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0)?;
            let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
            let reader = OpenOptions::new().read(true).custom_flags(nonblocking).open(&path)?;
            let writer = OpenOptions::new().write(true).open(&path)?;
            // The open must not wait, reads may.
            let flags = rustix::fs::fcntl_getfl(&reader)?;
            rustix::fs::fcntl_setfl(&reader, flags.difference(OFlags::NONBLOCK))?;
            Ok((path, reader, writer))
        };
        let text =
            |path: PathBuf| path.into_os_string().into_string().map_err(|_| ErrorKind::InvalidFilename);
        let (stdin, reader, writer) = make("stdin")?;
        let input = Some(Input { writer, reader });
        let (stdout, reader, writer) = make("stdout")?;
        let mut outputs = vec![Output { reader, writer: Some(writer), to_stderr: false }];
        let mut stderr = String::new();
        if !terminal {
            let (path, reader, writer) = make("stderr")?;
            outputs.push(Output { reader, writer: Some(writer), to_stderr: true });
            stderr = text(path)?;
        }
        Ok(Self {
            stdin: text(stdin)?,
            stdout: text(stdout)?,
            stderr,
            input,
            outputs,
            directory: Some(directory),
        })
    }

    /// The shim has opened its ends, and nobody here listens: the fifos stay for who attaches later.
    pub(crate) fn leave(mut self) {
        if let Some(directory) = self.directory.take() {
            let _ = directory.keep();
        }
    }

    /// Starts to copy between the fifos and our own streams. Call it before the task is made, so that no output waits.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn copy(mut self) -> io::Result<Copies> {
        let mut copies = Copies {
            outputs: Vec::new(),
            writers: Vec::new(),
            input: None,
            _reader: None,
            _directory: self.directory.take(),
        };
        if let Some(input) = self.input.take() {
            let (done, ended) = oneshot::channel();
            let mut writer = input.writer;
            copies._reader = Some(input.reader);
            std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
                let outcome = pump(&mut io::stdin().lock(), &mut writer, &Progress::default());
                // The writing end has to be closed before the shim is told that no more comes.
                drop(writer);
                let _ = done.send(());
                if let Err(error) = outcome {
                    tracing::debug!(%error, "copying standard input ended");
                }
            })?;
            copies.input = Some(ended);
        }
        for mut output in self.outputs.drain(..) {
            copies.writers.extend(output.writer.take());
            let progress = Arc::new(Progress::default());
            let (done, ended) = oneshot::channel();
            let shared = Arc::clone(&progress);
            let name = if output.to_stderr { "stderr" } else { "stdout" };
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                let outcome = if output.to_stderr {
                    pump(&mut output.reader, &mut io::stderr(), &shared)
                } else {
                    pump(&mut output.reader, &mut io::stdout(), &shared)
                };
                if let Err(error) = outcome {
                    tracing::debug!(%error, "copying the container's output ended");
                    // The container must not stall on a fifo that nobody empties.
                    let _ = pump(&mut output.reader, &mut io::sink(), &shared);
                }
                let _ = done.send(());
            })?;
            copies.outputs.push((progress, ended));
        }
        Ok(copies)
    }
}

/// How far a copy is.
#[derive(Debug, Default)]
struct Progress {
    bytes: AtomicU64,
    writing: AtomicBool,
}

/// The running copies of a container's streams.
#[derive(Debug)]
pub(crate) struct Copies {
    outputs: Vec<(Arc<Progress>, oneshot::Receiver<()>)>,
    writers: Vec<File>,
    input: Option<oneshot::Receiver<()>>,
    /// Our reading end of the input; see [`Input`].
    _reader: Option<File>,
    _directory: Option<TempDir>,
}

impl Copies {
    /// The shim has opened its ends: from now on the end of its output is the end of ours.
    pub(crate) fn task_is_there(&mut self) {
        self.writers.clear();
    }

    /// Resolves once when our standard input has ended, never where there is none.
    pub(crate) async fn input_ended(&mut self) {
        match &mut self.input {
            Some(ended) => {
                let _ = ended.await;
                self.input = None;
            }
            None => std::future::pending().await,
        }
    }

    /// Waits for the rest of the output of a process that has ended: to its end, or until nothing came for a while.
    ///
    /// That our own output is slow does not count: what it is waiting for must not be lost.
    pub(crate) async fn drain(mut self) {
        self.writers.clear();
        for (progress, mut ended) in self.outputs {
            loop {
                let before = progress.bytes.load(Ordering::Relaxed);
                if tokio::time::timeout(SILENCE, &mut ended).await.is_ok() {
                    break;
                }
                let silent = progress.bytes.load(Ordering::Relaxed) == before;
                if silent && !progress.writing.load(Ordering::Relaxed) {
                    tracing::debug!("somebody still holds the container's output open");
                    break;
                }
            }
        }
    }
}

fn pump(from: &mut impl Read, to: &mut impl Write, progress: &Progress) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        progress.bytes.fetch_add(count as u64, Ordering::Relaxed);
        progress.writing.store(true, Ordering::Relaxed);
        let written = to.write_all(buffer.get(..count).unwrap_or_default()).and_then(|()| to.flush());
        progress.writing.store(false, Ordering::Relaxed);
        written?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifos_open_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let streams = Streams::new(&Destination::Here, directory.path(), "box", false).unwrap();
        assert!(streams.stdin.ends_with("/box-stdin"));
        assert!(!streams.stderr.is_empty());
        assert_eq!(streams.outputs.len(), 2);
        let parent = Path::new(&streams.stdout).parent().unwrap().to_owned();
        drop(streams);
        assert!(!parent.exists());
        let streams = Streams::new(&Destination::Here, directory.path(), "box", true).unwrap();
        assert!(streams.stderr.is_empty());
        let parent = Path::new(&streams.stdout).parent().unwrap().to_owned();
        streams.leave();
        assert!(parent.exists());
    }

    #[test]
    fn a_log_takes_the_output_and_null_nothing() {
        let nowhere = Path::new("/nonexistent");
        let streams = Streams::new(&Destination::Log("file:///x".into()), nowhere, "box", false).unwrap();
        assert_eq!((streams.stdin.as_str(), streams.stdout.as_str()), ("", "file:///x"));
        let streams = Streams::new(&Destination::Null, nowhere, "box", false).unwrap();
        assert_eq!((streams.stdout, streams.stderr), (String::new(), String::new()));
    }

    #[tokio::test]
    async fn output_ends_with_the_last_writer() {
        let directory = tempfile::tempdir().unwrap();
        let mut streams = Streams::new(&Destination::Here, directory.path(), "box", false).unwrap();
        // Reading our own standard input is no part of this.
        streams.input = None;
        let path = streams.stderr.clone();
        let mut copies = streams.copy().unwrap();
        let mut shim = OpenOptions::new().write(true).open(path).unwrap();
        copies.task_is_there();
        let progress = Arc::clone(&copies.outputs[1].0);
        shim.write_all(b"").unwrap();
        drop(shim);
        tokio::time::timeout(Duration::from_secs(10), copies.drain()).await.unwrap();
        assert_eq!(progress.bytes.load(Ordering::Relaxed), 0);
    }
}
