//! How to talk to a host: which endpoints, scheme, TLS, deadlines.

mod capabilities;
mod endpoint;
mod endpoints;
mod folder;
mod hosts_file;
mod mirror;
mod tls;
mod transport;

pub(crate) use capabilities::Capabilities;
pub(crate) use endpoint::Endpoint;
pub(crate) use endpoints::Endpoints;
pub use mirror::{MirrorHost, RequestTimeout};
pub(crate) use transport::Transport;

use reqwest::Url;
use std::collections::HashMap;
use std::path::PathBuf;

/// What is special about hosts: the same for every host that a client talks to, but for what `hosts_dir` says.
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
    /// Folders of `hosts.toml` files in containerd's layout; the first that has a folder for a registry is read, when the
    /// registry is first asked and after every change. Empty for none.
    pub hosts_dir: Vec<PathBuf>,
    /// Mirrors by the registry that they are for, as references name it; asked before those of `hosts_dir`, and before the registry itself.
    pub mirrors: HashMap<String, Vec<MirrorHost>>,
    /// Never HTTP/2, where the streams to one host share a connection: one that is not read would hold up the others.
    pub http1_only: bool,
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
