//! What refers to an image: the referrers API where there is one, a tag made from the digest where not.

use super::manifest::media_type_header;
use super::request::{Call, invalid, is_redirect};
use super::{Inner, MAX_MANIFEST_SIZE};
use crate::error::RegistryError;
use crate::host::{Capabilities, Endpoint};
use crate::reference::{Reference, Repository};
use crate::retry::random_fraction;
use bytes::Bytes;
use http::header::{ACCEPT, LINK};
use http::{HeaderMap, Method};
use oci_spec::image::{Descriptor, Digest};
use reqwest::{StatusCode, Url};
use soci_index::fallback::{self, ReferrersIndex};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// Pages of a list that are read: a server may always name another.
const MAX_PAGES: usize = 16;
/// How often the fallback tag is written before another writer is allowed to win.
const MAX_WRITES: usize = 5;
/// Shortest pause between writing the fallback tag and looking whether it stayed: longer than another writer takes from reading to writing.
const SETTLING: Duration = Duration::from_millis(200);

impl Inner {
    pub(super) async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut attempts =
            self.attempts(repository, Capabilities::RESOLVE.and(Capabilities::REFERRERS)).await?;
        loop {
            let error =
                match self.referrers_at(&attempts.endpoint()?, repository, subject, artifact_type).await {
                    Ok(found) if !found.is_empty() => return Ok(found),
                    // A mirror that has none says nothing about the registry.
                    Ok(_) => {
                        RegistryError::NotFound { repository: repository.clone(), what: subject.to_string() }
                    }
                    Err(error) => error,
                };
            match attempts.failed(error).await {
                Ok(()) => {}
                Err(error) if error.is_not_found() => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn referrers_at(
        &self,
        endpoint: &Arc<Endpoint>,
        repository: &Repository,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let tag = repository.with_tag(&fallback::tag(subject))?;
        let by_api = self.referrers_by_api(endpoint, repository, subject, artifact_type);
        let by_tag = self.fallback_list(endpoint, &tag);
        let list = if endpoint.has_referrers_api() {
            match by_api.await? {
                Some(found) => return Ok(found),
                None => by_tag.await?,
            }
        } else {
            // Both at once, since one of them answers.
            let mut by_tag = pin!(by_tag);
            let mut early = None;
            let by_api = {
                let mut by_api = pin!(by_api);
                loop {
                    tokio::select! {
                        found = &mut by_api => break found?,
                        list = &mut by_tag, if early.is_none() => early = Some(list),
                    }
                }
            };
            match (by_api, early) {
                (Some(found), _) => return Ok(found),
                (None, Some(list)) => list?,
                (None, None) => by_tag.await?,
            }
        };
        tracing::debug!(%repository, %subject, host = endpoint.host, "no referrers API, read the fallback tag");
        Ok(list.map(|list| list.referrers(artifact_type)).unwrap_or_default())
    }

    /// None where the registry has no such API. Those without answer in many ways: 404, 400, 405, a page to log in on.
    async fn referrers_by_api(
        &self,
        endpoint: &Arc<Endpoint>,
        repository: &Repository,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let mut call = Call::new(endpoint, repository, Method::GET, "referrers", subject.as_ref())?;
        call = call.header(ACCEPT, soci_index::INDEX_MEDIA_TYPE);
        call.url.query_pairs_mut().append_pair("artifactType", artifact_type);
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = self.referrers_page(&call).await?;
            let Some((list, next)) = page else { return Ok(None) };
            endpoint.note_referrers_api();
            // Filtering is optional for registries.
            found.extend(list.referrers(artifact_type));
            match next.filter(|next| next.origin() == call.url.origin()) {
                Some(next) => call = call.at(next),
                None => break,
            }
        }
        Ok(Some(found))
    }

    async fn referrers_page(
        &self,
        call: &Call<'_>,
    ) -> Result<Option<(ReferrersIndex, Option<Url>)>, RegistryError> {
        let response = match self.send(call).await {
            Ok(response) if response.status() == StatusCode::OK => response,
            Ok(response) if is_redirect(response.status()) || is_unsupported(response.status()) => {
                return Ok(None);
            }
            Ok(response) => return Err(self.status_error(call, response).await),
            // Some protect what they do not have; the fallback tag tells whether we may read at all.
            Err(RegistryError::Denied { .. } | RegistryError::Unauthorized { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_page = media_type_header(response.headers()).is_some_and(|t| t.starts_with("text/"));
        let next = next_page(&call.url, response.headers());
        let body = self.body(call, response, MAX_MANIFEST_SIZE).await?;
        if is_page {
            return Ok(None);
        }
        Ok(ReferrersIndex::parse(&body).ok().map(|list| (list, next)))
    }

    /// The list under the fallback tag; none where there is no such tag, or where it is no list: whoever looks for something finds nothing then.
    async fn fallback_list(
        &self,
        endpoint: &Arc<Endpoint>,
        tag: &Reference,
    ) -> Result<Option<ReferrersIndex>, RegistryError> {
        let bytes = self.fallback_bytes(endpoint, tag).await?;
        Ok(bytes.and_then(|bytes| ReferrersIndex::parse(&bytes).ok()))
    }

    async fn fallback_bytes(
        &self,
        endpoint: &Arc<Endpoint>,
        tag: &Reference,
    ) -> Result<Option<Bytes>, RegistryError> {
        match self.manifest_at(endpoint, tag).await {
            Ok(manifest) => Ok(Some(manifest.bytes)),
            Err(RegistryError::NotFound { .. } | RegistryError::Status { status: 400, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The list where it is written, not what a mirror has of it. One that cannot be read is not written over: others have their entries in it.
    async fn list_to_write(&self, tag: &Reference) -> Result<ReferrersIndex, RegistryError> {
        let mut attempts = self.push_attempts(tag.repository()).await?;
        loop {
            let endpoint = attempts.endpoint()?;
            match self.fallback_bytes(&endpoint, tag).await {
                Ok(None) => return Ok(ReferrersIndex::default()),
                Ok(Some(bytes)) => {
                    let unreadable = |_| {
                        let what = "what is under its fallback tag is no list of referrers";
                        invalid(tag.repository(), &endpoint.host, what)
                    };
                    return ReferrersIndex::parse(&bytes).map_err(unreadable);
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    pub(super) async fn push_referrer(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        bytes: &[u8],
        subject: &Digest,
    ) -> Result<(), RegistryError> {
        let reference = repository.with_digest(descriptor.digest().clone());
        let pushed = self.push_manifest(&reference, descriptor.media_type().as_ref(), bytes).await?;
        if pushed.subject_listed {
            return Ok(());
        }
        let tag = repository.with_tag(&fallback::tag(subject))?;
        // Another writer may have read the list before we wrote ours, and write his over it. There is no way to lock, so look again when he
        // must be done; the pauses differ, so that those who lost do not meet a second time.
        for _ in 0..MAX_WRITES {
            let mut list = self.list_to_write(&tag).await?;
            if !list.put(descriptor) {
                return Ok(());
            }
            self.push_manifest(&tag, soci_index::INDEX_MEDIA_TYPE, &list.to_json()).await?;
            tokio::time::sleep(SETTLING.mul_f64(1.0 + random_fraction())).await;
        }
        tracing::warn!(%repository, %subject, "another writer keeps changing the list of referrers");
        Ok(())
    }
}

fn is_unsupported(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 404 | 405 | 406 | 410 | 415 | 501)
}

/// The `rel="next"` of a `Link` header (RFC 8288).
fn next_page(url: &Url, headers: &HeaderMap) -> Option<Url> {
    let text = headers.get(LINK)?.to_str().ok()?;
    let (target, parameters) = text.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.replace([' ', '"'], "").to_ascii_lowercase().contains("rel=next");
    is_next.then(|| url.join(target).ok()).flatten()
}
