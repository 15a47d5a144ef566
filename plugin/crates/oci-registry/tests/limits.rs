//! Bounds of a client: operations at a time, the length of a request, ranges without retries; and mirrors that come with the options.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "the toy registry is shared")]

#[path = "toy/server.rs"]
mod toy;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_registry::{
    Client, ClientOptions, HostOptions, MirrorHost, RegistryError, Repository, RequestTimeout,
};
use oci_spec::image::{Descriptor, MediaType};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use toy::{Fault, Toy};

fn options() -> ClientOptions {
    ClientOptions {
        header_timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(20),
        retries: 2,
        min_backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(50),
        ..ClientOptions::default()
    }
}

fn repository(toy: &Toy) -> Repository {
    Repository::new(&toy.registry.to_string(), "repo").unwrap()
}

#[tokio::test]
async fn one_operation_waits_for_the_other() {
    let toy = Toy::start().await;
    let data = vec![7; 5000];
    let digest = toy.add_blob(&data);
    let turns = Arc::new(Semaphore::new(1));
    let client = Client::new(ClientOptions { turns: Some(turns.clone()), ..options() }).unwrap();
    let descriptor = Descriptor::new(MediaType::ImageLayerGzip, 5000_u64, digest.clone());
    let stream = client.blob(&repository(&toy), &descriptor).await.unwrap();
    assert_eq!(turns.available_permits(), 0, "an open stream has its turn");
    let repository = repository(&toy);
    let mut other = std::pin::pin!(client.blob_bytes(&repository, &digest, 5000));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut other).await.is_err());
    assert_eq!(toy.count("blobs"), 1);
    // Whoever reads ranges bounds them.
    let range: Vec<Bytes> =
        client.blob_range(&repository, &digest, 0..9).await.unwrap().try_collect().await.unwrap();
    assert_eq!(range.concat(), data[..9]);
    assert_eq!(stream.count().await, 1);
    assert_eq!(other.await.unwrap(), data);
    assert_eq!(turns.available_permits(), 1);
}

#[tokio::test]
async fn a_range_is_asked_for_once() {
    let toy = Toy::start().await;
    let digest = toy.add_blob(&[7; 5000]);
    let client = Client::new(options()).unwrap();
    let busy = vec![("retry-after".to_owned(), "3".to_owned())];
    toy.fault("blobs", Fault::Status(503, busy, String::new()));
    let error = client.blob_range(&repository(&toy), &digest, 0..9).await.unwrap_err();
    assert!(error.is_overload() && error.is_transient(), "{error}");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    assert_eq!(toy.count("blobs"), 1);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_sent_again() {
    let toy = Toy::start().await;
    let digest = toy.add_blob(&[7; 5000]);
    let request_timeout = Some(Duration::from_millis(200));
    let client = Client::new(ClientOptions { request_timeout, ..options() }).unwrap();
    toy.fault("blobs", Fault::Stall(100));
    assert_eq!(client.blob_bytes(&repository(&toy), &digest, 5000).await.unwrap().len(), 5000);
    assert_eq!(toy.count("blobs"), 2);
}

#[tokio::test]
async fn mirrors_of_the_options_come_first() {
    let (mirror, origin) = (Toy::start().await, Toy::start().await);
    let both = mirror.add_blob(&[1; 100]);
    origin.add_blob(&[1; 100]);
    let rare = origin.add_blob(&[2; 100]);
    let repository = repository(&origin);
    let host = MirrorHost {
        host: mirror.registry.to_string(),
        insecure: true,
        request_timeout: Some(RequestTimeout::Never),
    };
    let mirrors = HashMap::from([(repository.domain().to_owned(), vec![host])]);
    let hosts = HostOptions { mirrors, ..HostOptions::default() };
    let client = Client::new(ClientOptions { hosts, ..options() }).unwrap();
    client.blob_bytes(&repository, &both, 100).await.unwrap();
    assert_eq!((mirror.count("blobs"), origin.count("blobs")), (1, 0));
    client.blob_bytes(&repository, &rare, 100).await.unwrap();
    assert_eq!((mirror.count("blobs"), origin.count("blobs")), (2, 1));
    let asked = mirror.state.lock().log[0].query.clone();
    assert!(asked.contains("ns="), "a mirror is told for whom it is one: {asked}");
    // Another registry has none.
    let elsewhere = Repository::new(&format!("localhost:{}", origin.registry.port()), "repo").unwrap();
    client.blob_bytes(&elsewhere, &rare, 100).await.unwrap();
    assert_eq!((mirror.count("blobs"), origin.count("blobs")), (2, 2));
}

/// A body that comes byte by byte is never idle, and would never end.
#[tokio::test]
async fn a_body_has_one_deadline() {
    let toy = Toy::start().await;
    let blob = toy.add_blob(&[7; 1 << 20]);
    toy.fault(blob.as_ref(), Fault::Drip(20));
    let (body_timeout, idle_timeout) = (Duration::from_millis(300), Duration::from_secs(60));
    let client = Client::new(ClientOptions { body_timeout, idle_timeout, retries: 0, ..options() }).unwrap();
    let repository = repository(&toy);
    let read = client.blob_bytes(&repository, &blob, 2 << 20);
    let error = tokio::time::timeout(Duration::from_secs(50), read).await.expect("it ends").unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { after, .. } if after == body_timeout), "{error}");
}
