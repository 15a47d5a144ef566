//! Ranges of blobs, which is what lazy reading is made of.

use super::Inner;
use super::redirects::Key;
use super::request::{Call, Fetched, invalid, to_u64};
use crate::body::RangeStream;
use crate::error::RegistryError;
use crate::host::Endpoint;
use crate::reference::Repository;
use crate::token::host_of;
use bytes::Bytes;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, try_unfold};
use http::Method;
use http::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use oci_spec::image::Digest;
use reqwest::{Response, StatusCode, Url};
use std::ops::Range;
use std::sync::Arc;

impl Inner {
    /// Asks each endpoint once: the caller knows better than this what is worth another try, and when. Nor does it wait for a turn: a stream that is left alone in
    /// favour of another would keep it, and that other would wait for it.
    pub(super) async fn blob_range(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<RangeStream, RegistryError> {
        let size = range.end.saturating_sub(range.start);
        if size == 0 {
            return Ok(RangeStream { size, inner: futures_util::stream::empty().boxed() });
        }
        let wanted = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let mut attempts = self.blob_attempts(repository, digest).await?.once();
        loop {
            let call = Self::blob_call(&attempts.endpoint()?, repository, Method::GET, digest)?;
            let call = call.header(RANGE, &wanted);
            match self.open_range(&call, digest, &range).await {
                Ok(reading) => {
                    let inner = try_unfold(reading, |mut reading| async move {
                        Ok(reading.next().await?.map(|piece| (piece, reading)))
                    });
                    return Ok(RangeStream { size, inner: inner.boxed() });
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    pub(super) async fn locate_blob(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let key: Key = (repository.clone(), digest.clone());
        if self.redirects.endpoint(&key).is_none() {
            let _turn = self.turn().await;
            let byte = self.blob_range(repository, digest, 0..1).await?;
            // To the end, so that the connection can be used again.
            byte.try_for_each(|_| std::future::ready(Ok(()))).await?;
        }
        let known = self.redirects.endpoint(&key);
        Ok(known.is_some_and(|endpoint| self.redirects.get(&key, &endpoint).is_some()))
    }

    pub(super) fn blob_call<'a>(
        endpoint: &Arc<Endpoint>,
        repository: &'a Repository,
        method: Method,
        digest: &'a Digest,
    ) -> Result<Call<'a>, RegistryError> {
        let call = Call::new(endpoint, repository, method, "blobs", digest.as_ref())?;
        Ok(call.header(ACCEPT_ENCODING, "identity"))
    }

    /// Gets a blob (or the part that the call asks for) from where it was last found, else through the registry.
    pub(super) async fn fetch_blob(
        &self,
        call: &Call<'_>,
        digest: &Digest,
    ) -> Result<Response, RegistryError> {
        let key: Key = (call.repository.clone(), digest.clone());
        if let Some(url) = self.redirects.get(&key, &call.endpoint) {
            match self.send_elsewhere(call, &url).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) if !is_stale(response.status()) => {
                    return Err(self.status_error(call, response).await);
                }
                Ok(response) => {
                    let status = response.status().as_u16();
                    tracing::debug!(host = host_of(&url), status, digest = call.what, "refreshing URL");
                    self.redirects.forget(&key, &url);
                }
                Err(error) => {
                    // Perhaps that server alone is gone: the retry asks the registry for another.
                    self.redirects.forget(&key, &url);
                    return Err(error);
                }
            }
        }
        let Fetched { response, elsewhere } = self.fetch(call).await?;
        if !response.status().is_success() {
            return Err(self.status_error(call, response).await);
        }
        self.redirects.put(key, call.endpoint.clone(), elsewhere);
        Ok(response)
    }

    async fn open_range(
        self: &Arc<Self>,
        call: &Call<'_>,
        digest: &Digest,
        range: &Range<u64>,
    ) -> Result<Reading, RegistryError> {
        let response = self.fetch_blob(call, digest).await?;
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        if is_part {
            check_part(call, &response, range)?;
        } else if let Some(whole) = response.content_length().filter(|whole| *whole < range.end) {
            return Err(too_short(call.what, response.url(), range.end, whole));
        }
        Ok(Reading {
            inner: self.clone(),
            repository: call.repository.clone(),
            what: call.what.to_owned(),
            response,
            is_part,
            // Ranges are optional in the specification: the whole blob comes, from its start.
            skip: if is_part { 0 } else { range.start },
            size: range.end.saturating_sub(range.start),
            read: 0,
        })
    }
}

/// A range on its way.
struct Reading {
    inner: Arc<Inner>,
    repository: Repository,
    what: String,
    response: Response,
    is_part: bool,
    /// Bytes to come before the range.
    skip: u64,
    size: u64,
    read: u64,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            // Of a whole blob nothing behind the range is of interest; of a range there must be nothing.
            if self.read >= self.size && !self.is_part {
                return Ok(None);
            }
            let Some(mut piece) = self.inner.chunk(&mut self.response).await? else {
                if self.read < self.size {
                    return Err(too_short(&self.what, self.response.url(), self.size, self.read));
                }
                return Ok(None);
            };
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(piece.len());
            self.skip = self.skip.saturating_sub(to_u64(skipped));
            let mut piece = piece.split_off(skipped);
            let missing = usize::try_from(self.size.saturating_sub(self.read)).unwrap_or(usize::MAX);
            if piece.len() > missing {
                if self.is_part {
                    let reason = "it sent more bytes than the range has";
                    return Err(invalid(&self.repository, &host_of(self.response.url()), reason));
                }
                piece.truncate(missing);
            }
            if !piece.is_empty() {
                self.read = self.read.saturating_add(to_u64(piece.len()));
                return Ok(Some(piece));
            }
        }
    }
}

fn too_short(what: &str, url: &Url, expected: u64, actual: u64) -> RegistryError {
    RegistryError::Length { host: host_of(url), what: what.to_owned(), expected, actual }
}

/// Whether the status means that a signed URL has had its day (S3 says 400 to an expired session), or that the storage
/// moved: the registry knows the new one.
fn is_stale(status: StatusCode) -> bool {
    status.is_redirection() || matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410)
}

/// Checks that a 206 is about the very range that was asked for.
pub(super) fn check_part(
    call: &Call<'_>,
    response: &Response,
    range: &Range<u64>,
) -> Result<(), RegistryError> {
    let host = host_of(response.url());
    let wrong = |reason: &str| Err(invalid(call.repository, &host, reason));
    let sent = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    match sent.and_then(parse_content_range) {
        Some(sent) if sent == *range => {}
        Some(_) => return wrong("it sent another range than it was asked for"),
        None => return wrong("it sent a range without saying which"),
    }
    let length = range.end.saturating_sub(range.start);
    match response.content_length() {
        Some(announced) if announced != length => wrong("the length of its answer is not that of the range"),
        _ => Ok(()),
    }
}

/// `bytes 0-9/100` or `bytes 0-9/*`.
fn parse_content_range(text: &str) -> Option<Range<u64>> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, end): (u64, u64) = (first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
    let inside = total == "*" || total.parse::<u64>().is_ok_and(|total| end <= total);
    (first < end && inside).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some(0..10));
        assert_eq!(parse_content_range("bytes 5-5/*"), Some(5..6));
        let max = u64::MAX;
        for bad in [
            "",
            "bytes */100",
            "bytes 9-0/100",
            "bytes 0-100/100",
            "bytes -5/10",
            "items 0-9/100",
            &format!("bytes 0-{max}/*"),
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
