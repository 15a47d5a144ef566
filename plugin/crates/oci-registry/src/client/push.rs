//! Blobs and manifests into a registry.

use super::attempts::Attempts;
use super::manifest::digest_header;
use super::request::{Call, Verdict, invalid, to_u64};
use super::{Inner, MAX_MANIFEST_SIZE, PushedManifest};
use crate::error::RegistryError;
use crate::reference::{Reference, Repository};
use crate::token::{Access, host_of};
use crate::upload::{BlobUpload, PushOutcome};
use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt as _};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method};
use oci_spec::image::{Descriptor, MediaType};
use parking_lot::Mutex;
use reqwest::{Body, Response, Url};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a registry may take for a blob that it has got all bytes of: some copy it to other storage first.
const COMMIT_DEADLINE: Duration = Duration::from_secs(300);

/// What an upload's body tells those who watch it.
#[derive(Debug)]
struct Watch {
    /// When the connection last took bytes.
    progress: Instant,
    sent: u64,
    finished: bool,
    /// The source's own error: the HTTP client's would not say what it was.
    error: Option<io::Error>,
}

impl Inner {
    pub(super) async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        upload: &BlobUpload,
    ) -> Result<PushOutcome, RegistryError> {
        let mut attempts = self.push_attempts(repository).await?;
        let endpoint = attempts.endpoint()?;
        let look = Attempts::at(self, &endpoint);
        match self.blob_exists(look, repository, descriptor.digest(), Access::Push).await {
            Ok(true) => return Ok(PushOutcome::Exists),
            Ok(false) => {}
            // It names a place where the blob is not: bring it.
            Err(error @ RegistryError::InvalidResponse { .. }) => tracing::debug!(%error, "pushing the blob"),
            Err(error) => return Err(error),
        }
        let begin = Call::new(&endpoint, repository, Method::POST, "blobs/uploads/", "")?.push();
        let begin = Call { what: descriptor.digest().as_ref(), ..begin.header(CONTENT_LENGTH, "0") };
        loop {
            match self.push_blob_once(&begin, descriptor, upload).await {
                Ok(()) => return Ok(PushOutcome::Pushed),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    async fn push_blob_once(
        &self,
        begin: &Call<'_>,
        descriptor: &Descriptor,
        upload: &BlobUpload,
    ) -> Result<(), RegistryError> {
        let response = self.send(begin).await?;
        if !response.status().is_success() {
            return Err(self.status_error(begin, response).await);
        }
        let mut url = self.location(begin.repository, &begin.url, &response)?;
        drop(response);
        url.query_pairs_mut().append_pair("digest", descriptor.digest().as_ref());
        let put = Call { method: Method::PUT, ..begin.at(url) };
        let response = self.put_blob(&put, &begin.url, descriptor, upload).await?;
        if !response.status().is_success() {
            return Err(self.status_error(&put, response).await);
        }
        Ok(())
    }

    /// The upload itself, sent again where the registry wants new authorisation first.
    async fn put_blob(
        &self,
        put: &Call<'_>,
        registry: &Url,
        descriptor: &Descriptor,
        upload: &BlobUpload,
    ) -> Result<Response, RegistryError> {
        let is_registry = put.url.origin() == registry.origin();
        let transport = &put.endpoint.transport;
        let http =
            if is_registry { transport.registry_for(&put.url) } else { transport.elsewhere_for(&put.url) };
        let (mut renewed, key) = (false, put.key());
        loop {
            let authorization = match is_registry {
                true => self.tokens.current(&key).await?,
                false => None,
            };
            let watch = Arc::new(Mutex::new(Watch {
                progress: Instant::now(),
                sent: 0,
                finished: descriptor.size() == 0,
                error: None,
            }));
            let body = watched(upload, descriptor.size(), watch.clone());
            let mut headers = if is_registry { put.endpoint.header.clone() } else { HeaderMap::new() };
            if let Some(authorization) = &authorization {
                headers.insert(AUTHORIZATION, authorization.header.clone());
            }
            let request = http
                .request(Method::PUT, put.url.clone())
                .headers(headers)
                .header(CONTENT_TYPE, soci_index::ZTOC_MEDIA_TYPE)
                .header(CONTENT_LENGTH, descriptor.size())
                .body(Body::wrap_stream(body));
            let outcome = self.watch(&host_of(&put.url), &watch, request.send()).await;
            if !matches!(&outcome, Ok(response) if response.status().is_success()) {
                let watch = std::mem::replace(
                    &mut *watch.lock(),
                    Watch { progress: Instant::now(), sent: 0, finished: true, error: None },
                );
                if let (Some(progress), Ok(sent)) = (&upload.progress, i64::try_from(watch.sent)) {
                    progress(sent.saturating_neg());
                }
                if let Some(error) = watch.error {
                    return Err(RegistryError::Upload(error.into()));
                }
            }
            let response = outcome?;
            if !is_registry {
                return Ok(response);
            }
            match self.challenge(put, response).await? {
                Verdict::Answered(response) => return Ok(response),
                Verdict::Challenged(_) if renewed => {
                    let (host, repository) = (host_of(&put.url), put.repository.clone());
                    return Err(RegistryError::Unauthorized {
                        host,
                        repository,
                        anonymous: authorization.is_none(),
                    });
                }
                Verdict::Challenged(challenge) => {
                    renewed = true;
                    self.tokens.renew(&key, challenge, authorization.as_ref()).await?;
                }
            }
        }
    }

    /// Waits for an upload for as long as its body gets on.
    async fn watch(
        &self,
        host: &str,
        watch: &Mutex<Watch>,
        exchange: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, RegistryError> {
        let idle = self.options.idle_timeout.max(self.options.connect_timeout);
        let stalled = async {
            loop {
                let (at, after) = {
                    let watch = watch.lock();
                    (watch.progress, if watch.finished { COMMIT_DEADLINE } else { idle })
                };
                let left = after.saturating_sub(at.elapsed());
                if left.is_zero() {
                    return after;
                }
                tokio::time::sleep(left).await;
            }
        };
        tokio::select! {
            outcome = self.exchange(host, Duration::MAX, exchange) => outcome,
            after = stalled => Err(RegistryError::Timeout { host: host.to_owned(), after }),
        }
    }

    pub(super) async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<PushedManifest, RegistryError> {
        let repository = reference.repository();
        let digest = soci_index::digest_of(bytes);
        if let Some(expected) = reference.digest().filter(|expected| **expected != digest) {
            return Err(RegistryError::digest_mismatch(repository, expected.clone(), digest));
        }
        let what = reference.tag().unwrap_or(digest.as_ref());
        if to_u64(bytes.len()) > MAX_MANIFEST_SIZE {
            let (repository, what) = (repository.clone(), what.to_owned());
            return Err(RegistryError::TooLarge { repository, what, limit: MAX_MANIFEST_SIZE });
        }
        let mut attempts = self.push_attempts(repository).await?;
        let endpoint = attempts.endpoint()?;
        let call = Call::new(&endpoint, repository, Method::PUT, "manifests", what)?.push();
        let call = call.header(CONTENT_TYPE, media_type).body(Bytes::copy_from_slice(bytes));
        let response = loop {
            let error = match self.send(&call).await {
                Ok(response) if response.status().is_success() => break response,
                Ok(response) => self.status_error(&call, response).await,
                Err(error) => error,
            };
            attempts.failed(error).await?;
        };
        if digest_header(response.headers()).is_some_and(|told| told != digest) {
            return Err(invalid(repository, &endpoint.host, "it gives the manifest another digest"));
        }
        let subject_listed = response.headers().contains_key("oci-subject");
        let descriptor = Descriptor::new(MediaType::from(media_type), to_u64(bytes.len()), digest);
        Ok(PushedManifest { descriptor, subject_listed })
    }
}

/// The bytes of an upload: exactly `size`, and every piece of them noted.
fn watched(
    upload: &BlobUpload,
    size: u64,
    watch: Arc<Mutex<Watch>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let progress = upload.progress.clone();
    let fail = {
        let watch = watch.clone();
        move |error: io::Error| {
            let told = io::Error::new(error.kind(), "the upload's source failed");
            watch.lock().error = Some(error);
            Err(told)
        }
    };
    let end = {
        let watch = watch.clone();
        futures_util::stream::once(async move {
            let sent = watch.lock().sent;
            if sent == size { Ok(Bytes::new()) } else { Err(wrong_length(size, sent)) }
        })
    };
    let bytes = upload.body.open().map(move |piece| {
        let piece = piece?;
        let length = to_u64(piece.len());
        let mut watch = watch.lock();
        watch.progress = Instant::now();
        watch.sent = watch.sent.saturating_add(length);
        watch.finished = watch.sent >= size;
        if watch.sent > size {
            return Err(wrong_length(size, watch.sent));
        }
        drop(watch);
        if let (Some(progress), Ok(length)) = (&progress, i64::try_from(length)) {
            progress(length);
        }
        Ok(piece)
    });
    bytes.chain(end).map(move |piece| piece.or_else(&fail))
}

fn wrong_length(expected: u64, actual: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the content has {actual} bytes, its descriptor says {expected}"),
    )
}
