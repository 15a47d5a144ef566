//! Against Debian's `docker-registry`, with htpasswd users, plain and with TLS. Needs `/usr/bin/docker-registry`,
//! `htpasswd` (apache2-utils) and `openssl`; without them it fails.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "toy/range.rs"]
mod range;

use futures_util::StreamExt as _;
use oci_registry::{
    Client, ClientOptions, Credentials, HostOptions, PushOutcome, Reference, RegistryError,
    StaticCredentials, UploadBody,
};
use oci_spec::image::{Descriptor, MediaType};
use range::range;
use soci_index::{ARTIFACT_TYPE_V1, IndexBuilder};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl Registry {
    fn start(tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let users = run(Command::new("htpasswd").args(["-Bbn", "alice", "s3cret"]));
        std::fs::write(path("users"), users).unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
             auth:\n  htpasswd: {{realm: test, path: {}}}\n",
            path("data").display(),
            path("users").display(),
        );
        // Another process may take the port before the registry does: it then ends, and is started on another.
        for _ in 0..5 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap().to_string();
            drop(free);
            config.push_str(&format!("http:\n  addr: {address}\n"));
            if tls {
                certificates(folder.path());
                config.push_str(&format!(
                    "  tls: {{certificate: {0}/server.pem, key: {0}/server.key, clientcas: [{0}/ca.pem]}}\n",
                    folder.path().display()
                ));
            }
            std::fs::write(path("config.yml"), &config).unwrap();
            let mut child = Command::new("/usr/bin/docker-registry")
                .arg("serve")
                .arg(path("config.yml"))
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(path("log")).unwrap())
                .spawn()
                .expect("docker-registry is needed: apt install docker-registry");
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(&address).is_ok() {
                    return Self { child, folder, address };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
            config.truncate(config.find("http:\n").unwrap());
        }
        panic!("docker-registry does not start: {}", std::fs::read_to_string(path("log")).unwrap());
    }

    fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// An authority, a server's certificate and a client's.
fn certificates(folder: &Path) {
    let openssl = |line: &str| run(Command::new("openssl").args(line.split(' ')).current_dir(folder));
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
    );
    std::fs::write(folder.join("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    for name in ["server", "client"] {
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out {name}.pem"
        ));
    }
}

fn client(user: Option<(&str, &str)>, hosts: HostOptions) -> Client {
    let mut options = ClientOptions { hosts, retries: 1, ..ClientOptions::default() };
    if let Some((name, secret)) = user {
        options.credentials = Arc::new(StaticCredentials::new(Credentials::new(name, secret)));
    }
    Client::new(options).unwrap()
}

/// Pushes an image with an index that refers to it, finds and reads it all again.
async fn round_trip(client: &Client, registry: &Registry) {
    let image = registry.reference("team/app:v1");
    let repository = image.repository();
    let layer: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let layer_digest = soci_index::digest_of(&layer);
    let descriptor = Descriptor::new(MediaType::ImageLayerGzip, layer.len() as u64, layer_digest.clone());
    let pieces: Vec<bytes::Bytes> = layer.chunks(64 << 10).map(bytes::Bytes::copy_from_slice).collect();
    let body =
        UploadBody::stream(move || futures_util::stream::iter(pieces.clone().into_iter().map(Ok)).boxed());
    assert_eq!(client.push_blob(repository, &descriptor, body.clone()).await.unwrap(), PushOutcome::Pushed);
    assert_eq!(client.push_blob(repository, &descriptor, body).await.unwrap(), PushOutcome::Exists);
    let config = soci_index::EMPTY_CONFIG;
    let config_descriptor = Descriptor::new(MediaType::ImageConfig, 2, soci_index::digest_of(config));
    client.push_blob(repository, &config_descriptor, config.to_vec()).await.unwrap();

    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": soci_index::MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_descriptor.digest(), "size": 2},
        "layers": [{"mediaType": descriptor.media_type(), "digest": layer_digest, "size": layer.len()}],
    });
    let pushed =
        client.push_manifest(&image, soci_index::MANIFEST_MEDIA_TYPE, manifest.to_string().as_bytes()).await;
    let pushed = pushed.unwrap().descriptor;
    assert_eq!(client.resolve(&image).await.unwrap(), pushed);
    assert_eq!(client.manifest(&image).await.unwrap().bytes, manifest.to_string());

    assert!(client.referrers(repository, pushed.digest(), ARTIFACT_TYPE_V1).await.unwrap().is_empty());
    let index = IndexBuilder::v1(pushed.clone()).build();
    let json = index.to_json();
    let entry = index.referrer_descriptor(&json);
    client.push_referrer(repository, &entry, &json, pushed.digest()).await.unwrap();
    let found = client.referrers(repository, pushed.digest(), ARTIFACT_TYPE_V1).await.unwrap();
    assert_eq!(found, [entry]);
    let fetched = client.manifest(&repository.with_digest(found[0].digest().clone())).await.unwrap();
    assert_eq!(fetched.bytes, json);

    assert_eq!(
        range(client, repository, &layer_digest, 1_000_000..1_500_000).await.unwrap(),
        layer[1_000_000..1_500_000]
    );
    assert_eq!(client.blob_bytes(repository, &layer_digest, 3_000_000).await.unwrap(), layer);
    let mut stream = client.blob(repository, &descriptor).await.unwrap();
    let mut read = 0;
    while let Some(chunk) = stream.next().await {
        read += chunk.unwrap().len();
    }
    assert_eq!(read, layer.len());
}

#[tokio::test]
async fn plain_http_with_users() {
    let registry = Registry::start(false);
    round_trip(&client(Some(("alice", "s3cret")), HostOptions::default()), &registry).await;
    let image = registry.reference("team/app:v1");
    for user in [None, Some(("alice", "wrong")), Some(("bob", "s3cret"))] {
        let client = client(user, HostOptions::default());
        let error = client.resolve(&image).await.unwrap_err();
        assert!(
            matches!(error, RegistryError::Unauthorized { anonymous, .. } if anonymous == user.is_none()),
            "{error:?}"
        );
    }
    let client = client(Some(("alice", "s3cret")), HostOptions::default());
    let error = client.manifest(&registry.reference("team/none")).await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
}

#[tokio::test]
async fn tls_with_own_authority_and_client_certificate() {
    let registry = Registry::start(true);
    let alice = Some(("alice", "s3cret"));
    let identity = Some((registry.path("client.pem"), registry.path("client.key")));
    let good = HostOptions {
        ca: vec![registry.path("ca.pem")],
        client_cert: identity.clone(),
        ..HostOptions::default()
    };
    round_trip(&client(alice, good.clone()), &registry).await;
    let image = registry.reference("team/app:v1");
    let unchecked =
        HostOptions { skip_verify: true, client_cert: identity.clone(), ..HostOptions::default() };
    client(alice, unchecked).resolve(&image).await.unwrap();
    let unknown_authority = HostOptions { client_cert: identity, ..HostOptions::default() };
    let nobody = HostOptions { client_cert: None, ..good };
    for hosts in [unknown_authority, nobody] {
        let error = client(alice, hosts).resolve(&image).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
    }
}
