//! The conversation that ingests one blob.

use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use oci_spec::image::{Descriptor, Digest};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::containerd::Containerd;
use crate::error::StoreError;
use crate::labels::Labels;

const OPERATION: &str = "write content";

/// First and longest pause between two looks at an ingest that somebody else holds.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What opening an ingest found.
#[derive(Debug)]
pub enum OpenedWriter {
    /// The blob is in this namespace already (and held by the lease now).
    Present,
    /// It may be written.
    Writer(Box<ContentWriter>),
}

/// An open ingest. Dropped without a commit it stays in containerd until it expires or somebody goes on with it.
#[derive(Debug)]
pub struct ContentWriter {
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    subject: String,
    total: i64,
    offset: i64,
    deadline: Duration,
}

/// Opens the ingest of `descriptor`, waiting for somebody else's to end.
pub(super) async fn open(
    containerd: &Containerd,
    lease: Option<&str>,
    descriptor: &Descriptor,
) -> Result<OpenedWriter, StoreError> {
    let end = Instant::now() + containerd.patience();
    let mut pause = PAUSE;
    loop {
        match open_once(containerd, lease, descriptor).await {
            Ok(writer) => return Ok(OpenedWriter::Writer(Box::new(writer))),
            Err(StoreError::AlreadyExists { .. }) => return Ok(OpenedWriter::Present),
            // containerd's word for a reference that another stream has locked.
            Err(StoreError::Unavailable { message, .. })
                if message.contains("locked") && Instant::now() + pause < end =>
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn open_once(
    containerd: &Containerd,
    lease: Option<&str>,
    descriptor: &Descriptor,
) -> Result<ContentWriter, StoreError> {
    let subject = descriptor.digest().to_string();
    let reference = reference(descriptor.digest());
    let total = i64::try_from(descriptor.size()).map_err(|_| StoreError::Mismatch {
        digest: subject.clone(),
        what: "too large for containerd".to_owned(),
    })?;
    // One message is under way at a time, hence the room for one.
    let (requests, receiver) = mpsc::channel(1);
    let opening = WriteContentRequest {
        action: WriteAction::Stat.into(),
        r#ref: reference,
        total,
        expected: subject.clone(),
        ..WriteContentRequest::default()
    };
    // The server sends no headers before it has read this.
    requests.try_send(opening).map_err(|_| closed(&subject))?;
    let mut client = containerd.content_client();
    let request = containerd.request_under(lease, ReceiverStream::new(receiver));
    let responses = containerd.call(OPERATION, &subject, client.write(request)).await?;
    let deadline = containerd.deadline();
    let mut writer = ContentWriter { requests, responses, subject, total, offset: 0, deadline };
    writer.answer().await?;
    Ok(writer)
}

/// The name of a blob's ingest: ours, so that other programs' are never in the way.
pub(super) fn reference(digest: &Digest) -> String {
    format!("soci-{digest}")
}

fn closed(subject: &str) -> StoreError {
    StoreError::Unavailable {
        operation: OPERATION,
        subject: subject.to_owned(),
        message: "the connection was closed".to_owned(),
    }
}

impl ContentWriter {
    /// Appends at most 16 MiB; the first piece replaces what an earlier, broken ingest may have left.
    ///
    /// # Errors
    /// containerd refused, hung up or did not answer in time.
    pub async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        let written = i64::try_from(data.len()).unwrap_or(i64::MAX);
        // An offset of 0 makes containerd drop what was there.
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: self.offset,
            data: data.into(),
            ..WriteContentRequest::default()
        };
        self.send(message).await?;
        let answer = self.answer().await?;
        self.offset = self.offset.saturating_add(written);
        if answer.offset != self.offset {
            return Err(StoreError::Malformed {
                operation: OPERATION,
                subject: self.subject.clone(),
                what: format!("{} bytes written where {} were sent", answer.offset, self.offset),
            });
        }
        Ok(())
    }

    /// Ends the ingest: the blob is there, with these labels.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] where somebody else was first; containerd's own for wrong size or digest.
    pub async fn commit(&mut self, size: u64, digest: &Digest, labels: Labels) -> Result<(), StoreError> {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: i64::try_from(size).unwrap_or(self.total),
            expected: digest.to_string(),
            offset: self.offset,
            labels,
            ..WriteContentRequest::default()
        };
        self.send(message).await?;
        self.answer().await.map(drop)
    }

    async fn send(&mut self, message: WriteContentRequest) -> Result<(), StoreError> {
        if self.requests.send(message).await.is_ok() {
            return Ok(());
        }
        // The server ended the stream; why, it says in its answer.
        self.answer().await?;
        Err(closed(&self.subject))
    }

    async fn answer(&mut self) -> Result<WriteContentResponse, StoreError> {
        match tokio::time::timeout(self.deadline, self.responses.message()).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(closed(&self.subject)),
            Ok(Err(status)) => Err(StoreError::from_status(OPERATION, self.subject.clone(), &status)),
            Err(_) => Err(StoreError::Deadline {
                operation: OPERATION,
                subject: self.subject.clone(),
                limit: self.deadline,
            }),
        }
    }
}
