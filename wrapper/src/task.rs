//! The running process of a container, and what surrounds it here: streams, terminal, signals.

use std::error::Error as _;
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, CreateTaskRequest, DeleteTaskRequest, KillRequest, ResizePtyRequest, StartRequest,
    WaitRequest,
};
use containerd_client::types::Mount;
use prost_types::Any;
use soci_store::{Containerd, StoreError};

use self::signals::{Signal, Signals};
use self::streams::{Copies, Streams};
use self::terminal::Size;

pub(crate) mod options;
pub(crate) mod signals;
pub(crate) mod streams;
pub(crate) mod terminal;

/// The first files of a lazily loaded image may take as long as the daemon lets a read wait (300 s), and a little more.
const START_DEADLINE: Duration = Duration::from_secs(330);

/// After so many requests to end, the container is killed.
const PATIENCE: u32 = 3;

/// While containerd is restarted we ask it again, this often and so many times.
const RECONNECT: (Duration, u32) = (Duration::from_secs(1), 60);

/// What a process left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub(crate) u32);

impl ExitStatus {
    /// As a process can end itself with it.
    pub(crate) fn code(self) -> u8 {
        u8::try_from(self.0).unwrap_or(u8::MAX)
    }
}

/// A task in containerd.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    containerd: Containerd,
    id: String,
    pid: u32,
}

impl Task {
    /// Makes the task of container `id`: everything is there, but the process waits.
    ///
    /// # Errors
    /// containerd, the shim or runc refuses.
    pub(crate) async fn create(
        containerd: &Containerd,
        id: &str,
        rootfs: Vec<Mount>,
        streams: &Streams,
        terminal: bool,
        options: Option<Any>,
    ) -> Result<Self, StoreError> {
        let containerd = containerd.with_deadline(START_DEADLINE);
        let request = containerd.request(CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal,
            options,
            ..CreateTaskRequest::default()
        });
        let mut client = containerd.tasks_client();
        let created = containerd.call("create task", id, client.create(request)).await?;
        Ok(Self { containerd, id: id.to_owned(), pid: created.pid })
    }

    /// A task that may have been made, to be deleted.
    pub(crate) fn presumed(containerd: &Containerd, id: &str) -> Self {
        Self { containerd: containerd.clone(), id: id.to_owned(), pid: 0 }
    }

    /// Process ID on the host.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the process run.
    pub(crate) async fn start(&self) -> Result<(), StoreError> {
        let request =
            self.containerd.request(StartRequest { container_id: self.id.clone(), exec_id: String::new() });
        let mut client = self.containerd.tasks_client();
        self.containerd.call("start task", &self.id, client.start(request)).await.map(drop)
    }

    /// Waits for the process, however long it takes, and over a restart of containerd.
    async fn wait(&self) -> Result<ExitStatus, StoreError> {
        let (pause, attempts) = RECONNECT;
        let mut failures = 0_u32;
        loop {
            let request = self
                .containerd
                .request(WaitRequest { container_id: self.id.clone(), exec_id: String::new() });
            let mut client = self.containerd.tasks_client();
            let status = match client.wait(request).await {
                Ok(response) => return Ok(ExitStatus(response.into_inner().exit_status)),
                Err(status) => status,
            };
            // A status with a source is not containerd's word but the connection's.
            let lost = status.source().is_some();
            let error = StoreError::from_status("wait for task", self.id.as_str(), &status);
            failures = failures.saturating_add(1);
            if !(lost || error.is_transient()) || failures > attempts {
                return Err(error);
            }
            tracing::debug!(%error, "containerd does not answer, asking again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends a signal to the process; one that has ended already is no error.
    pub(crate) async fn kill(&self, signal: Signal) -> Result<(), StoreError> {
        let request = self.containerd.request(KillRequest {
            container_id: self.id.clone(),
            exec_id: String::new(),
            signal: signal.0.unsigned_abs(),
            all: false,
        });
        let mut client = self.containerd.tasks_client();
        match self.containerd.call("signal task", &self.id, client.kill(request)).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn resize(&self, size: Size) -> Result<(), StoreError> {
        let request = self.containerd.request(ResizePtyRequest {
            container_id: self.id.clone(),
            exec_id: String::new(),
            width: size.width.into(),
            height: size.height.into(),
        });
        let mut client = self.containerd.tasks_client();
        self.containerd.call("resize terminal", &self.id, client.resize_pty(request)).await.map(drop)
    }

    async fn close_input(&self) -> Result<(), StoreError> {
        let request = self.containerd.request(CloseIoRequest {
            container_id: self.id.clone(),
            exec_id: String::new(),
            stdin: true,
        });
        let mut client = self.containerd.tasks_client();
        self.containerd.call("close input", &self.id, client.close_io(request)).await.map(drop)
    }

    /// Deletes the task of a process that has ended; one that is gone is no error.
    pub(crate) async fn delete(&self) -> Result<(), StoreError> {
        let request = self.containerd.request(DeleteTaskRequest { container_id: self.id.clone() });
        let mut client = self.containerd.tasks_client();
        match self.containerd.call("delete task", &self.id, client.delete(request)).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Kills and deletes, in whatever state it is.
    pub(crate) async fn abandon(&self) -> Result<(), StoreError> {
        self.kill(Signal::KILL).await?;
        // The shim needs a moment to see the end; a task that cannot end is left to who looks for it.
        let _ = tokio::time::timeout(Duration::from_secs(10), self.wait()).await;
        self.delete().await
    }

    /// Stays with the running process until it ends: copies its streams, forwards signals, follows the terminal's size.
    ///
    /// # Errors
    /// containerd is gone for good. The process may go on.
    pub(crate) async fn attend(
        &self,
        mut copies: Copies,
        signals: &mut Signals,
        terminal: bool,
    ) -> Result<ExitStatus, StoreError> {
        if terminal {
            self.follow_size().await;
        }
        let mut exit = std::pin::pin!(self.wait());
        let mut requests_to_end = 0_u32;
        let status = loop {
            tokio::select! {
                status = &mut exit => break status?,
                () = copies.input_ended() => {
                    if let Err(error) = self.close_input().await {
                        tracing::debug!(%error, "the container's input stays open");
                    }
                }
                signal = signals.next() => {
                    if signal == Signal::WINDOW {
                        if terminal {
                            self.follow_size().await;
                        }
                        continue;
                    }
                    if signal.ends() {
                        requests_to_end = requests_to_end.saturating_add(1);
                    }
                    // A first process without a handler ignores all signals but this.
                    let signal = if requests_to_end >= PATIENCE { Signal::KILL } else { signal };
                    if let Err(error) = self.kill(signal).await {
                        tracing::debug!(%error, "signal not forwarded");
                    }
                }
            }
        };
        copies.drain().await;
        Ok(status)
    }

    async fn follow_size(&self) {
        if let Some(size) = terminal::size()
            && let Err(error) = self.resize(size).await
        {
            tracing::debug!(%error, "terminal not resized");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_fit() {
        assert_eq!(ExitStatus(0).code(), 0);
        assert_eq!(ExitStatus(137).code(), 137);
        assert_eq!(ExitStatus(256).code(), 255);
    }
}
