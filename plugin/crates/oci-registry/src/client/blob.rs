//! Whole blobs.

use super::Inner;
use super::attempts::Attempts;
use super::range::check_part;
use super::request::{Call, Fetched, invalid, to_u64};
use crate::body::BlobStream;
use crate::error::RegistryError;
use crate::host::{Capabilities, Endpoint};
use crate::reference::Repository;
use crate::token::{Access, host_of};
use bytes::Bytes;
use futures_util::stream::{StreamExt as _, try_unfold};
use http::Method;
use http::header::RANGE;
use oci_spec::image::{Descriptor, Digest};
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Progress that gives a stream all its retries back, in bytes. With less, a server could drip for ever.
const GOOD_PROGRESS: u64 = 1 << 20;

impl Inner {
    pub(super) async fn has_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let attempts = self.attempts(repository, Capabilities::PULL).await?;
        self.blob_exists(attempts, repository, digest, Access::Pull).await
    }

    pub(super) async fn blob_exists(
        &self,
        mut attempts: Attempts,
        repository: &Repository,
        digest: &Digest,
        access: Access,
    ) -> Result<bool, RegistryError> {
        loop {
            let endpoint = attempts.endpoint()?;
            let call = Call { access, ..Self::blob_call(&endpoint, repository, Method::HEAD, digest)? };
            let error = match self.blob_exists_once(call).await {
                Ok(()) => return Ok(true),
                Err(error) => error,
            };
            match attempts.failed(error).await {
                Ok(()) => {}
                Err(error) if error.is_not_found() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a blob is there; "not found" where the registry, not a storage behind it, says so. A storage may refuse
    /// HEAD with any status, as its URLs are signed for GET: then the first byte is asked for.
    async fn blob_exists_once(&self, mut call: Call<'_>) -> Result<(), RegistryError> {
        let Fetched { response, elsewhere } = self.fetch(&call).await?;
        if response.status().is_success() {
            return Ok(());
        }
        let Some(storage) = elsewhere else { return Err(self.status_error(&call, response).await) };
        tracing::debug!(
            host = host_of(&storage),
            status = response.status().as_u16(),
            "asking for the first byte"
        );
        call.method = Method::GET;
        let call = call.header(RANGE, "bytes=0-0");
        let Fetched { response, elsewhere } = self.fetch(&call).await?;
        // An empty blob has no such range.
        if response.status().is_success() || response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(());
        }
        match (self.status_error(&call, response).await, elsewhere) {
            (RegistryError::NotFound { .. }, Some(storage)) => {
                let reason = "the registry says that it has the blob, which is not there";
                Err(invalid(call.repository, &host_of(&storage), reason))
            }
            (error, _) => Err(error),
        }
    }

    pub(super) async fn blob_bytes(
        &self,
        repository: &Repository,
        digest: &Digest,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let mut attempts = self.blob_attempts(repository, digest).await?;
        loop {
            let call = Self::blob_call(&attempts.endpoint()?, repository, Method::GET, digest)?;
            let got = match self.fetch_blob(&call, digest).await {
                Ok(response) => self.body(&call, response, limit).await,
                Err(error) => Err(error),
            };
            match got {
                Ok(bytes) => {
                    let actual = soci_index::digest_of(&bytes);
                    if actual == *digest {
                        return Ok(bytes);
                    }
                    let error = RegistryError::digest_mismatch(repository, digest.clone(), actual);
                    attempts.failed(error).await?;
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// Opens a blob at `offset`. The answer may start before it: then that many bytes are to be skipped.
    async fn open_blob(
        &self,
        endpoint: &Arc<Endpoint>,
        repository: &Repository,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<(Response, u64), RegistryError> {
        let size = descriptor.size();
        let mut call = Self::blob_call(endpoint, repository, Method::GET, descriptor.digest())?;
        if offset > 0 {
            call = call.header(RANGE, &format!("bytes={offset}-"));
        }
        let response = self.fetch_blob(&call, descriptor.digest()).await?;
        if offset > 0 && response.status() == StatusCode::PARTIAL_CONTENT {
            check_part(&call, &response, &(offset..size))?;
            return Ok((response, 0));
        }
        match response.content_length() {
            Some(length) if length != size => {
                let reason = format!("{} has {length} bytes, not the {size} of its descriptor", call.what);
                Err(invalid(repository, &host_of(response.url()), &reason))
            }
            _ => Ok((response, offset)),
        }
    }
}

/// Where a stream is.
struct Reading {
    inner: Arc<Inner>,
    repository: Repository,
    descriptor: Descriptor,
    connection: Option<(Response, u64)>,
    hash: Sha256,
    offset: u64,
    /// Offset at which the last failure was seen.
    failed_at: u64,
    attempts: Attempts,
    finished: bool,
    _turn: Option<OwnedSemaphorePermit>,
}

pub(super) async fn stream(
    inner: Arc<Inner>,
    repository: &Repository,
    descriptor: &Descriptor,
) -> Result<BlobStream, RegistryError> {
    let turn = inner.turn().await;
    let mut attempts = inner.blob_attempts(repository, descriptor.digest()).await?;
    let connection = loop {
        match inner.open_blob(&attempts.endpoint()?, repository, descriptor, 0).await {
            Ok(connection) => break connection,
            Err(error) => attempts.failed(error).await?,
        }
    };
    let reading = Reading {
        inner,
        repository: repository.clone(),
        descriptor: descriptor.clone(),
        connection: Some(connection),
        hash: Sha256::new(),
        offset: 0,
        failed_at: 0,
        attempts,
        finished: false,
        _turn: turn,
    };
    let inner =
        try_unfold(
            reading,
            |mut reading| async move { Ok(reading.next().await?.map(|chunk| (chunk, reading))) },
        );
    Ok(BlobStream { size: descriptor.size(), inner: inner.boxed() })
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.finished {
            return Ok(None);
        }
        loop {
            match self.step().await {
                Ok(Some(chunk)) if chunk.is_empty() => {}
                Ok(Some(chunk)) => return Ok(Some(chunk)),
                Ok(None) => {
                    self.finished = true;
                    return self.verify().map(|()| None);
                }
                Err(error) => {
                    self.connection = None;
                    if self.offset.saturating_sub(self.failed_at) >= GOOD_PROGRESS {
                        self.attempts.reset();
                    }
                    self.failed_at = self.offset;
                    self.attempts.failed(error).await?;
                }
            }
        }
    }

    /// The next bytes that are not yet known; none at the end.
    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let (response, skip) = match &mut self.connection {
            Some(connection) => connection,
            None if self.offset >= self.descriptor.size() => return Ok(None),
            None => {
                let endpoint = self.attempts.endpoint()?;
                let opened =
                    self.inner.open_blob(&endpoint, &self.repository, &self.descriptor, self.offset).await?;
                self.connection.insert(opened)
            }
        };
        let host = host_of(response.url());
        let Some(mut chunk) = self.inner.chunk(response).await? else {
            let (expected, actual) = (self.descriptor.size(), self.offset);
            let what = self.descriptor.digest().to_string();
            return if actual == expected {
                Ok(None)
            } else {
                Err(RegistryError::Length { host, what, expected, actual })
            };
        };
        let skipped = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
        *skip = skip.saturating_sub(to_u64(skipped));
        let chunk = chunk.split_off(skipped);
        let end = self.offset.saturating_add(to_u64(chunk.len()));
        if end > self.descriptor.size() {
            return Err(invalid(&self.repository, &host, "the blob is longer than its descriptor says"));
        }
        self.hash.update(&chunk);
        self.offset = end;
        Ok(Some(chunk))
    }

    fn verify(&self) -> Result<(), RegistryError> {
        let actual = soci_index::digest_from(self.hash.clone().finalize().into());
        let expected = self.descriptor.digest().clone();
        if actual == expected {
            return Ok(());
        }
        Err(RegistryError::digest_mismatch(&self.repository, expected, actual))
    }
}
