//! Who we are to a registry: what rpull was given on its command line, else what our docker configuration says, else what rpull found in its
//! caller's. In memory only, never shown.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use oci_registry::{CredentialSource, Credentials};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::keeper::Keeper;

/// What was handed over, by registry host and repository.
#[derive(Debug)]
pub struct Keyring {
    /// Repositories that are remembered at most; the one that was handed over first is forgotten first.
    max: usize,
    entries: Mutex<Entries>,
    /// Has a copy for the next daemon.
    keeper: Option<Keeper>,
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
    /// They are from the caller's configuration, and come after our own: ours may be renewed where these only expire.
    pub found: bool,
    /// Without TLS, although the host is not this machine.
    pub plain_http: bool,
    /// With TLS, whatever the certificate.
    pub skip_verify: bool,
}

/// An entry as the keeper has it.
#[derive(Serialize, Deserialize)]
struct KeptEntry<'a> {
    host: Cow<'a, str>,
    repository: Cow<'a, str>,
    /// User name and secret.
    login: Option<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(default)]
    found: bool,
    plain_http: bool,
    skip_verify: bool,
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

/// The keyring as a source for the registry client: either what was given, or what was found.
#[derive(Clone, Debug)]
pub struct FromKeyring {
    keyring: Arc<Keyring>,
    found: bool,
}

// === impl Keyring ===

impl Keyring {
    /// One for at most `max` repositories, which goes on with what `keeper` kept of an earlier one.
    #[must_use]
    pub fn kept(max: usize, keeper: Keeper, kept: Option<&[u8]>) -> Keyring {
        let keyring = Keyring { keeper: Some(keeper), ..Keyring::alone(max) };
        keyring.restore(kept.unwrap_or(b"[]"));
        keyring
    }

    /// One that nobody keeps.
    pub(crate) fn alone(max: usize) -> Keyring {
        Keyring { max, entries: Mutex::default(), keeper: None }
    }

    /// What is not understood was written by another version, and is forgotten.
    fn restore(&self, kept: &[u8]) {
        for entry in serde_json::from_slice::<Vec<KeptEntry<'_>>>(kept).unwrap_or_default() {
            let credentials =
                entry.login.map(|(name, secret)| Credentials::new(name.into_owned(), secret.into_owned()));
            self.remember(HandedOver {
                host: entry.host.into_owned(),
                repository: entry.repository.into_owned(),
                handed: Handed {
                    credentials,
                    found: entry.found,
                    plain_http: entry.plain_http,
                    skip_verify: entry.skip_verify,
                },
            });
        }
    }

    /// Remembers; what was known of this repository before is forgotten. Blocking, for moments: the keeper is told.
    pub fn add(&self, new: HandedOver) {
        let same = self.get(&new.host, &new.repository).as_ref() == Some(&new.handed);
        self.remember(new);
        if let Some(keeper) = self.keeper.as_ref().filter(|_| !same) {
            keeper.keep_secrets(|| self.to_bytes());
        }
    }

    /// For [`Keyring::kept`].
    fn to_bytes(&self) -> Vec<u8> {
        let entries = self.entries.lock();
        let mut sorted: Vec<_> = entries.by_repository.iter().collect();
        // The first that was handed over is the first that is forgotten, in the next life too.
        sorted.sort_by_key(|(_, (number, _))| *number);
        let kept: Vec<KeptEntry<'_>> = sorted
            .into_iter()
            .map(|((host, repository), (_, handed))| KeptEntry {
                host: host.into(),
                repository: repository.into(),
                login: handed
                    .credentials
                    .as_ref()
                    .map(|login| (login.username.as_str().into(), login.secret.as_str().into())),
                found: handed.found,
                plain_http: handed.plain_http,
                skip_verify: handed.skip_verify,
            })
            .collect();
        serde_json::to_vec(&kept).unwrap_or_default()
    }

    fn remember(&self, new: HandedOver) {
        let mut entries = self.entries.lock();
        entries.count = entries.count.wrapping_add(1);
        let number = entries.count;
        let key = (new.host, new.repository);
        if !entries.by_repository.contains_key(&key) && entries.by_repository.len() >= self.max {
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

impl FromKeyring {
    /// What was given on a command line.
    #[must_use]
    pub fn given(keyring: &Arc<Keyring>) -> FromKeyring {
        FromKeyring { keyring: Arc::clone(keyring), found: false }
    }

    /// What was found in a caller's configuration.
    #[must_use]
    pub fn found(keyring: &Arc<Keyring>) -> FromKeyring {
        FromKeyring { keyring: Arc::clone(keyring), found: true }
    }
}

impl CredentialSource for FromKeyring {
    fn credentials<'a>(&'a self, host: &'a str, repository: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        let handed = self.keyring.get(host, repository).filter(|handed| handed.found == self.found);
        Box::pin(std::future::ready(handed.and_then(|handed| handed.credentials)))
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
        let keyring = Arc::new(Keyring::alone(2));
        keyring.add(entry("h:5000", "a/b", "old"));
        keyring.add(entry("h:5000", "a/b", "hunter2"));
        let source = FromKeyring::given(&keyring);
        assert_eq!(source.credentials("h:5000", "a/b").await, Some(Credentials::new("u", "hunter2")));
        assert_eq!(source.credentials("h:5000", "a/c").await, None);
        assert_eq!(source.credentials("h", "a/b").await, None);
        assert!(!format!("{keyring:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn given_and_found_are_two_sources() {
        let keyring = Arc::new(Keyring::alone(2));
        let (given, found) = (FromKeyring::given(&keyring), FromKeyring::found(&keyring));
        let mut new = entry("h", "r", "s");
        new.handed.found = true;
        keyring.add(new);
        assert_eq!(given.credentials("h", "r").await, None);
        assert_eq!(found.credentials("h", "r").await, Some(Credentials::new("u", "s")));
        let again = Arc::new(Keyring::alone(2));
        again.restore(&keyring.to_bytes());
        assert!(again.get("h", "r").unwrap().found);
        keyring.add(entry("h", "r", "t"));
        assert_eq!(given.credentials("h", "r").await, Some(Credentials::new("u", "t")));
        assert_eq!(found.credentials("h", "r").await, None);
    }

    #[test]
    fn what_was_kept_comes_back() {
        let keyring = Keyring::alone(2);
        keyring.add(entry("h:5000", "a/b", "hunter2"));
        let handed = Handed { plain_http: true, ..Handed::default() };
        keyring.add(HandedOver { host: "h".into(), repository: "r".into(), handed: handed.clone() });
        let again = Keyring::alone(2);
        again.restore(&keyring.to_bytes());
        assert_eq!(again.get("h", "r"), Some(handed));
        let login = again.get("h:5000", "a/b").unwrap().credentials.unwrap();
        assert_eq!(login.secret, "hunter2");
        again.restore(b"nonsense");
        assert!(again.get("h", "r").is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let keyring = Keyring::alone(2);
        for number in 0..3 {
            keyring.add(entry("h", &number.to_string(), "s"));
        }
        assert!(keyring.get("h", "0").is_none());
        assert!(keyring.get("h", "1").is_some());
        assert!(keyring.get("h", "2").is_some());
    }
}
