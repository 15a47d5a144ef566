//! containerd's content store.

mod reader;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ListContentRequest, ReadContentRequest,
    UpdateRequest,
};
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest};
use sha2::{Digest as _, Sha256};
use soci_index::digest_from;

pub use self::writer::{ContentWriter, OpenedWriter};
use crate::containerd::Containerd;
use crate::digest::parse_digest;
use crate::error::StoreError;
use crate::labels::{self, Labels};
use crate::lease::Lease;
use crate::time;

/// Largest piece that one write message carries, bytes.
const WRITE_PIECE: usize = 4 << 20;

/// Room made for a range before its first byte is here, bytes.
const MAX_RESERVED: usize = 8 << 20;

/// What containerd knows of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its labels in this namespace.
    pub labels: Labels,
    /// When it arrived in this namespace.
    pub created_at: Option<Timestamp>,
}

impl ContentInfo {
    fn from_wire(operation: &'static str, info: Info) -> Result<ContentInfo, StoreError> {
        let malformed = |what: &str| StoreError::Malformed {
            operation,
            subject: info.digest.clone(),
            what: what.to_owned(),
        };
        let digest = parse_digest(&info.digest).ok_or_else(|| malformed("its digest is no SHA-256"))?;
        let size = u64::try_from(info.size).map_err(|_| malformed("negative size"))?;
        Ok(ContentInfo { digest, size, labels: info.labels, created_at: time::from_proto(info.created_at) })
    }
}

/// The content store of one namespace.
#[derive(Debug, Clone)]
pub struct ContentStore {
    containerd: Containerd,
}

impl ContentStore {
    pub(crate) fn new(containerd: Containerd) -> ContentStore {
        ContentStore { containerd }
    }

    /// What containerd knows of a blob; `None` where it is not in this namespace.
    ///
    /// # Errors
    /// containerd refused or did not answer.
    pub async fn info(&self, digest: &Digest) -> Result<Option<ContentInfo>, StoreError> {
        const OPERATION: &str = "content info";
        let request = self.containerd.request(InfoRequest { digest: digest.to_string() });
        let mut client = self.containerd.content_client();
        let response = match self.containerd.call(OPERATION, digest.as_ref(), client.info(request)).await {
            Ok(response) => response,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = response.info.ok_or_else(|| StoreError::Malformed {
            operation: OPERATION,
            subject: digest.to_string(),
            what: "no info in it".to_owned(),
        })?;
        ContentInfo::from_wire(OPERATION, info).map(Some)
    }

    /// A whole blob of at most `limit` bytes, its digest checked.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::TooLarge`], [`StoreError::Mismatch`] among others.
    pub async fn read_all(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let mut hash = Sha256::new();
        let bytes = self.read_through(digest, limit, |piece| hash.update(piece)).await?;
        let found = digest_from(hash.finalize().into());
        if found != *digest {
            return Err(StoreError::Mismatch {
                digest: digest.to_string(),
                what: format!("they hash to {found}"),
            });
        }
        Ok(bytes)
    }

    /// A whole blob of at most `limit` bytes, for who compares its digest himself: containerd's disk may have changed it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::TooLarge`] among others.
    pub async fn read_unchecked(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        self.read_through(digest, limit, |_| ()).await
    }

    /// A whole blob; each piece is shown to `seen`, while containerd reads the next one.
    async fn read_through(
        &self,
        digest: &Digest,
        limit: u64,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<Bytes, StoreError> {
        // To its end: its digest says whether that is all of it, and containerd need not be asked how long it is.
        let mut stream = std::pin::pin!(self.read(digest, 0..0).await?);
        let mut bytes = BytesMut::new();
        while let Some(piece) = stream.next().await {
            let piece = piece?;
            seen(&piece);
            bytes.extend_from_slice(&piece);
            let size = bytes.len() as u64;
            if size > limit {
                let size = self.info(digest).await?.map_or(size, |info| info.size);
                return Err(StoreError::TooLarge { digest: digest.to_string(), size, limit });
            }
        }
        Ok(bytes.freeze())
    }

    /// Exactly these bytes of a blob; nothing is checked but their number.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Malformed`] where the blob ends earlier.
    pub async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        const OPERATION: &str = "read content";
        let malformed =
            |what: String| StoreError::Malformed { operation: OPERATION, subject: digest.to_string(), what };
        let wanted = range.end.saturating_sub(range.start);
        let capacity = usize::try_from(wanted).map_err(|_| malformed("too long for memory".to_owned()))?;
        // Whoever asks may have the length from somebody else: the bytes have to come before there is room for all of them.
        let mut bytes = BytesMut::with_capacity(capacity.min(MAX_RESERVED));
        if wanted == 0 {
            return Ok(bytes.freeze());
        }
        let mut stream = std::pin::pin!(self.read(digest, range).await?);
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() > capacity {
                return Err(malformed(format!("more than the {wanted} bytes asked for")));
            }
        }
        if bytes.len() != capacity {
            return Err(malformed(format!("{} of {wanted} bytes", bytes.len())));
        }
        Ok(bytes.freeze())
    }

    /// Bytes of a blob as they come; each piece has the handle's deadline. An empty range reads to the end of the blob.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] among others, at once or from the stream.
    pub async fn read(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, StoreError>> + Send + use<>, StoreError> {
        const OPERATION: &str = "read content";
        let subject = digest.to_string();
        let malformed = || StoreError::Malformed {
            operation: OPERATION,
            subject: digest.to_string(),
            what: "range out of bounds".to_owned(),
        };
        let request = self.containerd.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: i64::try_from(range.start).map_err(|_| malformed())?,
            size: i64::try_from(range.end.saturating_sub(range.start)).map_err(|_| malformed())?,
        });
        let stream =
            self.containerd.call(OPERATION, &subject, reader::read(&self.containerd, request)).await?;
        let limit = self.containerd.deadline();
        Ok(futures_util::stream::unfold(Some((stream, subject)), move |state| async move {
            let (mut stream, subject) = state?;
            match tokio::time::timeout(limit, stream.message()).await {
                Ok(Ok(Some(piece))) => Some((Ok(piece.data), Some((stream, subject)))),
                Ok(Ok(None)) => None,
                Ok(Err(status)) => Some((Err(StoreError::from_status(OPERATION, subject, &status)), None)),
                Err(_) => Some((Err(StoreError::Deadline { operation: OPERATION, subject, limit }), None)),
            }
        }))
    }

    /// Writes a blob under `lease` (or the handle's) and commits it with these labels.
    ///
    /// What is there already is success, held by the lease too, and gets the labels. Where somebody else is writing the same blob, waits for
    /// them. The length is checked here, the digest by containerd; on any failure the half-written data are dropped.
    ///
    /// # Errors
    /// [`StoreError::Body`] where the stream fails, [`StoreError::Mismatch`] where it is not what `descriptor` says, and containerd's own.
    pub async fn write<E>(
        &self,
        lease: Option<&Lease>,
        descriptor: &Descriptor,
        labels: Labels,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), StoreError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        check_labels(&labels)?;
        match self.open_writer(lease, descriptor).await? {
            OpenedWriter::Present => self.set_labels(descriptor.digest(), labels).await,
            OpenedWriter::Writer(writer) => self.write_through(writer, descriptor, labels, body).await,
        }
    }

    /// The second half of [`ContentStore::write`], for who wants to know from when on the ingest is their own.
    ///
    /// # Errors
    /// As [`ContentStore::write`].
    pub async fn write_through<E>(
        &self,
        mut writer: Box<ContentWriter>,
        descriptor: &Descriptor,
        labels: Labels,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), StoreError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let outcome = Self::write_to(&mut writer, descriptor, labels.clone(), body).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(StoreError::AlreadyExists { .. }) => self.set_labels(descriptor.digest(), labels).await,
            Err(error) => {
                drop(writer);
                if let Err(abort) = self.abort(descriptor.digest()).await {
                    tracing::debug!(digest = %descriptor.digest(), error = %abort, "half-written content stays until it expires");
                }
                Err(error)
            }
        }
    }

    async fn write_to<E>(
        writer: &mut ContentWriter,
        descriptor: &Descriptor,
        labels: Labels,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), StoreError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let digest = descriptor.digest();
        let mismatch = |what: String| StoreError::Mismatch { digest: digest.to_string(), what };
        let mut body = std::pin::pin!(body);
        let mut length = 0u64;
        while let Some(piece) = body.next().await {
            let mut piece: Bytes = piece
                .map_err(|error| StoreError::Body { digest: digest.to_string(), source: error.into() })?;
            length = length.saturating_add(piece.len() as u64);
            if length > descriptor.size() {
                return Err(mismatch(format!("more than {} bytes", descriptor.size())));
            }
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(WRITE_PIECE));
                writer.write(part).await?;
            }
        }
        if length != descriptor.size() {
            return Err(mismatch(format!("{length} bytes instead of {}", descriptor.size())));
        }
        writer.commit(length, digest, labels).await
    }

    /// Writes a blob that is in memory; see [`ContentStore::write`].
    ///
    /// # Errors
    /// As [`ContentStore::write`].
    pub async fn write_bytes(
        &self,
        lease: Option<&Lease>,
        descriptor: &Descriptor,
        labels: Labels,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let body = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
        self.write(lease, descriptor, labels, body).await
    }

    /// Opens the ingest of a blob, for who wants to write and commit piece by piece.
    ///
    /// # Errors
    /// containerd refused or did not answer; an ingest that somebody else holds for ten minutes is [`StoreError::Unavailable`].
    pub async fn open_writer(
        &self,
        lease: Option<&Lease>,
        descriptor: &Descriptor,
    ) -> Result<OpenedWriter, StoreError> {
        let lease = lease.map(Lease::id).or(self.containerd.lease_id());
        writer::open(&self.containerd, lease, descriptor).await
    }

    /// Drops what an interrupted [`ContentStore::write`] of this blob has left; nothing there is no error.
    ///
    /// containerd does not ask whether somebody is still writing: only for who knows that it was their own.
    ///
    /// # Errors
    /// containerd refused or did not answer.
    pub async fn abort(&self, digest: &Digest) -> Result<(), StoreError> {
        let reference = writer::reference(digest);
        let mut client = self.containerd.content_client();
        // The server gives the ingest up when it sees our stream end, which may be a moment later.
        for _ in 0..10 {
            let request = self.containerd.request(AbortRequest { r#ref: reference.clone() });
            match self.containerd.call("abort", &reference, client.abort(request)).await {
                Err(StoreError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(StoreError::NotFound { .. }) => return Ok(()),
                other => return other,
            }
        }
        Ok(())
    }

    /// Sets these labels and leaves the others.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::LabelTooLong`] among others.
    pub async fn set_labels(&self, digest: &Digest, labels: Labels) -> Result<(), StoreError> {
        if labels.is_empty() {
            return Ok(());
        }
        check_labels(&labels)?;
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Info::default() };
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = self.containerd.request(UpdateRequest { info: Some(info), update_mask });
        let mut client = self.containerd.content_client();
        self.containerd.call("label content", digest.as_ref(), client.update(request)).await.map(drop)
    }

    /// Removes one label; one that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the content, among others.
    pub async fn remove_label(&self, digest: &Digest, key: &str) -> Result<(), StoreError> {
        // containerd takes an empty value for removal.
        self.set_labels(digest, HashMap::from([(key.to_owned(), String::new())])).await
    }

    /// Deletes a blob from this namespace.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] among others.
    pub async fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        let request = self.containerd.request(DeleteContentRequest { digest: digest.to_string() });
        let mut client = self.containerd.content_client();
        self.containerd.call("delete content", digest.as_ref(), client.delete(request)).await
    }

    /// Blobs that match any of these filters (all without one); those with other digests than SHA-256 are left out.
    ///
    /// # Errors
    /// A malformed filter, or containerd does not answer.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<ContentInfo>, StoreError> {
        const OPERATION: &str = "list content of namespace";
        let namespace = self.containerd.namespace().as_str();
        let request = self.containerd.request(ListContentRequest { filters: filters.to_vec() });
        let mut client = self.containerd.content_client();
        let mut stream = self.containerd.call(OPERATION, namespace, client.list(request)).await?;
        let limit = self.containerd.deadline();
        let mut found = Vec::new();
        loop {
            let message = match tokio::time::timeout(limit, stream.message()).await {
                Ok(Ok(message)) => message,
                Ok(Err(status)) => return Err(StoreError::from_status(OPERATION, namespace, &status)),
                Err(_) => {
                    return Err(StoreError::Deadline {
                        operation: OPERATION,
                        subject: namespace.to_owned(),
                        limit,
                    });
                }
            };
            let Some(message) = message else { return Ok(found) };
            for info in message.info {
                if parse_digest(&info.digest).is_some() {
                    found.push(ContentInfo::from_wire(OPERATION, info)?);
                }
            }
        }
    }
}

fn check_labels(labels: &Labels) -> Result<(), StoreError> {
    match labels.iter().find(|(key, value)| !labels::fits(key, value)) {
        Some((key, value)) => {
            Err(StoreError::LabelTooLong { key: key.clone(), size: key.len().saturating_add(value.len()) })
        }
        None => Ok(()),
    }
}
