//! The HTTP clients for an endpoint.

use super::{HostOptions, is_loopback, tls};
use crate::client::ClientOptions;
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
    /// For `hosts`, which may be others than those of `client`. Reads certificates, so blocks for some milliseconds.
    pub(crate) fn new(
        client: &ClientOptions,
        hosts: &HostOptions,
        connect_timeout: Duration,
    ) -> Result<Self, ClientError> {
        let bounds = client.bounds;
        let roots = tls::roots(hosts)?;
        let identity = tls::identity(hosts)?;
        let with_identity = tls::config(hosts, roots.clone(), identity)?;
        let without = tls::config(hosts, roots, None)?;
        let builder = |tls: rustls::ClientConfig| {
            let builder = reqwest::Client::builder();
            let builder = if hosts.http1_only { builder.http1_only() } else { builder };
            builder
                .tls_backend_preconfigured(tls)
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .user_agent(&client.user_agent)
                .connect_timeout(connect_timeout)
                .pool_idle_timeout(bounds.idle_connection_lifetime)
                .pool_max_idle_per_host(bounds.idle_connections)
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
