//! The running process of a container, and what surrounds it here: streams, terminal, signals.

use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, ResizePtyRequest,
    StartRequest, WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status;
use prost_types::Any;
use soci_store::{Containerd, StoreError};

use self::signals::{Signal, Signals};
use self::streams::{Copies, Streams};
use self::terminal::Size;
use crate::connection::over_restarts;

pub(crate) mod options;
pub(crate) mod signals;
pub(crate) mod streams;
pub(crate) mod terminal;

/// The first files of a lazily loaded image may take as long as the daemon lets a read wait (300 s), and a little more.
const START_DEADLINE: Duration = Duration::from_secs(330);

/// After so many requests to end, the container is killed.
const PATIENCE: u32 = 3;

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

    /// Lets the process run; over a restart of containerd, whose answer may be lost although the process runs.
    pub(crate) async fn start(&self) -> Result<(), StoreError> {
        let mut asked = false;
        over_restarts(async || {
            let again = std::mem::replace(&mut asked, true);
            if again && !self.waits_for_its_start().await? {
                return Ok(());
            }
            let request = self
                .containerd
                .request(StartRequest { container_id: self.id.clone(), exec_id: String::new() });
            let mut client = self.containerd.tasks_client();
            match self.containerd.call("start task", &self.id, client.start(request)).await {
                Err(StoreError::Refused { message, .. }) if again && was_started(&message) => Ok(()),
                answer => answer.map(drop),
            }
        })
        .await
    }

    /// Whether the task is made, and its process has not been let run.
    async fn waits_for_its_start(&self) -> Result<bool, StoreError> {
        let request =
            self.containerd.request(GetRequest { container_id: self.id.clone(), exec_id: String::new() });
        let mut client = self.containerd.tasks_client();
        let task = self.containerd.call("look up task", &self.id, client.get(request)).await?;
        Ok(task.process.is_some_and(|process| process.status() == Status::Created))
    }

    /// Waits for the process, however long it takes, and over a restart of containerd.
    async fn wait(&self) -> Result<ExitStatus, StoreError> {
        over_restarts(async || {
            let request = self
                .containerd
                .request(WaitRequest { container_id: self.id.clone(), exec_id: String::new() });
            let mut client = self.containerd.tasks_client();
            match client.wait(request).await {
                Ok(response) => Ok(ExitStatus(response.into_inner().exit_status)),
                Err(status) => Err(StoreError::from_status("wait for task", self.id.as_str(), &status)),
            }
        })
        .await
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
        let request = DeleteTaskRequest { container_id: self.id.clone() };
        let deleted = over_restarts(async || {
            let request = self.containerd.request(request.clone());
            let mut client = self.containerd.tasks_client();
            self.containerd.call("delete task", &self.id, client.delete(request)).await
        });
        match deleted.await {
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

/// What runc says of a process that was let run before. A shim whose start was cut off half-way does not know it itself.
fn was_started(message: &str) -> bool {
    message.contains("already running container") || message.contains("container that has stopped")
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
