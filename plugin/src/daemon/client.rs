//! How registries are talked to, as the configuration has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use oci_registry::{
    Chain, ClientOptions, CredentialSource, DockerConfig, HostOptions, MirrorHost, RequestTimeout,
    RetryOptions,
};
use tokio::sync::Semaphore;

use crate::config::{Config, Mirror, count, or};
use crate::credentials::{FromKeyring, Keyring};

/// Credentials that were handed over come before those of docker's configuration.
pub(super) fn client_options(config: &Config, keyring: &Arc<Keyring>) -> ClientOptions {
    let millis = |value, default| Duration::from_millis(u64::try_from(or(value, default)).unwrap_or(0));
    let http = &config.http;
    let docker: Arc<dyn CredentialSource> = Arc::new(DockerConfig::from_environment());
    let handed: Arc<dyn CredentialSource> = Arc::new(FromKeyring(Arc::clone(keyring)));
    let folders = std::env::split_paths(&config.resolver.config_path);
    let hosts_dir = folders.filter(|folder| !folder.as_os_str().is_empty()).collect();
    let retries = |value, default| u32::try_from(or(value, default)).unwrap_or(0);
    let whole = RetryOptions {
        retries: retries(http.max_retries, 8),
        min_backoff: millis(http.min_wait_msec, 30),
        max_backoff: millis(http.max_wait_msec, 300_000),
    };
    let blob = &config.blob;
    let ranges = RetryOptions {
        retries: if blob.max_retries == 0 { whole.retries } else { retries(blob.max_retries, 0) },
        min_backoff: if blob.min_wait_msec == 0 { whole.min_backoff } else { millis(blob.min_wait_msec, 0) },
        max_backoff: if blob.max_wait_msec == 0 { whole.max_backoff } else { millis(blob.max_wait_msec, 0) },
    };
    let requests = config.general.max_concurrency;
    let requests = if requests < 0 { 100 } else { count(requests) };
    ClientOptions {
        connect_timeout: millis(http.dial_timeout_msec, 3_000),
        header_timeout: millis(http.response_header_timeout_msec, 3_000),
        request_timeout: Some(millis(http.request_timeout_msec, 300_000)),
        turns: (requests > 0).then(|| Arc::new(Semaphore::new(requests.min(Semaphore::MAX_PERMITS)))),
        retries: whole.retries,
        min_backoff: whole.min_backoff,
        max_backoff: whole.max_backoff,
        range_retries: Some(ranges),
        hosts: HostOptions { hosts_dir, mirrors: mirrors(config), ..HostOptions::default() },
        credentials: Arc::new(Chain::new(vec![handed, docker])),
        ..ClientOptions::default()
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
