//! Whole blobs.

use super::Inner;
use super::range::check_part;
use super::request::{Call, invalid, to_u64};
use crate::body::BlobStream;
use crate::error::RegistryError;
use crate::reference::Repository;
use crate::retry::Retry;
use crate::token::host_of;
use bytes::Bytes;
use futures_util::stream::{StreamExt as _, try_unfold};
use http::Method;
use http::header::RANGE;
use oci_spec::image::{Descriptor, Digest};
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

/// Progress that gives a stream all its retries back, in bytes. With less, a server could drip for ever.
const GOOD_PROGRESS: u64 = 1 << 20;

impl Inner {
    pub(super) async fn has_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        self.blob_exists(&self.blob_call(repository, Method::HEAD, digest)?).await
    }

    pub(super) async fn blob_exists(&self, call: &Call<'_>) -> Result<bool, RegistryError> {
        let mut retry = Retry::new(&self.options);
        loop {
            let error = match self.fetch(call).await {
                Ok(fetched) if fetched.response.status().is_success() => return Ok(true),
                Ok(fetched) if fetched.response.status() == StatusCode::NOT_FOUND => return Ok(false),
                Ok(fetched) => self.status_error(call, fetched.response).await,
                Err(error) => error,
            };
            retry.pause(error).await?;
        }
    }

    pub(super) async fn blob_bytes(
        &self,
        repository: &Repository,
        digest: &Digest,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let call = self.blob_call(repository, Method::GET, digest)?;
        let mut retry = Retry::new(&self.options);
        let bytes = loop {
            let got = match self.fetch_blob(&call, digest).await {
                Ok(response) => self.body(&call, response, limit).await,
                Err(error) => Err(error),
            };
            match got {
                Ok(bytes) => break bytes,
                Err(error) => retry.pause(error).await?,
            }
        };
        let actual = soci_index::digest_of(&bytes);
        if actual != *digest {
            return Err(RegistryError::digest_mismatch(repository, digest.clone(), actual));
        }
        Ok(bytes)
    }

    /// Opens a blob at `offset`. The answer may start before it: then that many bytes are to be skipped.
    async fn open_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<(Response, u64), RegistryError> {
        let size = descriptor.size();
        let mut call = self.blob_call(repository, Method::GET, descriptor.digest())?;
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
    retry: Retry,
    finished: bool,
}

pub(super) async fn stream(
    inner: Arc<Inner>,
    repository: &Repository,
    descriptor: &Descriptor,
) -> Result<BlobStream, RegistryError> {
    let mut retry = Retry::new(&inner.options);
    let connection = loop {
        match inner.open_blob(repository, descriptor, 0).await {
            Ok(connection) => break connection,
            Err(error) => retry.pause(error).await?,
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
        retry,
        finished: false,
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
                        self.retry.reset();
                    }
                    self.failed_at = self.offset;
                    self.retry.pause(error).await?;
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
                let opened = self.inner.open_blob(&self.repository, &self.descriptor, self.offset).await?;
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
