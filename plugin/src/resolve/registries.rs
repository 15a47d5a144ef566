//! The registry client, as each repository wants it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use oci_registry::{Client, ClientError, ClientOptions, Repository};
use oci_spec::image::Digest;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::credentials::Keyring;
use crate::telemetry::chain;

/// How registries are greeted.
#[derive(Clone, Copy, Debug)]
pub struct GreetOptions {
    /// So many at the same time; one more is not greeted.
    pub at_once: usize,
    /// How long one may take; it only saves somebody time.
    pub deadline: Duration,
}

/// Whether a registry lets us read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Too much else was going on.
    Unknown,
    /// It does.
    Readable,
    /// It does not, or is not there; why, in words.
    Unreadable(String),
}

/// Clients: one for ordinary hosts, and one for each way of talking that was handed over with credentials.
pub struct Registries {
    options: ClientOptions,
    keyring: Arc<Keyring>,
    clients: Mutex<HashMap<Manner, Client>>,
    greeting: Duration,
    /// One permit for each greeting under way.
    greetings: Arc<Semaphore>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Manner {
    plain_http: bool,
    skip_verify: bool,
}

// === impl Registries ===

impl Registries {
    /// Clients with these options, but for what `keyring` says of a repository.
    #[must_use]
    pub fn new(options: ClientOptions, greet: GreetOptions, keyring: Arc<Keyring>) -> Registries {
        Registries {
            options,
            keyring,
            clients: Mutex::default(),
            greeting: greet.deadline,
            greetings: Arc::new(Semaphore::new(greet.at_once)),
        }
    }

    /// Has a connection and a token made ready for a repository, in the background. Whatever goes wrong shows when somebody needs it.
    pub fn greet(self: &Arc<Self>, host: &str, repository: &str) {
        let Ok(repository) = Repository::at_host(host, repository) else { return };
        let Ok(permit) = Arc::clone(&self.greetings).try_acquire_owned() else { return };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _permit = permit;
            let greet = async {
                let client = this.client(&repository).map_err(|error| chain(&error))?;
                client.greet(&repository).await.map_err(|error| chain(&error))
            };
            match tokio::time::timeout(this.greeting, greet).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(error, %repository, "registry not ready ahead of its readers")
                }
                Err(_) => tracing::debug!(%repository, "registry slow to answer ahead of its readers"),
            }
        });
    }

    /// Whether this manifest can be read, within the time that a greeting may take: connection and token are ready then.
    pub async fn reach(&self, repository: Repository, manifest: Digest) -> Reach {
        let Ok(_permit) = Arc::clone(&self.greetings).try_acquire_owned() else { return Reach::Unknown };
        let reach = async {
            let client = self.client(&repository).map_err(|error| chain(&error))?;
            client.reach(&repository.with_digest(manifest)).await.map_err(|error| chain(&error))
        };
        match tokio::time::timeout(self.greeting, reach).await {
            Ok(Ok(())) => Reach::Readable,
            Ok(Err(reason)) => Reach::Unreadable(reason),
            Err(_) => Reach::Unreadable(format!("no answer within {:?}", self.greeting)),
        }
    }

    /// The client for a repository.
    ///
    /// # Errors
    /// Where the system's certificates cannot be used.
    pub fn client(&self, repository: &Repository) -> Result<Client, ClientError> {
        let handed = self.keyring.get(repository.host(), repository.name()).unwrap_or_default();
        let manner = Manner { plain_http: handed.plain_http, skip_verify: handed.skip_verify };
        if let Some(client) = self.clients.lock().get(&manner) {
            return Ok(client.clone());
        }
        let mut options = self.options.clone();
        if manner.plain_http {
            options.hosts.plain_http = Some(true);
        }
        options.hosts.skip_verify |= manner.skip_verify;
        let client = Client::new(options)?;
        self.clients.lock().insert(manner, client.clone());
        Ok(client)
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}
