//! Who we are to a registry: what rpull handed over, else what docker's configuration says. In memory only, never shown.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use oci_registry::{CredentialSource, Credentials};
use parking_lot::Mutex;

/// Repositories that are remembered at most; the one that was handed over first is forgotten first.
const MAX_ENTRIES: usize = 4096;

/// What was handed over, by registry host and repository.
#[derive(Debug, Default)]
pub struct Keyring {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    count: u64,
    by_repository: HashMap<(String, String), (u64, Handed)>,
}

/// How to reach one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handed {
    /// None where only the way of talking was handed over.
    pub credentials: Option<Credentials>,
    /// Without TLS, although the host is not this machine.
    pub plain_http: bool,
    /// With TLS, whatever the certificate.
    pub skip_verify: bool,
}

/// [`Handed`], and for what.
#[derive(Clone, Debug)]
pub struct HandedOver {
    /// Host with port as the registry is reached.
    pub host: String,
    /// Repository below it.
    pub repository: String,
    /// How to reach it.
    pub handed: Handed,
}

/// The keyring as a source for the registry client.
#[derive(Clone, Debug)]
pub struct FromKeyring(pub Arc<Keyring>);

// === impl Keyring ===

impl Keyring {
    /// Remembers; what was known of this repository before is forgotten.
    pub fn add(&self, new: HandedOver) {
        let mut entries = self.entries.lock();
        entries.count = entries.count.wrapping_add(1);
        let number = entries.count;
        let key = (new.host, new.repository);
        if !entries.by_repository.contains_key(&key) && entries.by_repository.len() >= MAX_ENTRIES {
            let oldest = entries
                .by_repository
                .iter()
                .min_by_key(|(_, (number, _))| *number)
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                entries.by_repository.remove(&oldest);
            }
        }
        entries.by_repository.insert(key, (number, new.handed));
    }

    /// What is known of a repository.
    pub fn get(&self, host: &str, repository: &str) -> Option<Handed> {
        let key = (host.to_owned(), repository.to_owned());
        self.entries.lock().by_repository.get(&key).map(|(_, handed)| handed.clone())
    }
}

impl CredentialSource for FromKeyring {
    fn credentials<'a>(&'a self, host: &'a str, repository: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        Box::pin(std::future::ready(self.0.get(host, repository).and_then(|handed| handed.credentials)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(host: &str, repository: &str, secret: &str) -> HandedOver {
        HandedOver {
            host: host.into(),
            repository: repository.into(),
            handed: Handed { credentials: Some(Credentials::new("u", secret)), ..Handed::default() },
        }
    }

    #[tokio::test]
    async fn one_repository_of_one_host() {
        let keyring = Arc::new(Keyring::default());
        keyring.add(entry("h:5000", "a/b", "old"));
        keyring.add(entry("h:5000", "a/b", "hunter2"));
        let source = FromKeyring(Arc::clone(&keyring));
        assert_eq!(source.credentials("h:5000", "a/b").await, Some(Credentials::new("u", "hunter2")));
        assert_eq!(source.credentials("h:5000", "a/c").await, None);
        assert_eq!(source.credentials("h", "a/b").await, None);
        assert!(!format!("{keyring:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let keyring = Keyring::default();
        for number in 0..=MAX_ENTRIES {
            keyring.add(entry("h", &number.to_string(), "s"));
        }
        assert!(keyring.get("h", "0").is_none());
        assert!(keyring.get("h", "1").is_some());
    }
}
