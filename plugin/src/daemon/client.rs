//! How registries are talked to, as the configuration has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use oci_registry::{
    Bounds, Chain, ClientOptions, CredentialSource, DockerConfig, HostOptions, MirrorHost, RequestTimeout,
};
use tokio::sync::Semaphore;

use crate::config::{Config, Mirror, count, or, seconds};
use crate::credentials::{FromKeyring, Keyring};

/// Credentials that somebody gave come before those of docker's configuration, those that were found in somebody else's after them.
pub(super) fn client_options(config: &Config, keyring: &Arc<Keyring>) -> ClientOptions {
    let millis = |value, default| Duration::from_millis(u64::try_from(or(value, default)).unwrap_or(0));
    let http = &config.http;
    let docker: Arc<dyn CredentialSource> = Arc::new(docker(config));
    let given: Arc<dyn CredentialSource> = Arc::new(FromKeyring::given(keyring));
    let found: Arc<dyn CredentialSource> = Arc::new(FromKeyring::found(keyring));
    let folders = std::env::split_paths(&config.resolver.config_path);
    let hosts_dir = folders.filter(|folder| !folder.as_os_str().is_empty()).collect();
    ClientOptions {
        connect_timeout: millis(http.dial_timeout_msec, 3_000),
        header_timeout: millis(http.response_header_timeout_msec, 3_000),
        request_timeout: Some(millis(http.request_timeout_msec, 300_000)),
        turns: requests(config).map(|turns| Arc::new(Semaphore::new(turns.min(Semaphore::MAX_PERMITS)))),
        retries: u32::try_from(or(http.max_retries, 8)).unwrap_or(0),
        min_backoff: millis(http.min_wait_msec, 30),
        max_backoff: millis(http.max_wait_msec, 300_000),
        idle_timeout: seconds(config.deadlines.fetch_stall_sec),
        bounds: bounds(config),
        // Ranges that nobody waits for are left alone in favour of others.
        hosts: HostOptions {
            hosts_dir,
            mirrors: mirrors(config),
            http1_only: true,
            ..HostOptions::default()
        },
        credentials: Arc::new(Chain::new(vec![given, docker, found])),
        ..ClientOptions::default()
    }
}

/// Requests at the same time: of ranges, and of everything else; none for any number.
pub(super) fn requests(config: &Config) -> Option<usize> {
    Some(count(config.general.max_concurrency)).filter(|requests| *requests > 0)
}

pub(super) fn docker(config: &Config) -> DockerConfig {
    DockerConfig::from_environment().with_patience(seconds(config.deadlines.credential_helper_sec))
}

/// What a client remembers.
fn bounds(config: &Config) -> Bounds {
    let (limits, resolver) = (&config.limits, &config.resolver);
    Bounds {
        places: count(limits.redirects),
        place_lifetime: seconds(resolver.place_ttl_sec),
        tokens: count(limits.tokens),
        registries: count(limits.hosts),
        hosts_lifetime: seconds(resolver.config_ttl_sec),
        demotion: seconds(resolver.demotion_sec),
        idle_connections: count(limits.idle_connections),
        idle_connection_lifetime: seconds(config.deadlines.idle_connection_sec),
    }
}

fn mirrors(config: &Config) -> HashMap<String, Vec<MirrorHost>> {
    let of = |mirror: &Mirror| MirrorHost {
        host: mirror.host.clone(),
        insecure: mirror.insecure,
        request_timeout: match u64::try_from(mirror.request_timeout_sec) {
            Ok(0) => None,
            Ok(seconds) => Some(RequestTimeout::After(Duration::from_secs(seconds))),
            Err(_) => Some(RequestTimeout::Never),
        },
    };
    let all = config.resolver.host.iter();
    all.map(|(registry, mirrors)| (registry.clone(), mirrors.iter().map(of).collect())).collect()
}
