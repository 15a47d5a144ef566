//! Mirrors and other things that `hosts.toml` says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "the toy registry is shared")]

#[path = "toy/range.rs"]
mod range;
#[path = "toy/server.rs"]
mod toy;

use futures_util::future::BoxFuture;
use oci_registry::{
    Client, ClientOptions, CredentialSource, Credentials, HostOptions, RegistryError, Repository,
};
use oci_spec::image::Descriptor;
use range::range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use toy::{Auth, Fault, Referrers, Request, Toy};

const DOMAIN: &str = "registry.example:5000";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Each host's own.
struct PerHost(Vec<(String, Credentials)>);

impl CredentialSource for PerHost {
    fn credentials<'a>(&'a self, host: &'a str, _: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        let found = self.0.iter().find(|(own, _)| own == host).map(|(_, credentials)| credentials.clone());
        Box::pin(std::future::ready(found))
    }
}

struct Setup {
    mirror: Toy,
    origin: Toy,
    folder: TempDir,
}

impl Setup {
    /// A mirror with `keys` in its table, and the registry.
    async fn new(keys: &str) -> Self {
        let setup = Self {
            mirror: Toy::start().await,
            origin: Toy::start().await,
            folder: tempfile::tempdir().unwrap(),
        };
        setup.write(&format!(
            "server = 'http://{}'\n[host.'http://{}']\n{keys}",
            setup.origin.registry, setup.mirror.registry
        ));
        setup
    }

    fn write(&self, text: &str) {
        let folder = self.folder.path().join("registry.example_5000_");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
    }

    fn client(&self) -> Client {
        self.client_with(Vec::new())
    }

    fn client_with(&self, credentials: Vec<(String, Credentials)>) -> Client {
        client(self.folder.path(), credentials)
    }

    fn log(&self, toy: &Toy) -> Vec<Request> {
        toy.state.lock().log.clone()
    }
}

fn client(folder: &Path, credentials: Vec<(String, Credentials)>) -> Client {
    let hosts = HostOptions { hosts_dir: vec![folder.to_owned()], ..HostOptions::default() };
    Client::new(ClientOptions {
        connect_timeout: Duration::from_millis(500),
        header_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(300),
        retries: 1,
        min_backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(50),
        hosts,
        credentials: Arc::new(PerHost(credentials)),
        ..ClientOptions::default()
    })
    .unwrap()
}

fn repository() -> Repository {
    Repository::new(DOMAIN, "repo").unwrap()
}

#[tokio::test]
async fn the_mirror_is_asked_first_and_told_for_whom() {
    let setup = Setup::new("").await;
    let digest = setup.mirror.add_blob(b"content");
    setup.mirror.add_manifest("1", MANIFEST, br#"{"schemaVersion":2}"#);
    let client = setup.client();
    assert_eq!(range(&client, &repository(), &digest, 0..3).await.unwrap(), "con");
    client.manifest(&repository().with_tag("1").unwrap()).await.unwrap();
    assert!(setup.log(&setup.origin).is_empty());
    for request in setup.log(&setup.mirror) {
        assert_eq!(request.query, "ns=registry.example%3A5000", "{request:?}");
    }
    // What the mirror has not got comes from the registry, which has no use for its own name; and it is asked there again.
    let other = setup.origin.add_blob(b"other");
    setup.mirror.forget_log();
    for _ in 0..3 {
        assert_eq!(range(&client, &repository(), &other, 0..5).await.unwrap(), "other");
    }
    assert_eq!(setup.mirror.count("blobs"), 1);
    let log = setup.log(&setup.origin);
    assert_eq!(log.len(), 3);
    assert!(log.iter().all(|request| request.path == format!("/v2/repo/blobs/{other}")));
    // A host without a folder is itself.
    let alone = Repository::new(&setup.origin.registry.to_string(), "repo").unwrap();
    assert_eq!(client.blob_bytes(&alone, &other, 100).await.unwrap(), "other");
    assert!(setup.log(&setup.origin).last().unwrap().query.is_empty());
}

#[tokio::test]
async fn whatever_a_mirror_does_the_registry_is_asked() {
    let setup = Setup::new("").await;
    let good = setup.origin.add_blob(b"content");
    let client = setup.client();
    for status in [400, 403, 404, 429, 500, 503] {
        let digest = setup.origin.add_blob(format!("content {status}").as_bytes());
        setup.mirror.fault("blobs", Fault::Status(status, Vec::new(), String::new()));
        client.blob_bytes(&repository(), &digest, 100).await.unwrap_or_else(|e| panic!("{status}: {e:?}"));
    }
    for fault in [Fault::Close, Fault::Cut(3), Fault::Stall(3), Fault::Longer(b"x".to_vec())] {
        let bytes = format!("content {fault:?}");
        setup.mirror.add_blob(bytes.as_bytes());
        let digest = setup.origin.add_blob(bytes.as_bytes());
        setup.mirror.fault("blobs", fault.clone());
        let got = client.blob_bytes(&repository(), &digest, 100).await;
        assert_eq!(got.unwrap_or_else(|e| panic!("{fault:?}: {e:?}")), bytes);
    }
    // One that lies.
    setup.mirror.state.lock().blobs.insert(good.to_string(), b"poison".to_vec());
    assert_eq!(setup.client().blob_bytes(&repository(), &good, 100).await.unwrap(), "content");
    // One that wants credentials, which we have not got.
    setup.mirror.set(|switches| switches.auth = Auth::Basic("u:p".to_owned()));
    assert_eq!(setup.client().blob_bytes(&repository(), &good, 100).await.unwrap(), "content");
    // One that is gone, and not asked each time.
    let closed = "127.0.0.1:1";
    setup.write(&format!("server = 'http://{}'\n[host.'http://{closed}']", setup.origin.registry));
    assert_eq!(setup.client().blob_bytes(&repository(), &good, 100).await.unwrap(), "content");
}

#[tokio::test]
async fn the_last_error_counts_and_all_hosts_are_named() {
    let setup = Setup::new("").await;
    let missing = soci_index::digest_of(b"missing");
    setup.mirror.fault("blobs", Fault::Status(403, Vec::new(), String::new()));
    let error = setup.client().blob_bytes(&repository(), &missing, 100).await.unwrap_err();
    assert!(error.is_not_found() && !error.is_transient(), "{error:?}");
    assert!(matches!(error.answer(), RegistryError::NotFound { .. }));
    let expected = format!("no endpoint gave it, tried {}, {}", setup.mirror.registry, setup.origin.registry);
    assert_eq!(error.to_string(), expected);
    assert!(!setup.client().has_blob(&repository(), &missing).await.unwrap());
    // A mirror that is gone comes last from then on; the registry's word still counts.
    setup.write(&format!("server = 'http://{}'\n[host.'http://127.0.0.1:1']", setup.origin.registry));
    let client = setup.client();
    for expected in [["127.0.0.1:1", "origin"], ["origin", "127.0.0.1:1"]] {
        let error = client.blob_bytes(&repository(), &missing, 100).await.unwrap_err();
        let RegistryError::Endpoints { tried, last } = error else { panic!("{error:?}") };
        let origin = setup.origin.registry.to_string();
        let tried: Vec<_> = tried.iter().map(|t| if *t == origin { "origin" } else { t.as_str() }).collect();
        assert_eq!(tried, expected);
        assert!(last.is_not_found(), "{last:?}");
    }
}

#[tokio::test]
async fn capabilities() {
    let setup = Setup::new("capabilities = ['pull']").await;
    let old = setup.mirror.add_manifest("1", MANIFEST, br#"{"schemaVersion":2,"old":1}"#);
    let new = setup.origin.add_manifest("1", MANIFEST, br#"{"schemaVersion":2,"new":1}"#);
    let client = setup.client();
    let tag = repository().with_tag("1").unwrap();
    assert_eq!(client.resolve(&tag).await.unwrap().digest(), &new);
    assert_eq!(client.manifest(&tag).await.unwrap().descriptor.digest(), &new);
    assert_eq!(setup.mirror.count(""), 0);
    client.manifest(&repository().with_digest(old)).await.unwrap();
    assert_eq!(setup.mirror.count("manifests"), 1);
    client.push_manifest(&tag, MANIFEST, b"{}").await.unwrap();
    let blob = Descriptor::new(MANIFEST.into(), 3, soci_index::digest_of(b"abc"));
    client.push_blob(&repository(), &blob, b"abc".to_vec()).await.unwrap();
    assert!(setup.origin.state.lock().blobs.contains_key(blob.digest().as_ref()));
    assert_eq!(setup.mirror.count(""), 1);
    // Tables without capabilities have all, as in containerd: the first one is written to, and only that one.
    let setup = Setup::new("").await;
    setup.mirror.fault("manifests", Fault::Status(404, Vec::new(), String::new()));
    let error = setup.client().push_manifest(&tag, MANIFEST, b"{}").await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
    assert_eq!(setup.origin.count(""), 0);
    // Who is believed about a tag need not have the content.
    let setup = Setup::new("capabilities = ['resolve']").await;
    let bytes = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;
    setup.mirror.add_manifest("1", MANIFEST, bytes);
    let new = setup.origin.add_manifest("x", MANIFEST, bytes);
    assert_eq!(setup.client().manifest(&tag).await.unwrap().descriptor.digest(), &new);
    assert_eq!((setup.mirror.count("manifests/1"), setup.origin.count("manifests/sha256")), (1, 1));
    // Nobody may.
    setup.write("capabilities = ['pull']");
    let error = setup.client().resolve(&tag).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, format!("no endpoint of {DOMAIN} has the capability resolve"));
}

#[tokio::test]
async fn headers_go_to_their_host_alone() {
    let setup = Setup::new("header = { x-key = 'mine', x-two = ['a', 'b'] }").await;
    let digest = setup.mirror.add_blob(b"content");
    setup.mirror.set(|switches| switches.signature = Some(1));
    setup.client().blob_bytes(&repository(), &digest, 100).await.unwrap();
    let other = setup.origin.add_blob(b"other");
    setup.client().blob_bytes(&repository(), &other, 100).await.unwrap();
    for request in setup.log(&setup.mirror) {
        let expected = (request.port == setup.mirror.registry.port()).then_some("mine");
        assert_eq!(request.headers.get("x-key").map(String::as_str), expected, "{request:?}");
    }
    assert_eq!(setup.mirror.state.lock().log[0].headers["x-two"], "b");
    assert!(setup.log(&setup.origin).iter().all(|request| !request.headers.contains_key("x-key")));
}

#[tokio::test]
async fn a_path_of_its_own() {
    let setup = Setup::new("").await;
    let mirror = setup.mirror.registry;
    let digest = setup.mirror.add_blob(b"content");
    setup.write(&format!("[host.'http://{mirror}/v2/cache']\noverride_path = true"));
    let _ = setup.client().has_blob(&repository(), &digest).await;
    setup.write(&format!("[host.'http://{mirror}/cache']"));
    let _ = setup.client().has_blob(&repository(), &digest).await;
    let paths: Vec<_> = setup.log(&setup.mirror).into_iter().map(|request| request.path).collect();
    assert_eq!(paths[0], format!("/v2/cache/repo/blobs/{digest}"));
    assert!(paths.contains(&format!("/cache/v2/repo/blobs/{digest}")), "{paths:?}");
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let setup = Setup::new("").await;
    let pair = |name: &str| Credentials::new(name, "p");
    let (mirror, origin) = (setup.mirror.registry.to_string(), setup.origin.registry.to_string());
    for bearer in [false, true] {
        let auth = |user: &str| match bearer {
            true => Auth::Bearer { user: Some(format!("{user}:p")), identity_token: None, uses: 100 },
            false => Auth::Basic(format!("{user}:p")),
        };
        setup.mirror.set(|switches| switches.auth = auth("m"));
        setup.origin.set(|switches| switches.auth = auth("o"));
        let all =
            vec![(mirror.clone(), pair("m")), (origin.clone(), pair("o")), (DOMAIN.to_owned(), pair("d"))];
        let client = setup.client_with(all);
        let first = setup.mirror.add_blob(b"first");
        let second = setup.origin.add_blob(b"second");
        assert_eq!(client.blob_bytes(&repository(), &first, 100).await.unwrap(), "first");
        assert_eq!(client.blob_bytes(&repository(), &second, 100).await.unwrap(), "second");
        let sent = |toy: &Toy| -> Vec<String> {
            let log = std::mem::take(&mut toy.state.lock().log);
            log.into_iter().filter_map(|request| request.headers.get("authorization").cloned()).collect()
        };
        let (to_mirror, to_origin) = (sent(&setup.mirror), sent(&setup.origin));
        assert!(!to_mirror.is_empty() && !to_origin.is_empty());
        if !bearer {
            assert!(to_mirror.iter().all(|header| header == "Basic bTpw"), "{to_mirror:?}");
            assert!(to_origin.iter().all(|header| header == "Basic bzpw"), "{to_origin:?}");
        } else {
            assert!(
                to_mirror.contains(&"Basic bTpw".to_owned()) && !to_mirror.contains(&"Basic bzpw".to_owned())
            );
            assert!(
                to_origin.contains(&"Basic bzpw".to_owned()) && !to_origin.contains(&"Basic bTpw".to_owned())
            );
        }
    }
    // Credentials for the registry alone are not tried on the mirror.
    setup.mirror.set(|switches| switches.auth = Auth::Basic("o:p".to_owned()));
    setup.origin.set(|switches| switches.auth = Auth::Basic("o:p".to_owned()));
    let both = setup.origin.add_blob(b"both");
    setup.mirror.add_blob(b"both");
    let client = setup.client_with(vec![(origin, pair("o"))]);
    assert_eq!(client.blob_bytes(&repository(), &both, 100).await.unwrap(), "both");
    assert!(setup.log(&setup.mirror).iter().all(|request| !request.headers.contains_key("authorization")));
}

#[tokio::test]
async fn referrers_of_a_mirror_that_has_none_come_from_the_registry() {
    for mirrors in [Referrers::Api, Referrers::Missing, Referrers::LoginPage] {
        let setup = Setup::new("").await;
        setup.mirror.set(|switches| switches.referrers = mirrors);
        setup.origin.set(|switches| switches.referrers = Referrers::Api);
        let subject = soci_index::digest_of(b"image");
        let artifact = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "text/x"}, "subject": {"digest": subject.as_ref()}});
        let client = setup.client();
        assert!(client.referrers(&repository(), &subject, "text/x").await.unwrap().is_empty());
        let digest = setup.origin.add_manifest("x", MANIFEST, artifact.to_string().as_bytes());
        let found = client.referrers(&repository(), &subject, "text/x").await.unwrap();
        assert_eq!(found.iter().map(Descriptor::digest).collect::<Vec<_>>(), [&digest]);
        // Where the registry cannot be asked, "none" is not known.
        let unknown = soci_index::digest_of(b"unknown");
        for _ in 0..2 {
            setup.origin.fault("referrers", Fault::Status(503, Vec::new(), String::new()));
        }
        let error = client.referrers(&repository(), &unknown, "text/x").await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_wrong_is_named() {
    let setup = Setup::new("capabilities = 'pull'").await;
    let error = setup.client().resolve(&repository().with_tag("1").unwrap()).await.unwrap_err();
    let RegistryError::Host { source, .. } = &error else { panic!("{error:?}") };
    let text = source.to_string();
    assert!(text.contains("registry.example_5000_/hosts.toml: host.\"http://127.0.0.1:"), "{text}");
    assert!(text.ends_with(".capabilities has to be an array, not a string"), "{text}");
    assert!(setup.mirror.count("") + setup.origin.count("") == 0, "nobody is asked in the meantime");
}

#[tokio::test]
async fn a_storage_that_refuses_head_decides_nothing() {
    let toy = Toy::start().await;
    let digest = toy.add_blob(b"content");
    let repository = Repository::new(&toy.registry.to_string(), "repo").unwrap();
    let client = client(Path::new("/nonexistent"), Vec::new());
    toy.set(|switches| switches.signature = Some(1));
    for status in [400, 403, 404, 405] {
        // The storage's own path is the digest.
        let path = format!("/{digest}");
        let to = format!("http://{}{path}?signature=1", toy.storage);
        toy.fault("blobs", Fault::Header("location".to_owned(), to));
        toy.fault(&path, Fault::Status(status, Vec::new(), String::new()));
        assert!(client.has_blob(&repository, &digest).await.unwrap(), "{status}");
    }
    // A storage that has lost it.
    toy.set(|switches| switches.stale_status = 404);
    for _ in 0..2 {
        let to = format!("http://{}/{digest}?signature=0", toy.storage);
        toy.fault("blobs", Fault::Status(307, vec![("location".to_owned(), to)], String::new()));
    }
    let error = client.has_blob(&repository, &digest).await.unwrap_err();
    assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{error:?}");
    let missing = soci_index::digest_of(b"missing");
    assert!(!client.has_blob(&repository, &missing).await.unwrap());
}
