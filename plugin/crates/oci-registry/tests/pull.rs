//! Reading from a registry that does what registries do.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "the toy registry is shared")]

#[path = "toy/range.rs"]
mod range;
#[path = "toy/server.rs"]
mod toy;

use futures_util::StreamExt as _;
use oci_registry::platform::Platform;
use oci_registry::{
    Client, ClientOptions, Credentials, HostOptions, Reference, RegistryError, Repository, StaticCredentials,
};
use oci_spec::image::{Descriptor, MediaType};
use range::range;
use std::sync::Arc;
use std::time::Duration;
use toy::{Auth, Fault, Toy};

fn options() -> ClientOptions {
    ClientOptions {
        connect_timeout: Duration::from_millis(500),
        header_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(300),
        retries: 3,
        min_backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(50),
        ..ClientOptions::default()
    }
}

fn client() -> Client {
    Client::new(options()).unwrap()
}

fn client_as(username: &str, secret: &str) -> Client {
    let credentials = Arc::new(StaticCredentials::new(Credentials::new(username, secret)));
    Client::new(ClientOptions { credentials, ..options() }).unwrap()
}

fn repository(toy: &Toy) -> Repository {
    Repository::new(&toy.registry.to_string(), "repo").unwrap()
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn blob_descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayerGzip, bytes.len() as u64, soci_index::digest_of(bytes))
}

async fn collect(
    client: &Client,
    repository: &Repository,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, RegistryError> {
    let mut stream = client.blob(repository, descriptor).await?;
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

fn bearer(uses: usize) -> Auth {
    Auth::Bearer { user: Some("u:p".to_owned()), identity_token: None, uses }
}

#[tokio::test]
async fn every_kind_of_authentication() {
    let toy = Toy::start().await;
    let data = content(1000);
    let digest = toy.add_blob(&data);
    let cases = [
        (Auth::None, client()),
        (Auth::None, client_as("u", "p")),
        (Auth::Basic("u:p".to_owned()), client_as("u", "p")),
        (bearer(100), client_as("u", "p")),
        (Auth::Bearer { user: None, identity_token: None, uses: 100 }, client()),
        (
            Auth::Bearer { user: None, identity_token: Some("refresh".to_owned()), uses: 100 },
            client_as("<token>", "refresh"),
        ),
    ];
    for (auth, client) in cases {
        toy.set(|switches| switches.auth = auth.clone());
        let got = client.blob_bytes(&repository(&toy), &digest, 1000).await;
        assert_eq!(got.unwrap(), data, "{auth:?}");
        assert_eq!(range(&client, &repository(&toy), &digest, 10..20).await.unwrap(), data[10..20]);
    }
}

#[tokio::test]
async fn refused_credentials_are_an_error_after_few_requests() {
    let toy = Toy::start().await;
    let digest = toy.add_blob(b"x");
    for auth in [Auth::Basic("u:p".to_owned()), bearer(100)] {
        for (client, is_anonymous) in [(client(), true), (client_as("u", "wrong"), false)] {
            toy.set(|switches| switches.auth = auth.clone());
            toy.forget_log();
            let error = range(&client, &repository(&toy), &digest, 0..1).await.unwrap_err();
            match &error {
                RegistryError::Unauthorized { anonymous, host, .. } => {
                    assert_eq!(
                        (*anonymous, host.as_str()),
                        (is_anonymous, toy.registry.to_string().as_str())
                    );
                }
                other => panic!("{other:?}"),
            }
            assert!(!error.is_transient());
            assert!(toy.count("") <= 4, "{}", toy.count(""));
            assert!(!format!("{error} {error:?} {client:?}").contains("wrong"));
        }
    }
    // A token that is never good must not be asked for without end.
    toy.set(|switches| switches.auth = bearer(0));
    toy.forget_log();
    let error = client_as("u", "p").blob_range(&repository(&toy), &digest, 0..1).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { anonymous: false, .. }), "{error:?}");
    assert!(toy.count("") <= 8);
}

#[tokio::test]
async fn tokens_that_expire_between_ranges_are_renewed() {
    let toy = Toy::start().await;
    let data = content(5000);
    let digest = toy.add_blob(&data);
    toy.set(|switches| switches.auth = bearer(3));
    let client = client_as("u", "p");
    for start in (0..24).map(|i| i * 200) {
        let got = range(&client, &repository(&toy), &digest, start..start + 200).await.unwrap();
        assert_eq!(got, data[start as usize..start as usize + 200]);
    }
    assert_eq!(toy.state.lock().tokens_given, 8);
}

#[tokio::test]
async fn many_at_once_ask_for_one_token() {
    let toy = Toy::start().await;
    let data = content(5000);
    let digest = toy.add_blob(&data);
    toy.set(|switches| switches.auth = bearer(1000));
    let client = client_as("u", "p");
    let repository = repository(&toy);
    let reads = (0..32_u64).map(|i| range(&client, &repository, &digest, i..i + 100));
    for (i, read) in futures_util::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(read.unwrap(), data[i..i + 100]);
    }
    let state = toy.state.lock();
    assert_eq!(state.tokens_given, 1);
    // The first is refused for all, then one asks for the token.
    let refused = state.log.iter().filter(|request| !request.headers.contains_key("authorization"));
    assert_eq!(refused.count(), 1);
}

#[tokio::test]
async fn after_a_greeting_and_a_look_a_range_is_one_request() {
    let toy = Toy::start().await;
    let data = content(5000);
    let digest = toy.add_blob(&data);
    toy.set(|switches| {
        switches.auth = bearer(1000);
        switches.signature = Some(1);
    });
    let (client, repository) = (client_as("u", "p"), repository(&toy));
    client.greet(&repository).await.unwrap();
    client.greet(&repository).await.unwrap();
    assert_eq!(toy.state.lock().log.len(), 2, "the front door, the token");
    toy.forget_log();
    assert!(client.locate_blob(&repository, &digest).await.unwrap());
    assert!(client.locate_blob(&repository, &digest).await.unwrap());
    assert_eq!(toy.state.lock().log.len(), 2, "one redirected, one byte");
    toy.forget_log();
    assert_eq!(range(&client, &repository, &digest, 7..70).await.unwrap(), data[7..70]);
    let log = toy.state.lock().log.clone();
    assert_eq!(log.iter().map(|request| request.port).collect::<Vec<_>>(), [toy.storage.port()]);
    // Where the registry sends the bytes itself, that is told too.
    toy.set(|switches| switches.signature = None);
    let other = toy.add_blob(&content(600));
    assert!(!client.locate_blob(&repository, &other).await.unwrap());
}

#[tokio::test]
async fn an_expired_ecr_token_is_renewed() {
    let toy = Toy::start().await;
    let digest = toy.add_blob(b"abc");
    toy.set(|switches| switches.auth = bearer(100));
    let client = client_as("u", "p");
    range(&client, &repository(&toy), &digest, 0..1).await.unwrap();
    let ecr = r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;
    toy.fault("blobs", Fault::Status(403, Vec::new(), ecr.to_owned()));
    assert_eq!(range(&client, &repository(&toy), &digest, 1..3).await.unwrap(), "bc");
    assert_eq!(toy.state.lock().tokens_given, 2);
    toy.fault("blobs", Fault::Status(403, Vec::new(), "no".to_owned()));
    let error = range(&client, &repository(&toy), &digest, 1..3).await.unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error:?}");
}

#[tokio::test]
async fn a_token_server_in_trouble_is_transient() {
    let toy = Toy::start().await;
    let digest = toy.add_blob(b"abc");
    toy.set(|switches| switches.auth = bearer(100));
    let client = client_as("u", "p");
    toy.fault("/token", Fault::Status(503, Vec::new(), String::new()));
    toy.fault("/token", Fault::Close);
    assert_eq!(range(&client, &repository(&toy), &digest, 0..3).await.unwrap(), "abc");
    let client = client_as("u", "p");
    for _ in 0..20 {
        toy.fault("/token", Fault::Status(503, Vec::new(), String::new()));
    }
    let error = range(&client, &repository(&toy), &digest, 0..3).await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { transient: true, .. }), "{error:?}");
    toy.set(|switches| switches.faults.clear());
    assert_eq!(range(&client, &repository(&toy), &digest, 0..3).await.unwrap(), "abc");
}

#[tokio::test]
async fn redirects_are_kept_renewed_and_get_no_credentials() {
    let toy = Toy::start().await;
    let data = content(5000);
    let digest = toy.add_blob(&data);
    toy.set(|switches| {
        switches.auth = bearer(1000);
        switches.signature = Some(1);
    });
    let client = client_as("u", "p");
    let read = async |start: u64| {
        let got = range(&client, &repository(&toy), &digest, start..start + 100).await.unwrap();
        assert_eq!(got, data[start as usize..start as usize + 100]);
    };
    for start in 0..10 {
        read(start * 100).await;
    }
    assert_eq!(toy.count("blobs"), 2, "one refused, one redirected");
    for (number, status) in [(2, 403), (3, 400), (4, 401)] {
        toy.set(|switches| (switches.signature, switches.stale_status) = (Some(number), status));
        toy.forget_log();
        read(0).await;
        read(100).await;
        assert_eq!(toy.count("blobs"), 1, "{status}");
    }
    toy.set(|switches| switches.signature = Some(5));
    assert_eq!(collect(&client, &repository(&toy), &blob_descriptor(&data)).await.unwrap(), data);
    let state = toy.state.lock();
    let to_storage: Vec<_> = state.log.iter().filter(|request| request.port == toy.storage.port()).collect();
    assert!(!to_storage.is_empty());
    assert!(to_storage.iter().all(|request| !request.headers.contains_key("authorization")));
}

#[tokio::test]
async fn a_range_is_exactly_the_range_or_an_error() {
    let toy = Toy::start().await;
    let data = content(3000);
    let digest = toy.add_blob(&data);
    let client = client();
    let repository = repository(&toy);
    let read = async |fault: Option<Fault>| {
        if let Some(fault) = fault {
            // For the first try and all retries.
            for _ in 0..4 {
                toy.fault("blobs", fault.clone());
            }
        }
        let got = range(&client, &repository, &digest, 1000..2000).await;
        toy.set(|switches| switches.faults.clear());
        got
    };
    assert_eq!(read(None).await.unwrap(), data[1000..2000]);
    toy.set(|switches| switches.no_ranges = true);
    assert_eq!(read(None).await.unwrap(), data[1000..2000]);
    toy.set(|switches| switches.no_ranges = false);
    let header = |name: &str, value: &str| Fault::Header(name.to_owned(), value.to_owned());
    for bad in [
        header("content-range", ""),
        header("content-range", "bytes 0-999/3000"),
        header("content-range", "bytes 1000-2000/3000"),
        header("content-range", "bytes 1000-1999/1500"),
        header("content-range", "bytes 1000-1998/3000"),
    ] {
        let error = read(Some(bad.clone())).await.unwrap_err();
        assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{bad:?}: {error:?}");
    }
    for bad in [Fault::Cut(0), Fault::Cut(999), Fault::Close] {
        let error = read(Some(bad.clone())).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unreachable { .. }), "{bad:?}: {error:?}");
        assert!(error.is_transient());
    }
    let error = read(Some(Fault::Longer(vec![1]))).await.unwrap_err();
    assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{error:?}");
    let started = std::time::Instant::now();
    let error = read(Some(Fault::Stall(500))).await.unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    // Beyond the end.
    let error = range(&client, &repository, &digest, 2990..3010).await.unwrap_err();
    assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{error:?}");
    let error = range(&client, &repository, &digest, 4000..4001).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 416, .. }), "{error:?}");
    assert!(range(&client, &repository, &digest, 5..5).await.unwrap().is_empty());
    // One failure is cured by a retry.
    for fault in
        [Fault::Cut(10), Fault::Stall(10), Fault::Close, Fault::Status(500, Vec::new(), String::new())]
    {
        toy.fault("blobs", fault);
        assert_eq!(read(None).await.unwrap(), data[1000..2000]);
    }
}

#[tokio::test]
async fn retries_what_is_worth_it_and_waits_as_asked() {
    let toy = Toy::start().await;
    let digest = toy.add_blob(b"abc");
    let client = Client::new(ClientOptions { max_backoff: Duration::from_millis(400), ..options() }).unwrap();
    let limited = |seconds: &str| {
        Fault::Status(429, vec![("retry-after".to_owned(), seconds.to_owned())], String::new())
    };
    toy.fault("blobs", limited("7200"));
    let started = std::time::Instant::now();
    assert_eq!(client.blob_bytes(&repository(&toy), &digest, 3).await.unwrap(), "abc");
    let waited = started.elapsed();
    assert!(waited >= Duration::from_millis(400) && waited < Duration::from_millis(1500), "{waited:?}");
    for _ in 0..4 {
        toy.fault("blobs", limited("0"));
    }
    let error = client.blob_bytes(&repository(&toy), &digest, 3).await.unwrap_err();
    assert!(matches!(error, RegistryError::RateLimited { .. }) && error.is_transient(), "{error:?}");
    for status in [501, 418] {
        toy.forget_log();
        let body = r#"{"errors":[{"code":"X","message":"not\nhere"}]}"#;
        toy.fault("blobs", Fault::Status(status, Vec::new(), body.to_owned()));
        let error = client.blob_bytes(&repository(&toy), &digest, 3).await.unwrap_err();
        assert!(error.to_string().contains(&format!("{status} for")), "{error}");
        assert!(error.to_string().ends_with(": nothere"), "{error}");
        assert_eq!(toy.count("blobs"), 1);
    }
}

#[tokio::test]
async fn streams_go_on_where_they_broke() {
    let toy = Toy::start().await;
    let data = content(300_000);
    let digest = toy.add_blob(&data);
    let descriptor = blob_descriptor(&data);
    let client = client();
    for no_ranges in [false, true] {
        toy.set(|switches| switches.no_ranges = no_ranges);
        for fault in [Fault::Cut(100_000), Fault::Stall(200_000), Fault::Close, Fault::Cut(0)] {
            toy.fault("blobs", fault.clone());
            let got = collect(&client, &repository(&toy), &descriptor).await;
            assert_eq!(got.unwrap(), data, "{fault:?}");
        }
    }
    let last = toy.state.lock().log.iter().rfind(|r| r.headers.contains_key("range")).cloned().unwrap();
    assert!(last.headers["range"].starts_with("bytes="));
    for _ in 0..9 {
        toy.fault("blobs", Fault::Cut(0));
    }
    let error = collect(&client, &repository(&toy), &descriptor).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let _ = digest;
}

#[tokio::test]
async fn wrong_content_is_an_error() {
    let toy = Toy::start().await;
    let data = content(1000);
    let digest = toy.add_blob(&data);
    let descriptor = blob_descriptor(&data);
    let mut other = data.clone();
    other[500] ^= 1;
    toy.state.lock().blobs.insert(digest.to_string(), other.clone());
    let client = client();
    let error = collect(&client, &repository(&toy), &descriptor).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
    let error = client.blob_bytes(&repository(&toy), &digest, 1000).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
    let error = client.blob_bytes(&repository(&toy), &digest, 999).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: 999, .. }), "{error:?}");
    for length in [999, 1001] {
        let mut blob = data.clone();
        blob.resize(length, 0);
        toy.state.lock().blobs.insert(digest.to_string(), blob);
        let error = collect(&client, &repository(&toy), &descriptor).await.unwrap_err();
        assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{error:?}");
    }
    toy.state.lock().blobs.insert(digest.to_string(), data);
    toy.fault("blobs", Fault::Longer(b"more".to_vec()));
    let error = collect(&client, &repository(&toy), &descriptor).await.unwrap_err();
    assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{error:?}");
    let missing = soci_index::digest_of(b"missing");
    let error = client.blob_bytes(&repository(&toy), &missing, 10).await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    assert!(!client.has_blob(&repository(&toy), &missing).await.unwrap());
    assert!(client.has_blob(&repository(&toy), &digest).await.unwrap());
}

#[tokio::test]
async fn manifests_are_what_they_say() {
    let toy = Toy::start().await;
    let client = client();
    let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{}"}}"#, soci_index::MANIFEST_MEDIA_TYPE);
    let digest = toy.add_manifest("v1", soci_index::MANIFEST_MEDIA_TYPE, manifest.as_bytes());
    let tag = repository(&toy).with_tag("v1").unwrap();
    for head_without_headers in [false, true] {
        toy.set(|switches| switches.head_without_headers = head_without_headers);
        let descriptor = client.resolve(&tag).await.unwrap();
        assert_eq!(*descriptor.media_type(), MediaType::ImageManifest);
        assert_eq!((descriptor.digest(), descriptor.size()), (&digest, manifest.len() as u64));
    }
    let got = client.manifest(&tag).await.unwrap();
    assert_eq!((got.descriptor.digest(), &got.bytes[..]), (&digest, manifest.as_bytes()));
    assert_eq!(client.manifest(&repository(&toy).with_digest(digest.clone())).await.unwrap(), got);
    let both = Reference::parse(&format!("{tag}@{digest}")).unwrap();
    assert_eq!(client.resolve(&both).await.unwrap(), got.descriptor);

    let missing = repository(&toy).with_tag("nope").unwrap();
    assert!(client.resolve(&missing).await.unwrap_err().is_not_found());
    assert!(!client.has_manifest(&missing).await.unwrap());

    // Other bytes under the digest, or than the header says.
    let entry = (soci_index::MANIFEST_MEDIA_TYPE.to_owned(), b"{}".to_vec());
    toy.state.lock().manifests.insert(digest.to_string(), entry);
    let error = client.manifest(&repository(&toy).with_digest(digest.clone())).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
    toy.fault(
        "manifests",
        Fault::Header("docker-content-digest".to_owned(), soci_index::digest_of(b"x").to_string()),
    );
    let error = client.manifest(&tag).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");

    toy.add_manifest("confused", soci_index::INDEX_MEDIA_TYPE, manifest.as_bytes());
    let error = client.manifest(&repository(&toy).with_tag("confused").unwrap()).await.unwrap_err();
    assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{error:?}");

    toy.add_manifest("large", soci_index::MANIFEST_MEDIA_TYPE, &vec![b' '; (4 << 20) + 1]);
    let error = client.manifest(&repository(&toy).with_tag("large").unwrap()).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn images_are_chosen_by_platform() {
    let toy = Toy::start().await;
    let client = client();
    let mut entries = Vec::new();
    for (architecture, variant) in [("amd64", None), ("arm64", Some("v8"))] {
        let manifest = format!(r#"{{"schemaVersion":2,"annotations":{{"for":"{architecture}"}}}}"#);
        let digest = toy.add_manifest(architecture, soci_index::MANIFEST_MEDIA_TYPE, manifest.as_bytes());
        let mut platform = serde_json::json!({"os": "linux", "architecture": architecture});
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        entries.push(serde_json::json!({"mediaType": soci_index::MANIFEST_MEDIA_TYPE, "digest": digest,
            "size": manifest.len(), "platform": platform}));
    }
    let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
    for list_type in [soci_index::INDEX_MEDIA_TYPE, docker] {
        let list = serde_json::json!({"schemaVersion": 2, "mediaType": list_type, "manifests": entries});
        toy.add_manifest("list", list_type, list.to_string().as_bytes());
        let reference = repository(&toy).with_tag("list").unwrap();
        for architecture in ["amd64", "arm64"] {
            let platform = Platform::new("linux", architecture, "");
            let image = client.image(&reference, &platform).await.unwrap();
            assert_eq!(image.top.descriptor.media_type().as_ref(), list_type);
            assert!(String::from_utf8_lossy(&image.manifest.bytes).contains(architecture));
        }
        let error = client.image(&reference, &Platform::new("linux", "s390x", "")).await.unwrap_err();
        assert!(error.to_string().ends_with("no manifest for platform linux/s390x"), "{error}");
    }
    let single = repository(&toy).with_tag("arm64").unwrap();
    let image = client.image(&single, &Platform::new("linux", "amd64", "")).await.unwrap();
    assert_eq!(image.top, image.manifest);
}

#[tokio::test]
async fn nothing_secret_in_errors() {
    let toy = Toy::start().await;
    let digest = toy.add_blob(b"abc");
    let client = Client::new(ClientOptions { retries: 0, ..options() }).unwrap();
    let repository = repository(&toy);
    let closed = "http://127.0.0.1:1/x?X-Amz-Signature=hunter2";
    let to = |location: &str| {
        Fault::Status(307, vec![("location".to_owned(), location.to_owned())], String::new())
    };
    for location in
        [closed, "ftp://x/?hunter2", "http://[hunter2", &format!("http://{}/x?hunter2", toy.storage)]
    {
        toy.set(|switches| switches.stale_status = 403);
        toy.fault("blobs", to(location));
        let error = client.blob_range(&repository, &digest, 0..3).await.unwrap_err();
        let mut text = format!("{error:?} {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(&format!(" {cause} {cause:?}"));
            source = cause.source();
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
    // A circle ends.
    for _ in 0..20 {
        toy.fault("blobs", to(&format!("/v2/repo/blobs/{digest}")));
    }
    let error = range(&client, &repository, &digest, 0..3).await.unwrap_err();
    assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{error:?}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unreachable() {
    let client = Client::new(ClientOptions { retries: 1, ..options() }).unwrap();
    let reference = Reference::parse("127.0.0.1:1/x").unwrap();
    let error = client.resolve(&reference).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Unreachable { host, .. } if host == "127.0.0.1:1"), "{error:?}");
    assert!(error.is_transient());
    // Listens, but says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = Reference::parse(&format!("{}/x", listener.local_addr().unwrap())).unwrap();
    let started = std::time::Instant::now();
    let error = client.resolve(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    let bad = HostOptions { ca: vec!["/nonexistent".into()], ..HostOptions::default() };
    let error = Client::new(ClientOptions { hosts: bad, ..options() }).unwrap_err();
    assert_eq!(error.to_string(), "cannot use /nonexistent");
}
