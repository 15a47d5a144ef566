//! Where blobs really are: the endpoint that has them, and the final URL of its redirects, so that a ranged read is one
//! request and not two or more.

use super::Bounds;
use crate::host::Endpoint;
use crate::reference::Repository;
use oci_spec::image::Digest;
use parking_lot::Mutex;
use reqwest::Url;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub(crate) type Key = (Repository, Digest);

pub(crate) struct Redirects {
    bounds: Bounds,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    places: HashMap<Key, Place>,
    order: VecDeque<Key>,
}

struct Place {
    endpoint: Arc<Endpoint>,
    /// None where it is the endpoint itself.
    url: Option<Url>,
    /// When the endpoint was chosen.
    since: Instant,
}

impl Redirects {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, kept: Mutex::default() }
    }

    /// The endpoint that has the blob, as far as is known.
    pub(crate) fn endpoint(&self, key: &Key) -> Option<Arc<Endpoint>> {
        let kept = self.kept.lock();
        let place =
            kept.places.get(key).filter(|place| place.since.elapsed() < self.bounds.place_lifetime)?;
        Some(place.endpoint.clone())
    }

    /// Where this endpoint's redirects end.
    pub(crate) fn get(&self, key: &Key, endpoint: &Endpoint) -> Option<Url> {
        let kept = self.kept.lock();
        let place = kept.places.get(key).filter(|place| *place.endpoint == *endpoint)?;
        place.url.clone()
    }

    pub(crate) fn put(&self, key: Key, endpoint: Arc<Endpoint>, url: Option<Url>) {
        let mut kept = self.kept.lock();
        let now = Instant::now();
        if let Some(place) = kept.places.get_mut(&key) {
            let is_new = *place.endpoint != *endpoint || place.since.elapsed() >= self.bounds.place_lifetime;
            let since = if is_new { now } else { place.since };
            *place = Place { endpoint, url, since };
            return;
        }
        kept.places.insert(key.clone(), Place { endpoint, url, since: now });
        kept.order.push_back(key);
        if kept.order.len() > self.bounds.places
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.places.remove(&oldest);
        }
    }

    /// Forgets a URL that stopped working, unless there is a newer one already.
    pub(crate) fn forget(&self, key: &Key, stale: &Url) {
        let mut kept = self.kept.lock();
        if kept.places.get(key).is_some_and(|place| place.url.as_ref() == Some(stale)) {
            kept.places.remove(key);
            kept.order.retain(|other| other != key);
        }
    }
}

impl fmt::Debug for Redirects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URLs: signatures in them are as good as passwords.
        write!(f, "Redirects({})", self.kept.lock().places.len())
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

    fn endpoint() -> Arc<Endpoint> {
        Arc::new(Endpoint::of_tests("http://localhost:5000/v2/"))
    }

    #[test]
    fn keeps_forgets_and_is_bounded() {
        let bounds = Bounds { places: 5, ..Bounds::default() };
        let redirects = Redirects::new(bounds);
        let (here, there) = (endpoint(), endpoint());
        for number in 0..=bounds.places {
            redirects.put(key(number), here.clone(), Some(url(number)));
        }
        assert_eq!(redirects.get(&key(0), &here), None);
        assert_eq!(redirects.get(&key(1), &here), Some(url(1)));
        assert_eq!(redirects.get(&key(1), &there), None);
        redirects.put(key(1), here.clone(), Some(url(7)));
        redirects.forget(&key(1), &url(1));
        assert_eq!(redirects.get(&key(1), &here), Some(url(7)));
        redirects.forget(&key(1), &url(7));
        assert_eq!(redirects.get(&key(1), &here), None);
        redirects.put(key(2), there.clone(), None);
        assert_eq!(redirects.get(&key(2), &here), None);
        assert!(redirects.endpoint(&key(2)).is_some_and(|endpoint| endpoint == there));
        assert!(!format!("{redirects:?}").contains("hunter2"));
        let kept = redirects.kept.lock();
        assert_eq!(kept.places.len(), kept.order.len());
    }
}
