//! One request: authorised, with a deadline, redirects followed by hand.

use super::Inner;
use crate::challenge::Challenge;
use crate::error::RegistryError;
use crate::host::{Capabilities, Endpoint};
use crate::reference::Repository;
use crate::token::{Access, Key, describe, host_of};
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Method};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Redirects that are followed for one request: servers may send in circles.
const MAX_REDIRECTS: usize = 5;
/// How often one request may be refused for want of authorisation, and sent again with a new one: a server may take none.
const MAX_RENEWALS: usize = 2;
/// What is read of the body of an error, in bytes.
const MAX_ERROR_BODY: usize = 8 << 10;

/// A request to an endpoint of a registry.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) repository: &'a Repository,
    pub(super) access: Access,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Small, and sent as often as the request is.
    pub(super) body: Bytes,
    /// The tag or digest that it is about, for errors.
    pub(super) what: &'a str,
}

/// An answer that is no redirect.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) response: Response,
    /// The final URL, where that is not the registry itself.
    pub(super) elsewhere: Option<Url>,
}

/// What an answer means for authorisation.
#[derive(Debug)]
pub(super) enum Verdict {
    Answered(Response),
    Challenged(Challenge),
}

// === impl Call ===

impl<'a> Call<'a> {
    pub(super) fn new(
        endpoint: &Arc<Endpoint>,
        repository: &'a Repository,
        method: Method,
        path: &'a str,
        what: &'a str,
    ) -> Result<Self, RegistryError> {
        let separator = if path.ends_with('/') { "" } else { "/" };
        let path = format!("{}/{path}{separator}{what}", repository.name());
        let mut url = (endpoint.base.join(&path))
            .map_err(|_| invalid(repository, &endpoint.host, "its name does not make a URL"))?;
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(Self {
            endpoint: endpoint.clone(),
            repository,
            access: Access::Pull,
            method,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            what,
        })
    }

    pub(super) fn push(mut self) -> Self {
        self.access = Access::Push;
        self
    }

    pub(super) fn header(mut self, name: http::HeaderName, value: &str) -> Self {
        if let Ok(value) = http::HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(super) fn body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }

    /// What it has to be authorised for.
    pub(super) fn key(&self) -> Key {
        Key { endpoint: self.endpoint.clone(), repository: self.repository.clone(), access: self.access }
    }

    /// Its headers and those that the configuration has for the endpoint.
    pub(super) fn all_headers(&self) -> HeaderMap {
        let mut headers = self.endpoint.header.clone();
        headers.extend(self.headers.clone());
        headers
    }

    pub(super) fn at(&self, url: Url) -> Self {
        Self { url, ..self.clone() }
    }
}

// === impl Inner ===

impl Inner {
    /// Sends a call with whatever authorisation the registry asks for. Any status but "not authorised" is an answer.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let http = call.endpoint.transport.registry_for(&call.url);
        let (host, key) = (host_of(&call.url), call.key());
        let mut renewals = 0_usize;
        let mut first = call.endpoint.first_contact().await;
        loop {
            let authorization = self.tokens.current(&key).await?;
            let mut headers = call.all_headers();
            if let Some(authorization) = &authorization {
                headers.insert(AUTHORIZATION, authorization.header.clone());
            }
            let mut request = http.request(call.method.clone(), call.url.clone()).headers(headers);
            if !call.body.is_empty() {
                request = request.body(call.body.clone());
            }
            if let Some(timeout) = call.endpoint.request_timeout {
                request = request.timeout(timeout);
            }
            let started = Instant::now();
            let response = self.exchange(&host, self.head_deadline(), request.send()).await?;
            let (took, status) = (started.elapsed(), response.status().as_u16());
            tracing::trace!(host, method = %call.method, path = call.url.path(), status, ?took, "request");
            let challenge = match self.challenge(call, response).await? {
                Verdict::Answered(response) => return Ok(response),
                Verdict::Challenged(challenge) => challenge,
            };
            if renewals >= MAX_RENEWALS {
                return Err(unauthorized(call.repository, &host, authorization.is_none()));
            }
            renewals = renewals.saturating_add(1);
            let renewal = self.tokens.renew(&key, challenge, authorization.as_ref());
            // Whoever comes now finds the renewal under way, and waits for it instead of being refused too.
            first.take();
            renewal.await?;
        }
    }

    pub(super) async fn greet(&self, repository: &Repository) -> Result<(), RegistryError> {
        let endpoint = self.attempts(repository, Capabilities::PULL).await?.endpoint()?;
        let call = Call::new(&endpoint, repository, Method::GET, "", "")?.at(endpoint.base.clone());
        let (host, key) = (host_of(&call.url), call.key());
        let mut first = endpoint.first_contact().await;
        if first.is_none() && self.tokens.current(&key).await?.is_some() {
            return Ok(());
        }
        let http = endpoint.transport.registry_for(&call.url);
        let request = http.request(call.method.clone(), call.url.clone()).headers(call.all_headers());
        let response = self.exchange(&host, self.head_deadline(), request.send()).await?;
        match self.challenge(&call, response).await? {
            Verdict::Answered(_) => Ok(()),
            // Not asked again: a token for one repository need not open the registry's front door.
            Verdict::Challenged(challenge) => {
                let renewal = self.tokens.renew(&key, challenge, None);
                first.take();
                renewal.await
            }
        }
    }

    /// Whether an answer asks for (new) authorisation, and how.
    pub(super) async fn challenge(
        &self,
        call: &Call<'_>,
        response: Response,
    ) -> Result<Verdict, RegistryError> {
        let host = host_of(&call.url);
        match response.status() {
            StatusCode::UNAUTHORIZED => match Challenge::from_headers(response.headers()) {
                Some(challenge) => Ok(Verdict::Challenged(challenge)),
                None => Err(unauthorized(call.repository, &host, true)),
            },
            StatusCode::FORBIDDEN => {
                // ECR says so to a token that was good once.
                let (_, body) = self.error_body(&host, response).await;
                let expired = body.contains("authorization token has expired");
                let challenge = self.tokens.last_challenge(&call.key()).filter(|_| expired);
                let denied = || RegistryError::Denied { host, repository: call.repository.clone() };
                challenge.map(Verdict::Challenged).ok_or_else(denied)
            }
            _ => Ok(Verdict::Answered(response)),
        }
    }

    /// Sends a call and follows redirects. Authorisation goes to the registry's own origin only.
    pub(super) async fn fetch(&self, call: &Call<'_>) -> Result<Fetched, RegistryError> {
        let mut response = self.send(call).await?;
        let mut url = call.url.clone();
        let mut elsewhere = None;
        for _ in 0..MAX_REDIRECTS {
            if !is_redirect(response.status()) {
                return Ok(Fetched { response, elsewhere });
            }
            url = self.location(call.repository, &url, &response)?;
            response = if url.origin() == call.url.origin() {
                elsewhere = None;
                self.send(&call.at(url.clone())).await?
            } else {
                elsewhere = Some(url.clone());
                self.send_elsewhere(call, &url).await?
            };
        }
        Err(invalid(call.repository, &host_of(&url), "too many redirects"))
    }

    /// Sends a call to a URL that the registry named, without any authorisation.
    pub(super) async fn send_elsewhere(&self, call: &Call<'_>, url: &Url) -> Result<Response, RegistryError> {
        let http = call.endpoint.transport.elsewhere_for(url);
        let mut request = http.request(call.method.clone(), url.clone()).headers(call.headers.clone());
        if let Some(timeout) = call.endpoint.request_timeout {
            request = request.timeout(timeout);
        }
        let (host, started) = (host_of(url), Instant::now());
        let response = self.exchange(&host, self.head_deadline(), request.send()).await?;
        let (took, status) = (started.elapsed(), response.status().as_u16());
        // Not the URL: a signature in it is as good as a password.
        tracing::trace!(host, method = %call.method, what = call.what, status, ?took, "request elsewhere");
        Ok(response)
    }

    /// The URL that an answer points to, seen from `url`.
    pub(super) fn location(
        &self,
        repository: &Repository,
        url: &Url,
        response: &Response,
    ) -> Result<Url, RegistryError> {
        let wrong = |reason: &str| invalid(repository, &host_of(url), reason);
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| wrong("there is no location in its answer"))?;
        let next = url.join(location).map_err(|_| wrong("the location in its answer is not a URL"))?;
        match (next.scheme(), url.scheme()) {
            ("https", _) | ("http", "http") => Ok(next),
            _ if next.scheme() == "http" && self.options.hosts.plain_http == Some(true) => Ok(next),
            _ => Err(wrong("it redirects from https to another scheme")),
        }
    }

    pub(super) fn head_deadline(&self) -> Duration {
        self.options.connect_timeout.saturating_add(self.options.header_timeout)
    }

    pub(super) async fn exchange(
        &self,
        host: &str,
        after: Duration,
        exchange: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, RegistryError> {
        match tokio::time::timeout(after, exchange).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(host, error)),
            Err(_) => Err(RegistryError::Timeout { host: host.to_owned(), after }),
        }
    }

    /// The next piece of a body.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, RegistryError> {
        let after = self.options.idle_timeout;
        match tokio::time::timeout(after, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(unreachable(&host_of(response.url()), error)),
            Err(_) => Err(RegistryError::Timeout { host: host_of(response.url()), after }),
        }
    }

    /// A whole body of at most `limit` bytes.
    pub(super) async fn body(
        &self,
        call: &Call<'_>,
        mut response: Response,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let too_large = || RegistryError::TooLarge {
            repository: call.repository.clone(),
            what: call.what.to_owned(),
            limit,
        };
        let announced = response.content_length();
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let (host, after) = (host_of(response.url()), self.options.body_timeout);
        let whole = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = self.chunk(&mut response).await? {
                if to_u64(body.len().saturating_add(chunk.len())) > limit {
                    return Err(too_large());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body.freeze())
        };
        let late = |_| RegistryError::Timeout { host, after };
        tokio::time::timeout(after, whole).await.map_err(late)?
    }

    /// The error that a status other than the expected ones is.
    pub(super) async fn status_error(&self, call: &Call<'_>, response: Response) -> RegistryError {
        let host = host_of(response.url());
        let repository = call.repository.clone();
        let status = response.status();
        let retry_after = retry_after(response.headers(), SystemTime::now());
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { repository, what: call.what.to_owned() },
            StatusCode::UNAUTHORIZED => unauthorized(&repository, &host, true),
            StatusCode::FORBIDDEN => RegistryError::Denied { host, repository },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { host, retry_after },
            status => {
                let (detail, _) = self.error_body(&host, response).await;
                RegistryError::Status { host, repository, status: status.as_u16(), detail, retry_after }
            }
        }
    }

    /// The first error message in a registry's error (distribution specification, "Error Codes"), and the text as such.
    async fn error_body(&self, host: &str, mut response: Response) -> (Option<String>, String) {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Problem>,
        }
        #[derive(Deserialize)]
        struct Problem {
            code: Option<String>,
            message: Option<String>,
        }
        let mut body = BytesMut::new();
        let whole = async {
            // Whatever goes wrong here, the status is the news.
            while let Ok(Some(chunk)) = self.chunk(&mut response).await {
                body.extend_from_slice(&chunk);
                if body.len() > MAX_ERROR_BODY {
                    tracing::trace!(host, "error body is cut");
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(self.options.idle_timeout, whole).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        let problem =
            serde_json::from_str::<Errors>(&text).ok().and_then(|parsed| parsed.errors.into_iter().next());
        let words =
            problem.and_then(|problem| problem.message.filter(|text| !text.is_empty()).or(problem.code));
        let clean = |words: String| words.chars().filter(|c| !c.is_control()).take(200).collect();
        (words.map(clean), text)
    }
}

pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

pub(super) fn invalid(repository: &Repository, host: &str, reason: &str) -> RegistryError {
    RegistryError::InvalidResponse {
        host: host.to_owned(),
        repository: repository.clone(),
        reason: reason.to_owned(),
    }
}

fn unauthorized(repository: &Repository, host: &str, anonymous: bool) -> RegistryError {
    RegistryError::Unauthorized { host: host.to_owned(), repository: repository.clone(), anonymous }
}

fn unreachable(host: &str, error: reqwest::Error) -> RegistryError {
    RegistryError::Unreachable { host: host.to_owned(), source: describe(error).into() }
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date. A date that is past says nothing: clocks differ.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(now).ok()
}

/// `Content-Length` as sent. The client's own idea of it is of no use after HEAD.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let at = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            // Sun, 06 Nov 1994 08:49:37 GMT, the date of the RFC.
            retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777))
        };
        assert_eq!(at("120"), Some(Duration::from_secs(120)));
        assert_eq!(at("Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(at("Sunday, 06-Nov-94 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(at("Sun Nov  6 08:50:07 1994"), Some(Duration::from_secs(30)));
        for nothing in ["Sun, 06 Nov 1994 08:49:07 GMT", "soon", "", "-1"] {
            assert_eq!(at(nothing), None, "{nothing}");
        }
    }
}
