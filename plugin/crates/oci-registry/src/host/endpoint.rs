//! One place to ask for the content of a registry: the registry itself, or a mirror of it.

use super::capabilities::Capabilities;
use super::transport::Transport;
use http::HeaderMap;
use parking_lot::Mutex;
use reqwest::Url;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// An endpoint. Two are equal where they come from the same reading of the configuration: tokens and locations that were
/// got under an older one are not used under a newer.
#[derive(Debug)]
pub(crate) struct Endpoint {
    id: u64,
    /// What comes before a repository's name in a URL, with `/` at its end: `https://host/v2/`.
    pub(crate) base: Url,
    /// Host and port as configured: what credentials are asked for, and what messages say.
    pub(crate) host: String,
    pub(crate) capabilities: Capabilities,
    /// Sent with every request to this host, and to no other.
    pub(crate) header: HeaderMap,
    /// The registry that this is a mirror of; goes into the query as `ns`.
    pub(crate) namespace: Option<String>,
    pub(crate) transport: Arc<Transport>,
    /// For a whole request, its body included.
    pub(crate) request_timeout: Option<Duration>,
    /// For how long it comes after the others when it could not be reached. It is never left out.
    demotion: Duration,
    /// It could not be reached: until then it comes after the others.
    demoted_until: Mutex<Option<Instant>>,
    contact: Contact,
    referrers_api: AtomicBool,
}

/// Nobody has had an answer from the endpoint yet, but for the one who holds this: others wait, and find a connection and perhaps a token
/// when it is dropped.
#[derive(Debug)]
pub(crate) struct FirstContact<'a> {
    contact: &'a Contact,
    _permit: SemaphorePermit<'a>,
}

#[derive(Debug)]
struct Contact {
    made: AtomicBool,
    turn: Semaphore,
}

/// What there is to say about an endpoint.
#[derive(Debug)]
pub(crate) struct EndpointParts {
    pub(crate) base: Url,
    pub(crate) host: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) header: HeaderMap,
    pub(crate) namespace: Option<String>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) demotion: Duration,
}

impl Endpoint {
    pub(crate) fn new(parts: EndpointParts) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let EndpointParts {
            base,
            host,
            capabilities,
            header,
            namespace,
            transport,
            request_timeout,
            demotion,
        } = parts;
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            base,
            host,
            capabilities,
            header,
            namespace,
            transport,
            request_timeout,
            demotion,
            demoted_until: Mutex::default(),
            contact: Contact { made: AtomicBool::new(false), turn: Semaphore::new(1) },
            referrers_api: AtomicBool::new(false),
        }
    }

    /// The right to be the first who asks this endpoint; None once somebody was. However it ended, nobody waits a second time.
    pub(crate) async fn first_contact(&self) -> Option<FirstContact<'_>> {
        let contact = &self.contact;
        if contact.made.load(Ordering::Acquire) {
            return None;
        }
        let permit = contact.turn.acquire().await.ok()?;
        (!contact.made.load(Ordering::Acquire)).then_some(FirstContact { contact, _permit: permit })
    }

    /// Whether it has answered by the referrers API once. That it has not is never certain: some refuse it for one repository alone.
    pub(crate) fn has_referrers_api(&self) -> bool {
        self.referrers_api.load(Ordering::Relaxed)
    }

    pub(crate) fn note_referrers_api(&self) {
        self.referrers_api.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    #[allow(clippy::unwrap_used, reason = "tests")]
    pub(crate) fn of_tests(base: &str) -> Self {
        let base = Url::parse(base).unwrap();
        let options = super::HostOptions { skip_verify: true, ..super::HostOptions::default() };
        let client = crate::ClientOptions::default();
        let transport = Arc::new(Transport::new(&client, &options, client.connect_timeout).unwrap());
        let (host, header) = (crate::token::host_of(&base), HeaderMap::new());
        let capabilities = Capabilities::ALL;
        Self::new(EndpointParts {
            base,
            host,
            capabilities,
            header,
            namespace: None,
            transport,
            request_timeout: None,
            demotion: client.bounds.demotion,
        })
    }

    /// Whether repositories have other names here: their paths have a prefix of their own.
    pub(crate) fn has_own_names(&self) -> bool {
        self.base.path() != "/v2/"
    }

    pub(crate) fn note_unreachable(&self) {
        *self.demoted_until.lock() = Some(Instant::now() + self.demotion);
    }

    pub(crate) fn is_demoted(&self) -> bool {
        self.demoted_until.lock().is_some_and(|until| Instant::now() < until)
    }
}

impl Drop for FirstContact<'_> {
    fn drop(&mut self) {
        self.contact.made.store(true, Ordering::Release);
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Endpoint {}

impl Hash for Endpoint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}
