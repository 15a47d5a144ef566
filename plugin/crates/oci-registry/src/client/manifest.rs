//! Manifests: what a tag names, and the bytes.

use super::attempts::Attempts;
use super::request::{Call, content_length, invalid};
use super::{FetchedManifest, Inner, MAX_MANIFEST_SIZE, ResolvedImage};
use crate::error::RegistryError;
use crate::host::{Capabilities, Endpoint};
use crate::platform::{self, Platform};
use crate::reference::Reference;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Method};
use oci_spec::image::{Descriptor, Digest, ImageIndex, MediaType};
use serde::Deserialize;
use std::sync::Arc;

const MEDIA_TYPES: [&str; 4] = [
    soci_index::INDEX_MEDIA_TYPE,
    soci_index::MANIFEST_MEDIA_TYPE,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

impl Inner {
    pub(super) async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        self.resolve_from(self.manifest_attempts(reference).await?, reference).await
    }

    pub(super) async fn reach(&self, reference: &Reference) -> Result<(), RegistryError> {
        let attempts = self.manifest_attempts(reference).await?.once();
        self.resolve_from(attempts, reference).await.map(drop)
    }

    async fn resolve_from(
        &self,
        mut attempts: Attempts,
        reference: &Reference,
    ) -> Result<Descriptor, RegistryError> {
        loop {
            match self.resolve_at(&attempts.endpoint()?, reference).await {
                Ok(descriptor) => return Ok(descriptor),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    async fn resolve_at(
        &self,
        endpoint: &Arc<Endpoint>,
        reference: &Reference,
    ) -> Result<Descriptor, RegistryError> {
        let call = Self::manifest_call(endpoint, reference, Method::HEAD)?;
        let told = match self.manifest_answer(&call).await {
            Ok(response) => descriptor_from(reference, response.headers()),
            // Some answer HEAD with errors that they do not answer GET with.
            Err(RegistryError::Status { status: 400 | 405 | 501, .. }) => None,
            Err(error) => return Err(error),
        };
        match told {
            Some(descriptor) => Ok(descriptor),
            None => Ok(self.manifest_at(endpoint, reference).await?.descriptor),
        }
    }

    pub(super) async fn manifest(&self, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        let attempts = self.manifest_attempts(reference).await?;
        if !attempts.all_have(Capabilities::PULL) {
            // Who is believed about the tag may not be asked for the content.
            let digest = self.resolve(reference).await?.digest().clone();
            let by_digest = reference.repository().with_digest(digest);
            return self.manifest_from(self.manifest_attempts(&by_digest).await?, &by_digest).await;
        }
        self.manifest_from(attempts, reference).await
    }

    async fn manifest_from(
        &self,
        mut attempts: Attempts,
        reference: &Reference,
    ) -> Result<FetchedManifest, RegistryError> {
        loop {
            match self.manifest_at(&attempts.endpoint()?, reference).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// Any endpoint will do for a digest, but not for a tag.
    async fn manifest_attempts(&self, reference: &Reference) -> Result<Attempts, RegistryError> {
        let needed = if reference.digest().is_some() { Capabilities::PULL } else { Capabilities::RESOLVE };
        self.attempts(reference.repository(), needed).await
    }

    pub(super) async fn has_manifest(&self, reference: &Reference) -> Result<bool, RegistryError> {
        match self.resolve(reference).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<ResolvedImage, RegistryError> {
        let top = self.manifest(reference).await?;
        if !is_index(&top.descriptor) {
            return Ok(ResolvedImage { manifest: top.clone(), top });
        }
        let no_index =
            |_| invalid(reference.repository(), reference.host(), "its image index cannot be read");
        let index = ImageIndex::from_reader(&*top.bytes).map_err(no_index)?;
        let chosen = platform::choose(index.manifests(), platform).ok_or_else(|| {
            RegistryError::NoPlatform { reference: reference.to_string(), platform: platform.to_string() }
        })?;
        if !soci_index::is_sha256(chosen.digest()) {
            return Err(invalid(
                reference.repository(),
                reference.host(),
                "its image index has a digest that is not sha256",
            ));
        }
        let mut manifest =
            self.manifest(&reference.repository().with_digest(chosen.digest().clone())).await?;
        if is_index(&manifest.descriptor) {
            return Err(invalid(
                reference.repository(),
                reference.host(),
                "its image index lists an index as an image",
            ));
        }
        manifest.descriptor.set_platform(chosen.platform().clone());
        Ok(ResolvedImage { top, manifest })
    }

    fn manifest_call<'a>(
        endpoint: &Arc<Endpoint>,
        reference: &'a Reference,
        method: Method,
    ) -> Result<Call<'a>, RegistryError> {
        let call = Call::new(endpoint, reference.repository(), method, "manifests", reference.target())?;
        Ok(call.header(ACCEPT, &MEDIA_TYPES.join(", ")).header(ACCEPT, "*/*"))
    }

    async fn manifest_answer(&self, call: &Call<'_>) -> Result<reqwest::Response, RegistryError> {
        let response = self.fetch(call).await?.response;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.status_error(call, response).await)
        }
    }

    /// The manifest from this endpoint, asked once.
    pub(super) async fn manifest_at(
        &self,
        endpoint: &Arc<Endpoint>,
        reference: &Reference,
    ) -> Result<FetchedManifest, RegistryError> {
        let call = &Self::manifest_call(endpoint, reference, Method::GET)?;
        let response = self.manifest_answer(call).await?;
        let headers = response.headers().clone();
        let bytes = self.body(call, response, MAX_MANIFEST_SIZE).await?;
        check_manifest(&endpoint.host, reference, &headers, bytes)
    }
}

fn check_manifest(
    host: &str,
    reference: &Reference,
    headers: &HeaderMap,
    bytes: Bytes,
) -> Result<FetchedManifest, RegistryError> {
    let repository = reference.repository();
    let actual = soci_index::digest_of(&bytes);
    let expected = reference.digest().cloned().or_else(|| digest_header(headers));
    if let Some(expected) = expected.filter(|expected| *expected != actual) {
        return Err(RegistryError::digest_mismatch(repository, expected, actual));
    }
    // Two readers could take the bytes for two things, where the types differ (CVE-2021-41190).
    let (stated, sent) = (stated_media_type(&bytes), media_type_header(headers));
    let media_type = match (stated, sent) {
        (Some(stated), Some(sent)) if stated != sent && is_manifest_type(&sent) => {
            return Err(invalid(repository, host, "the manifest's media type is not that of the answer"));
        }
        (Some(stated), _) => stated,
        (None, Some(sent)) => sent,
        (None, None) => {
            return Err(invalid(repository, host, "the manifest has no media type"));
        }
    };
    let size = super::request::to_u64(bytes.len());
    Ok(FetchedManifest {
        descriptor: Descriptor::new(MediaType::from(media_type.as_str()), size, actual),
        bytes,
    })
}

/// What HEAD tells, where it tells all.
fn descriptor_from(reference: &Reference, headers: &HeaderMap) -> Option<Descriptor> {
    let media_type = media_type_header(headers).filter(|media_type| is_manifest_type(media_type))?;
    let size = content_length(headers).filter(|size| (1..=MAX_MANIFEST_SIZE).contains(size))?;
    let digest = match (reference.digest(), digest_header(headers)) {
        (Some(asked), Some(told)) if *asked != told => return None,
        (Some(asked), _) => asked.clone(),
        (None, told) => told?,
    };
    Some(Descriptor::new(MediaType::from(media_type.as_str()), size, digest))
}

pub(super) fn digest_header(headers: &HeaderMap) -> Option<Digest> {
    let digest = headers.get("docker-content-digest")?.to_str().ok()?;
    Digest::try_from(digest).ok().filter(soci_index::is_sha256)
}

pub(super) fn media_type_header(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let media_type = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    (!media_type.is_empty()).then_some(media_type)
}

/// Whether a media type says what kind of manifest it is; `application/json` does not.
fn is_manifest_type(media_type: &str) -> bool {
    MEDIA_TYPES.contains(&media_type)
}

fn stated_media_type(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Stated {
        media_type: Option<String>,
    }
    let stated: Stated = serde_json::from_slice(bytes).ok()?;
    stated.media_type.filter(|media_type| !media_type.is_empty())
}

fn is_index(descriptor: &Descriptor) -> bool {
    matches!(
        descriptor.media_type().as_ref(),
        soci_index::INDEX_MEDIA_TYPE | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}
