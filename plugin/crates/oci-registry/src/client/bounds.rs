//! What a client remembers, how much of it, and for how long.

use std::time::Duration;

/// Bounds of what a client remembers and keeps open. What is forgotten is found out again when it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Blobs whose place (endpoint, end of the redirects) is remembered; past that, those known longest go. Default 4096.
    pub places: usize,
    /// For how long a blob is looked for where it was found, before endpoints that come earlier are asked again: a mirror may have got it in
    /// the meantime. Default 300 s.
    pub place_lifetime: Duration,
    /// Authorisations, one for each (endpoint, repository, access); past that, the oldest go. Default 1024.
    pub tokens: usize,
    /// Registries whose endpoints are remembered; past that, all are read again. Default 256.
    pub registries: usize,
    /// How long a folder of hosts is not looked at again. Default 10 s.
    pub hosts_lifetime: Duration,
    /// For how long an endpoint that could not be reached comes after the others. It is never left out. Default 30 s.
    pub demotion: Duration,
    /// Connections to one host that are kept though nothing is asked by way of them. Default 32.
    pub idle_connections: usize,
    /// For how long they are. Default 60 s.
    pub idle_connection_lifetime: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            places: 4096,
            place_lifetime: Duration::from_secs(300),
            tokens: 1024,
            registries: 256,
            hosts_lifetime: Duration::from_secs(10),
            demotion: Duration::from_secs(30),
            idle_connections: 32,
            idle_connection_lifetime: Duration::from_secs(60),
        }
    }
}
