//! Endpoint after endpoint, and round after round.

use super::Inner;
use crate::error::RegistryError;
use crate::host::{Capabilities, Endpoint};
use crate::reference::Repository;
use crate::retry::Retry;
use oci_spec::image::Digest;
use std::sync::Arc;

/// The endpoints that one operation may try. Another endpoint is tried at once; only after all of them there is a pause,
/// and another round where the error that counts is transient.
#[derive(Debug)]
pub(super) struct Attempts {
    /// In the order of this operation, with their places in the configuration.
    order: Vec<(usize, Arc<Endpoint>)>,
    /// Index into `order`.
    current: usize,
    /// The error of the endpoint furthest back in the configuration, and its place there: the registry itself, not a
    /// mirror, says whether something exists.
    worst: Option<(usize, RegistryError)>,
    retry: Retry,
}

impl Inner {
    /// The endpoints that have any of these abilities.
    pub(super) async fn attempts(
        &self,
        repository: &Repository,
        needed: Capabilities,
    ) -> Result<Attempts, RegistryError> {
        let unusable =
            |source| RegistryError::Host { host: repository.host().to_owned(), source: Box::new(source) };
        let all = self.endpoints.of(repository).await.map_err(unusable)?;
        let fit = all.iter().enumerate().filter(|(_, endpoint)| endpoint.capabilities.has_any(needed));
        let mut order: Vec<_> = fit.map(|(place, endpoint)| (place, endpoint.clone())).collect();
        if order.is_empty() {
            let (domain, capability) = (repository.domain().to_owned(), needed.describe());
            return Err(unusable(crate::ClientError::NoEndpoint { domain, capability }));
        }
        order.sort_by_key(|(_, endpoint)| endpoint.is_demoted());
        Ok(Attempts { order, current: 0, worst: None, retry: Retry::new(&self.options) })
    }

    /// The endpoints for a blob, that where it was found last time first.
    pub(super) async fn blob_attempts(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Attempts, RegistryError> {
        let mut attempts = self.attempts(repository, Capabilities::PULL).await?;
        if attempts.order.len() > 1
            && let Some(known) = self.redirects.endpoint(&(repository.clone(), digest.clone()))
        {
            attempts.order.sort_by_key(|(_, endpoint)| (endpoint.is_demoted(), *endpoint != known));
        }
        Ok(attempts)
    }

    /// The one endpoint to write to, the first that may be: what belongs together must not end in two places.
    pub(super) async fn push_attempts(&self, repository: &Repository) -> Result<Attempts, RegistryError> {
        let mut attempts = self.attempts(repository, Capabilities::PUSH).await?;
        attempts.order.sort_by_key(|(place, _)| *place);
        attempts.order.truncate(1);
        Ok(attempts)
    }
}

impl Attempts {
    /// Only this endpoint.
    pub(super) fn at(inner: &Inner, endpoint: &Arc<Endpoint>) -> Self {
        let order = vec![(0, endpoint.clone())];
        Self { order, current: 0, worst: None, retry: Retry::new(&inner.options) }
    }

    /// The endpoint to ask now.
    pub(super) fn endpoint(&self) -> Result<Arc<Endpoint>, RegistryError> {
        let current = self.order.get(self.current).or(self.order.first());
        // There is at least one; an error is better than a panic should that ever change.
        current.map(|(_, endpoint)| endpoint.clone()).ok_or_else(|| RegistryError::Host {
            host: String::new(),
            source: Box::new(crate::ClientError::Stopped),
        })
    }

    /// Whether all endpoints have any of these abilities.
    pub(super) fn all_have(&self, abilities: Capabilities) -> bool {
        self.order.iter().all(|(_, endpoint)| endpoint.capabilities.has_any(abilities))
    }

    /// Whether another endpoint follows in this round.
    fn has_next(&self) -> bool {
        self.current.saturating_add(1) < self.order.len()
    }

    /// Goes to the next endpoint, or waits for another round; or gives the error back where neither is of use.
    pub(super) async fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if let (
            Some((_, endpoint)),
            RegistryError::Unreachable { host, .. } | RegistryError::Timeout { host, .. },
        ) = (self.order.get(self.current), &error)
            && *host == crate::token::host_of(&endpoint.base)
        {
            endpoint.note_unreachable();
        }
        if !error.is_of_endpoint() {
            return Err(error);
        }
        let place = self.order.get(self.current).map_or(0, |(place, _)| *place);
        if self.has_next() {
            tracing::debug!(%error, "trying the next endpoint");
            self.current = self.current.saturating_add(1);
            self.keep(place, error);
            return Ok(());
        }
        self.keep(place, error);
        self.current = 0;
        match self.worst.take() {
            Some((_, last)) => self.retry.pause(self.with_hosts(last)).await,
            None => Ok(()),
        }
    }

    fn keep(&mut self, place: usize, error: RegistryError) {
        if self.worst.as_ref().is_none_or(|(worst, _)| *worst <= place) {
            self.worst = Some((place, error));
        }
    }

    fn with_hosts(&self, last: RegistryError) -> RegistryError {
        if self.order.len() < 2 {
            return last;
        }
        let tried = self.order.iter().map(|(_, endpoint)| endpoint.host.clone()).collect();
        RegistryError::Endpoints { tried, last: Box::new(last) }
    }

    /// Each endpoint once, and no pauses.
    pub(super) fn once(mut self) -> Self {
        self.retry.exhaust();
        self
    }

    /// All retries are there again: the operation came on.
    pub(super) fn reset(&mut self) {
        self.retry.reset();
    }
}
