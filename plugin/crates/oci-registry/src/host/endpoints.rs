//! The endpoints of each registry, as the configuration has them now.

use super::endpoint::{Endpoint, EndpointParts};
use super::folder::{self, Fingerprint};
use super::hosts_file::HostEntry;
use super::mirror::{MirrorHost, RequestTimeout};
use super::transport::Transport;
use crate::client::ClientOptions;
use crate::error::ClientError;
use crate::reference::Repository;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

type List = Arc<[Arc<Endpoint>]>;

pub(crate) struct Endpoints {
    loader: Arc<Loader>,
    known: Mutex<HashMap<String, Known>>,
}

struct Loader {
    options: Arc<ClientOptions>,
    /// For endpoints with nothing special about them.
    transport: Arc<Transport>,
}

struct Known {
    checked: Instant,
    fingerprint: Fingerprint,
    list: List,
}

// === impl Endpoints ===

impl Endpoints {
    pub(crate) fn new(options: Arc<ClientOptions>, transport: Arc<Transport>) -> Self {
        Self { loader: Arc::new(Loader { options, transport }), known: Mutex::default() }
    }

    /// Where to ask for a repository, in order; never empty.
    pub(crate) async fn of(&self, repository: &Repository) -> Result<List, ClientError> {
        let domain = repository.domain();
        let options = &self.loader.options;
        let (is_static, lifetime) = (options.hosts.hosts_dir.is_empty(), options.bounds.hosts_lifetime);
        let known = match self.known.lock().get(domain) {
            Some(known) if is_static || known.checked.elapsed() < lifetime => return Ok(known.list.clone()),
            Some(known) => Some((known.fingerprint.clone(), known.list.clone())),
            None => None,
        };
        let loaded = if is_static {
            self.loader.load(repository, None)
        } else {
            // Files and certificates are read.
            let (loader, repository) = (self.loader.clone(), repository.clone());
            let before = known.as_ref().map(|(fingerprint, _)| fingerprint.clone());
            let task = tokio::task::spawn_blocking(move || loader.load(&repository, before.as_ref()));
            task.await.unwrap_or(Err(ClientError::Stopped))
        };
        match (loaded, known) {
            (Ok(Some((fingerprint, list))), _) => Ok(self.note(domain, fingerprint, list)),
            (Ok(None), Some((fingerprint, list))) => Ok(self.note(domain, fingerprint, list)),
            (Ok(None), None) => Err(ClientError::Stopped),
            // Who reads from a mirror goes on while somebody edits its file.
            (Err(error), Some((fingerprint, list))) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, domain, "the configuration of hosts is unusable, keeping the last one");
                Ok(self.note(domain, fingerprint, list))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Keeps a list, and returns it; but what is there already, where that is the same or another task was faster: its
    /// tokens and connections are in use.
    fn note(&self, domain: &str, fingerprint: Fingerprint, list: List) -> List {
        let checked = Instant::now();
        let mut all = self.known.lock();
        if let Some(known) = all.get_mut(domain).filter(|known| known.fingerprint == fingerprint) {
            known.checked = checked;
            return known.list.clone();
        }
        if all.len() >= self.loader.options.bounds.registries {
            all.clear();
        }
        all.insert(domain.to_owned(), Known { checked, fingerprint, list: list.clone() });
        list
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoints({} registries)", self.known.lock().len())
    }
}

// === impl Loader ===

impl Loader {
    /// The endpoints of a registry; None where nothing changed since `before`.
    fn load(
        &self,
        repository: &Repository,
        before: Option<&Fingerprint>,
    ) -> Result<Option<(Fingerprint, List)>, ClientError> {
        let found = folder::read(&self.options.hosts.hosts_dir, repository.domain())?;
        if before == Some(&found.fingerprint) {
            return Ok(None);
        }
        let mirrors =
            self.options.hosts.mirrors.get(repository.domain()).map(Vec::as_slice).unwrap_or_default();
        let mirrors = mirrors.iter().map(MirrorHost::entry).collect::<Result<Vec<_>, _>>()?;
        let endpoints = mirrors
            .into_iter()
            .chain(found.entries)
            .map(|entry| self.endpoint(repository, entry).map(Arc::new));
        let list = endpoints.collect::<Result<Vec<_>, _>>()?;
        Ok(Some((found.fingerprint, list.into())))
    }

    fn endpoint(&self, repository: &Repository, entry: HostEntry) -> Result<Endpoint, ClientError> {
        let (domain, registry) = (repository.domain(), repository.host());
        let options = &self.options;
        let is_special = !entry.ca.is_empty()
            || !entry.client.is_empty()
            || entry.skip_verify.is_some()
            || entry.dial_timeout.is_some();
        let mut hosts = options.hosts.clone();
        hosts.ca.extend(entry.ca);
        hosts.skip_verify = entry.skip_verify.unwrap_or(hosts.skip_verify);
        if entry.client.len() > 1 {
            tracing::warn!(domain, "several client certificates for one host, the first one is used");
        }
        hosts.client_cert = entry.client.into_iter().next().or(hosts.client_cert);
        let transport = if is_special {
            let connect_timeout = entry.dial_timeout.unwrap_or(options.connect_timeout);
            Arc::new(Transport::new(options, &hosts, connect_timeout)?)
        } else {
            self.transport.clone()
        };
        let (base, host) = match entry.url {
            Some(url) => (url.base, url.authority),
            None => {
                let base = hosts.base(registry).and_then(|base| base.join("v2/").ok());
                let base = base.ok_or_else(|| ClientError::Address { host: registry.to_owned() })?;
                (base, registry.to_owned())
            }
        };
        let namespace = (host != domain && host != registry).then(|| domain.to_owned());
        let request_timeout = match entry.request_timeout {
            Some(RequestTimeout::Never) => None,
            Some(RequestTimeout::After(timeout)) => Some(timeout),
            None => options.request_timeout,
        };
        let (capabilities, header) = (entry.capabilities, entry.header);
        let demotion = options.bounds.demotion;
        let parts = EndpointParts {
            base,
            host,
            capabilities,
            header,
            namespace,
            transport,
            request_timeout,
            demotion,
        };
        Ok(Endpoint::new(parts))
    }
}
