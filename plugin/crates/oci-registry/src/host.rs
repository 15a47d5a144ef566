//! How to talk to a host: scheme, TLS, deadlines.

mod tls;

use crate::error::ClientError;
use reqwest::Url;
use std::path::PathBuf;
use std::time::Duration;

/// What is special about hosts. The same for every host that a client talks to.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// Plain HTTP: always (`Some(true)`), never, or (`None`) for loopback addresses alone, unless TLS settings below or
    /// port 443 say that TLS is meant.
    pub plain_http: Option<bool>,
    /// Take any certificate.
    pub skip_verify: bool,
    /// PEM files of certificate authorities to trust in addition to the system's.
    pub ca: Vec<PathBuf>,
    /// PEM files of a client certificate (chain) and its key, shown to registries but not to where they redirect.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// Folder of `hosts.toml` files in containerd's layout. Not read yet: a client refuses it, rather than going past a
    /// mirror that somebody relies on.
    pub hosts_dir: Option<PathBuf>,
}

impl HostOptions {
    /// The registry's root, `http://host/` or `https://host/`.
    pub(crate) fn base(&self, host: &str) -> Option<Url> {
        let scheme = if self.is_plain(host) { "http" } else { "https" };
        Url::parse(&format!("{scheme}://{host}/")).ok()
    }

    fn is_plain(&self, host: &str) -> bool {
        let tls_is_meant = self.skip_verify || !self.ca.is_empty() || self.client_cert.is_some();
        self.plain_http.unwrap_or_else(|| !tls_is_meant && is_loopback(host) && !host.ends_with(":443"))
    }
}

/// Whether `host` (with or without a port) is this machine by its name or address alone.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

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
        if let Some(path) = &options.hosts_dir {
            return Err(ClientError::HostsDir { path: path.clone() });
        }
        let roots = tls::roots(options)?;
        let identity = tls::identity(options)?;
        let with_identity = tls::config(options, roots.clone(), identity)?;
        let without = tls::config(options, roots, None)?;
        let builder = |tls: rustls::ClientConfig| {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls)
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .user_agent(user_agent)
                .connect_timeout(connect_timeout)
                .pool_idle_timeout(Duration::from_secs(60))
                .pool_max_idle_per_host(16)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_plain_unless_tls_is_meant() {
        let scheme = |options: &HostOptions, host: &str| options.base(host).unwrap().scheme().to_owned();
        let none = HostOptions::default();
        for host in ["localhost", "LOCALHOST:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert_eq!(scheme(&none, host), "http", "{host}");
        }
        for host in [
            "ghcr.io",
            "10.0.0.1:5000",
            "localhost:443",
            "localhost.example",
            "[2001:db8::1]:80",
            "127.0.0.1.nip.io",
        ] {
            assert_eq!(scheme(&none, host), "https", "{host}");
        }
        let asked = HostOptions { plain_http: Some(true), ..HostOptions::default() };
        assert_eq!(scheme(&asked, "ghcr.io"), "http");
        let never = HostOptions { plain_http: Some(false), ..HostOptions::default() };
        assert_eq!(scheme(&never, "localhost"), "https");
        let skip = HostOptions { skip_verify: true, ..HostOptions::default() };
        assert_eq!(scheme(&skip, "localhost:5001"), "https");
    }
}
