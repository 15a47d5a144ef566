//! The registry client, as each repository wants it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use oci_registry::{Client, ClientError, ClientOptions, Repository};
use parking_lot::Mutex;

use crate::credentials::Keyring;

/// Clients: one for ordinary hosts, and one for each way of talking that was handed over with credentials.
pub struct Registries {
    options: ClientOptions,
    keyring: Arc<Keyring>,
    clients: Mutex<HashMap<Manner, Client>>,
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
    pub fn new(options: ClientOptions, keyring: Arc<Keyring>) -> Registries {
        Registries { options, keyring, clients: Mutex::default() }
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
