//! The HTTP clients for an endpoint.

use super::{HostOptions, is_loopback, tls};
use crate::error::ClientError;
use reqwest::Url;
use std::time::Duration;

fn is_loopback_url(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback)
}

/// The HTTP clients of one [`HostOptions`].
#[derive(Debug)]
pub(crate) struct Transport {
    /// For registries.
    pub(crate) registry: reqwest::Client,
    /// For registries on loopback, where no proxy of the environment applies.
    pub(crate) loopback: reqwest::Client,
    /// For where they redirect to, and for token servers: no client certificate.
    pub(crate) elsewhere: reqwest::Client,
    /// The same, on loopback.
    pub(crate) elsewhere_loopback: reqwest::Client,
}

impl Transport {
    /// Reads certificates, so blocks for some milliseconds.
    pub(crate) fn new(
        options: &HostOptions,
        user_agent: &str,
        connect_timeout: Duration,
    ) -> Result<Self, ClientError> {
        let roots = tls::roots(options)?;
        let identity = tls::identity(options)?;
        let with_identity = tls::config(options, roots.clone(), identity)?;
        let without = tls::config(options, roots, None)?;
        let builder = |tls: rustls::ClientConfig| {
            let builder = reqwest::Client::builder();
            let builder = if options.http1_only { builder.http1_only() } else { builder };
            builder
                .tls_backend_preconfigured(tls)
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .user_agent(user_agent)
                .connect_timeout(connect_timeout)
                .pool_idle_timeout(Duration::from_secs(60))
                .pool_max_idle_per_host(32)
                .tcp_keepalive(Duration::from_secs(30))
                .tcp_nodelay(true)
                .referer(false)
        };
        Ok(Self {
            elsewhere_loopback: builder(without.clone()).no_proxy().build().map_err(ClientError::Http)?,
            registry: builder(with_identity.clone()).build().map_err(ClientError::Http)?,
            loopback: builder(with_identity).no_proxy().build().map_err(ClientError::Http)?,
            elsewhere: builder(without).build().map_err(ClientError::Http)?,
        })
    }

    /// The client for a registry's own URLs.
    pub(crate) fn registry_for(&self, url: &Url) -> &reqwest::Client {
        if is_loopback_url(url) { &self.loopback } else { &self.registry }
    }

    /// The client for any other URL.
    pub(crate) fn elsewhere_for(&self, url: &Url) -> &reqwest::Client {
        if is_loopback_url(url) { &self.elsewhere_loopback } else { &self.elsewhere }
    }
}
