//! Where blobs really are: final URLs of redirects, so that a ranged read is one request and not two.

use crate::reference::Repository;
use oci_spec::image::Digest;
use parking_lot::Mutex;
use reqwest::Url;
use std::collections::{HashMap, VecDeque};
use std::fmt;

/// Most URLs that are kept; past that, those kept longest go.
const MAX_URLS: usize = 4096;

pub(crate) type Key = (Repository, Digest);

#[derive(Default)]
pub(crate) struct Redirects(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    urls: HashMap<Key, Url>,
    order: VecDeque<Key>,
}

impl Redirects {
    pub(crate) fn get(&self, key: &Key) -> Option<Url> {
        self.0.lock().urls.get(key).cloned()
    }

    pub(crate) fn put(&self, key: Key, url: Url) {
        let mut kept = self.0.lock();
        if kept.urls.insert(key.clone(), url).is_some() {
            return;
        }
        kept.order.push_back(key);
        if kept.order.len() > MAX_URLS
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.urls.remove(&oldest);
        }
    }

    /// Forgets a URL that stopped working, unless there is a newer one already.
    pub(crate) fn forget(&self, key: &Key, stale: &Url) {
        let mut kept = self.0.lock();
        if kept.urls.get(key) == Some(stale) {
            kept.urls.remove(key);
            kept.order.retain(|other| other != key);
        }
    }
}

impl fmt::Debug for Redirects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URLs: signatures in them are as good as passwords.
        write!(f, "Redirects({})", self.0.lock().urls.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        let repository = Repository::new("localhost:5000", "x").unwrap();
        (repository, soci_index::digest_of(&number.to_le_bytes()))
    }

    fn url(number: usize) -> Url {
        Url::parse(&format!("http://storage/{number}?sig=hunter2")).unwrap()
    }

    #[test]
    fn keeps_forgets_and_is_bounded() {
        let redirects = Redirects::default();
        for number in 0..=MAX_URLS {
            redirects.put(key(number), url(number));
        }
        assert_eq!(redirects.get(&key(0)), None);
        assert_eq!(redirects.get(&key(1)), Some(url(1)));
        redirects.put(key(1), url(7));
        redirects.forget(&key(1), &url(1));
        assert_eq!(redirects.get(&key(1)), Some(url(7)));
        redirects.forget(&key(1), &url(7));
        assert_eq!(redirects.get(&key(1)), None);
        assert!(!format!("{redirects:?}").contains("hunter2"));
        let kept = redirects.0.lock();
        assert_eq!(kept.urls.len(), kept.order.len());
    }
}
