//! Authorisation: what to send with a request, and how to get new.
//!
//! One slot for each (endpoint, repository, access). However many requests are refused at a time, one task renews the slot,
//! and it runs to its end even if those who wait for it give up. A failure is told to those who wait and not remembered.

use crate::challenge::Challenge;
use crate::client::ClientOptions;
use crate::error::{RegistryError, is_transient_status};
use crate::host::Endpoint;
use crate::reference::Repository;
use crate::retry::Retry;
use base64::Engine as _;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use http::HeaderValue;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use reqwest::Url;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest answer of a token server that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// How long a token is good for, where the token server does not say (distribution's token specification).
const DEFAULT_EXPIRY: Duration = Duration::from_secs(60);
/// A token is renewed this long before it ends.
const SLACK: Duration = Duration::from_secs(10);

/// What a request needs to be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// What an authorisation is for. Never used for another: it goes to this endpoint alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) repository: Repository,
    pub(crate) access: Access,
}

/// A value for the `Authorization` header.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: HeaderValue,
    generation: u64,
    expires: Option<Instant>,
}

/// Why there is no authorisation; shared by all who waited.
#[derive(Clone)]
enum Refusal {
    Unauthorized { anonymous: bool },
    Token { host: String, reason: String, transient: bool },
}

type Renewal = Shared<BoxFuture<'static, Result<Authorization, Refusal>>>;

enum State {
    Pending { id: u64, renewal: Renewal },
    Ready(Authorization),
}

struct Slot {
    challenge: Challenge,
    state: State,
}

#[derive(Default)]
struct Slots {
    slots: HashMap<Key, Slot>,
    /// Numbers renewals, so that a late refusal of an old token does not throw away a new one.
    generation: u64,
}

pub(crate) struct Tokens {
    fetcher: Arc<Fetcher>,
    slots: Mutex<Slots>,
}

struct Fetcher {
    options: Arc<ClientOptions>,
}

// === impl Tokens ===

impl Tokens {
    pub(crate) fn new(options: Arc<ClientOptions>) -> Self {
        Self { fetcher: Arc::new(Fetcher { options }), slots: Mutex::default() }
    }

    /// What is known to work, renewed where it is about to end. None where the host has not asked for any yet.
    pub(crate) async fn current(&self, key: &Key) -> Result<Option<Authorization>, RegistryError> {
        let (id, renewal) = {
            let mut slots = self.slots.lock();
            let expired =
                |authorization: &Authorization| authorization.expires.is_some_and(|at| at <= Instant::now());
            match slots.slots.get(key) {
                None => return Ok(None),
                Some(Slot { state: State::Ready(found), .. }) if !expired(found) => {
                    return Ok(Some(found.clone()));
                }
                Some(Slot { state: State::Pending { id, renewal }, .. }) => (*id, renewal.clone()),
                Some(Slot { challenge, .. }) => {
                    let challenge = challenge.clone();
                    self.start(&mut slots, key, challenge, None)
                }
            }
        };
        self.finish(key, id, renewal).await.map(Some)
    }

    /// Gets new authorisation after `refused` (or nothing) was answered with `challenge`. It is under way when this returns; the future waits
    /// for its end.
    pub(crate) fn renew<'a>(
        &'a self,
        key: &'a Key,
        challenge: Challenge,
        refused: Option<&Authorization>,
    ) -> impl Future<Output = Result<(), RegistryError>> + use<'a> {
        let pending = {
            let mut slots = self.slots.lock();
            let refused_generation = refused.map_or(0, |authorization| authorization.generation);
            match slots.slots.get(key) {
                Some(Slot { state: State::Ready(found), .. }) if found.generation > refused_generation => {
                    None
                }
                Some(Slot { state: State::Pending { id, renewal }, .. }) => Some((*id, renewal.clone())),
                _ => Some(self.start(
                    &mut slots,
                    key,
                    challenge,
                    refused.map(|authorization| authorization.header.clone()),
                )),
            }
        };
        async move {
            match pending {
                Some((id, renewal)) => self.finish(key, id, renewal).await.map(|_| ()),
                None => Ok(()),
            }
        }
    }

    /// The challenge that was last followed for this; ECR refuses an expired token without repeating it.
    pub(crate) fn last_challenge(&self, key: &Key) -> Option<Challenge> {
        self.slots.lock().slots.get(key).map(|slot| slot.challenge.clone())
    }

    fn start(
        &self,
        slots: &mut Slots,
        key: &Key,
        challenge: Challenge,
        refused: Option<HeaderValue>,
    ) -> (u64, Renewal) {
        slots.generation = slots.generation.saturating_add(1);
        let id = slots.generation;
        let (fetcher, task_key, task_challenge) = (self.fetcher.clone(), key.clone(), challenge.clone());
        let task = tokio::spawn(async move { fetcher.fetch(&task_key, &task_challenge, refused, id).await });
        let ended = || Refusal::Token {
            host: String::new(),
            reason: "the runtime is shutting down".to_owned(),
            transient: true,
        };
        let renewal = task.map(move |joined| joined.unwrap_or_else(|_| Err(ended()))).boxed().shared();
        if slots.slots.len() >= self.fetcher.options.bounds.tokens {
            let oldest = slots.slots.iter().filter_map(|(key, slot)| match &slot.state {
                State::Ready(found) => Some((found.generation, key.clone())),
                State::Pending { .. } => None,
            });
            if let Some((_, oldest)) = oldest.min_by_key(|(generation, _)| *generation) {
                slots.slots.remove(&oldest);
            }
        }
        let state = State::Pending { id, renewal: renewal.clone() };
        slots.slots.insert(key.clone(), Slot { challenge, state });
        (id, renewal)
    }

    async fn finish(&self, key: &Key, id: u64, renewal: Renewal) -> Result<Authorization, RegistryError> {
        let outcome = renewal.await;
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.slots.get_mut(key)
            && matches!(&slot.state, State::Pending { id: pending, .. } if *pending == id)
        {
            match &outcome {
                Ok(found) => slot.state = State::Ready(found.clone()),
                Err(_) => {
                    slots.slots.remove(key);
                }
            }
        }
        outcome.map_err(|refusal| refusal.into_error(key))
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.slots.lock().slots.len())
    }
}

// === impl Refusal ===

impl Refusal {
    fn into_error(self, key: &Key) -> RegistryError {
        let repository = key.repository.clone();
        match self {
            Self::Unauthorized { anonymous } => {
                RegistryError::Unauthorized { host: key.endpoint.host.clone(), repository, anonymous }
            }
            Self::Token { host, reason, transient } => {
                RegistryError::Token { host, repository, reason, transient }
            }
        }
    }
}

// === impl Fetcher ===

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl Fetcher {
    async fn fetch(
        &self,
        key: &Key,
        challenge: &Challenge,
        refused: Option<HeaderValue>,
        generation: u64,
    ) -> Result<Authorization, Refusal> {
        let source = &self.options.credentials;
        let credentials = source.credentials(&key.endpoint.host, key.repository.name()).await;
        let anonymous = credentials.is_none();
        match challenge {
            Challenge::Basic => {
                let credentials = credentials.filter(|c| !c.is_identity_token());
                let credentials = credentials.ok_or(Refusal::Unauthorized { anonymous })?;
                let header = secret_header("Basic", &basic(&credentials.username, &credentials.secret));
                // The same again would be refused again.
                match header.filter(|header| refused.as_ref() != Some(header)) {
                    Some(header) => Ok(Authorization { header, generation, expires: None }),
                    None => Err(Refusal::Unauthorized { anonymous }),
                }
            }
            Challenge::Bearer { realm, service, scope } => {
                let realm = realm_url(&key.endpoint, realm)?;
                let scopes = scopes(key, scope.as_deref());
                let mut retry = Retry::new(&self.options);
                loop {
                    let asked =
                        self.ask(&key.endpoint, &realm, service.as_deref(), &scopes, credentials.as_ref());
                    let refusal = match asked.await {
                        Ok(answer) => return authorization(&realm, answer, generation),
                        Err(refusal) => refusal,
                    };
                    if matches!(refusal, Refusal::Unauthorized { .. }) {
                        return Err(refusal);
                    }
                    // Through the error, which knows what is worth a retry.
                    if let Err(error) = retry.pause(refusal.clone().into_error(key)).await {
                        tracing::debug!(%error, "no token");
                        return Err(refusal);
                    }
                }
            }
        }
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        realm: &Url,
        service: Option<&str>,
        scopes: &[String],
        credentials: Option<&crate::Credentials>,
    ) -> Result<Answer, Refusal> {
        let host = host_of(realm);
        let failed =
            |reason: String, transient: bool| Refusal::Token { host: host.clone(), reason, transient };
        let http = endpoint.transport.elsewhere_for(realm);
        let service = service.map(|service| ("service", service));
        let request = match credentials {
            Some(credentials) if credentials.is_identity_token() => {
                let scope = scopes.join(" ");
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("client_id", "soci-snapshotter"),
                    ("refresh_token", credentials.secret.as_str()),
                    ("scope", scope.as_str()),
                ];
                form.extend(service);
                http.post(realm.clone()).form(&form)
            }
            _ => {
                let mut query: Vec<(&str, &str)> = service.into_iter().collect();
                query.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
                let request = http.get(realm.clone()).query(&query);
                match credentials.map(|c| secret_header("Basic", &basic(&c.username, &c.secret))) {
                    Some(Some(header)) => request.header(AUTHORIZATION, header),
                    Some(None) => return Err(Refusal::Unauthorized { anonymous: false }),
                    None => request,
                }
            }
        };
        // Where it is the registry itself, it may want them, too.
        let own = realm.origin() == endpoint.base.origin();
        let mut header = if own { endpoint.header.clone() } else { http::HeaderMap::new() };
        if credentials.is_some() {
            header.remove(AUTHORIZATION);
        }
        let request = request.headers(header);
        let deadline = self.options.connect_timeout.saturating_add(self.options.header_timeout);
        let exchange = async {
            let mut response = request.send().await?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
            Ok::<_, reqwest::Error>((response.status().as_u16(), body))
        };
        let (status, body) = match tokio::time::timeout(deadline, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(failed(describe(error), true)),
            Err(_) => return Err(failed("no answer in time".to_owned(), true)),
        };
        match status {
            200..=299 => {
                serde_json::from_slice(&body).map_err(|_| failed("its answer is not JSON".to_owned(), false))
            }
            // OAuth2 says 400 to a bad refresh token (RFC 6749, 5.2).
            401 | 403 => Err(Refusal::Unauthorized { anonymous: credentials.is_none() }),
            400 if credentials.is_some_and(crate::Credentials::is_identity_token) => {
                Err(Refusal::Unauthorized { anonymous: false })
            }
            status => Err(failed(format!("status {status}"), is_transient_status(status))),
        }
    }
}

/// The token server. It gets the credentials, so a registry on TLS cannot name one without.
fn realm_url(endpoint: &Endpoint, realm: &str) -> Result<Url, Refusal> {
    let wrong = |reason: &str| Refusal::Token {
        host: endpoint.host.clone(),
        reason: reason.to_owned(),
        transient: false,
    };
    let url = Url::parse(realm).map_err(|_| wrong("the token server's address is not a URL"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if endpoint.base.scheme() == "http" => Ok(url),
        _ => Err(wrong("the token server is not on https")),
    }
}

fn authorization(realm: &Url, answer: Answer, generation: u64) -> Result<Authorization, Refusal> {
    let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let header = token.and_then(|token| secret_header("Bearer", &token));
    let header = header.ok_or_else(|| Refusal::Token {
        host: host_of(realm),
        reason: "there is no token in its answer".to_owned(),
        transient: false,
    })?;
    let seconds = answer.expires_in.filter(|seconds| *seconds >= 1.0).map(|seconds| seconds.min(86400.0));
    let lifetime = seconds.map_or(DEFAULT_EXPIRY, Duration::from_secs_f64);
    let lifetime = lifetime.saturating_sub(SLACK.min(lifetime / 4));
    Ok(Authorization { header, generation, expires: Instant::now().checked_add(lifetime) })
}

/// Ours, and the registry's own where that is another; its own alone where it has other names for repositories.
fn scopes(key: &Key, asked: Option<&str>) -> Vec<String> {
    let actions = match key.access {
        Access::Pull => "pull",
        Access::Push => "pull,push",
    };
    let own = format!("repository:{}:{actions}", key.repository.name());
    let asked = asked.unwrap_or_default();
    let mut scopes = vec![own];
    if key.endpoint.has_own_names() && !asked.trim().is_empty() {
        scopes.clear();
    }
    for scope in asked.split(' ').filter(|scope| !scope.is_empty()).take(8) {
        if !scopes.iter().any(|known| known == scope) {
            scopes.push(scope.to_owned());
        }
    }
    scopes
}

fn basic(username: &str, secret: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{username}:{secret}"))
}

fn secret_header(scheme: &str, value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Host and port of a URL, as far as they go into messages.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// An HTTP client's error with its causes, without its URL.
pub(crate) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
