//! Mirrors that the program itself knows of, beside those of `hosts.toml`.

use super::capabilities::Capabilities;
use super::hosts_file::{HostEntry, host_url};
use crate::error::ClientError;
use std::time::Duration;

/// A host that has repositories of a registry. Like an entry of a `hosts.toml` that may be asked for content and for what tags mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorHost {
    /// Host with optional port, or a URL.
    pub host: String,
    /// Plain HTTP; with an `https://` URL, HTTPS without checking the certificate.
    pub insecure: bool,
    /// For a whole request to it, where that is not the client's own.
    pub request_timeout: Option<RequestTimeout>,
}

/// When a request has taken too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestTimeout {
    /// Whatever its length.
    Never,
    /// After this time.
    After(Duration),
}

impl MirrorHost {
    pub(super) fn entry(&self) -> Result<HostEntry, ClientError> {
        let text = match self.host.contains("://") {
            false if self.insecure => format!("http://{}", self.host),
            _ => self.host.clone(),
        };
        let url = host_url("host", &text, false);
        let url = url.map_err(|_| ClientError::Address { host: self.host.clone() })?;
        Ok(HostEntry {
            url: Some(url),
            capabilities: Capabilities::PULL.and(Capabilities::RESOLVE),
            skip_verify: self.insecure.then_some(true),
            request_timeout: self.request_timeout,
            ..HostEntry::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_or_a_url_secure_or_not() {
        let base = |host: &str, insecure| {
            let mirror = MirrorHost { host: host.to_owned(), insecure, request_timeout: None };
            mirror.entry().map(|entry| entry.url.unwrap().base.to_string()).unwrap_or_default()
        };
        assert_eq!(base("m:5000", false), "https://m:5000/v2/");
        assert_eq!(base("m:5000", true), "http://m:5000/v2/");
        assert_eq!(base("https://m/x", true), "https://m/x/v2/");
        assert_eq!(base("http://m", false), "http://m/v2/");
        assert_eq!(base("ftp://m", false), "");
    }
}
