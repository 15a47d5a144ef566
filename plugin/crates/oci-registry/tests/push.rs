//! Writing to a registry, and what refers to what.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "the toy registry is shared")]

#[path = "toy/server.rs"]
mod toy;

use bytes::Bytes;
use futures_util::StreamExt as _;
use oci_registry::{
    BlobUpload, Client, ClientOptions, Credentials, PushOutcome, RegistryError, Repository,
    StaticCredentials, UploadBody,
};
use oci_spec::image::{Descriptor, Digest, MediaType};
use parking_lot::Mutex;
use soci_index::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2, IndexBuilder};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use toy::{Auth, Fault, Referrers, Toy};

fn client() -> Client {
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("u", "p")));
    Client::new(ClientOptions {
        header_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(500),
        retries: 2,
        min_backoff: Duration::from_millis(5),
        credentials,
        ..ClientOptions::default()
    })
    .unwrap()
}

fn repository(toy: &Toy) -> Repository {
    Repository::new(&toy.registry.to_string(), "repo").unwrap()
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayerGzip, bytes.len() as u64, soci_index::digest_of(bytes))
}

fn pieces(bytes: &[u8]) -> UploadBody {
    let pieces: Vec<Bytes> = bytes.chunks(1000).map(Bytes::copy_from_slice).collect();
    UploadBody::stream(move || futures_util::stream::iter(pieces.clone().into_iter().map(Ok)).boxed())
}

#[tokio::test]
async fn blobs_are_pushed_once() {
    let toy = Toy::start().await;
    let data: Vec<u8> = (0..700_000_u32).map(|i| (i % 251) as u8).collect();
    let client = client();
    for (round, auth) in [
        Auth::None,
        Auth::Basic("u:p".to_owned()),
        Auth::Bearer { user: Some("u:p".to_owned()), identity_token: None, uses: 1 },
    ]
    .into_iter()
    .enumerate()
    {
        toy.set(|switches| (switches.auth, switches.absolute_location) = (auth, round == 1));
        toy.state.lock().blobs.clear();
        let seen = Arc::new(Mutex::new(0_i64));
        let counter = seen.clone();
        let upload = BlobUpload {
            body: pieces(&data),
            progress: Some(Arc::new(move |bytes| *counter.lock() += bytes)),
        };
        let pushed = client.push_blob(&repository(&toy), &descriptor(&data), upload).await;
        assert_eq!(pushed.unwrap(), PushOutcome::Pushed, "round {round}");
        assert_eq!(toy.state.lock().blobs[&soci_index::digest_of(&data).to_string()], data);
        assert_eq!(*seen.lock(), 700_000, "round {round}");
        toy.forget_log();
        let again = client.push_blob(&repository(&toy), &descriptor(&data), Bytes::from(data.clone())).await;
        assert_eq!(again.unwrap(), PushOutcome::Exists);
        assert!(
            toy.state.lock().log.iter().all(|request| request.body.is_empty() && request.method != "PUT")
        );
    }
    let empty = client.push_blob(&repository(&toy), &descriptor(b""), Bytes::new()).await;
    assert_eq!(empty.unwrap(), PushOutcome::Pushed);
}

#[tokio::test]
async fn a_push_is_retried_from_its_start() {
    let toy = Toy::start().await;
    let data = vec![7; 100_000];
    let client = client();
    toy.fault("uploads", Fault::Status(503, Vec::new(), String::new()));
    toy.fault("uploads/", Fault::Close);
    client.push_blob(&repository(&toy), &descriptor(&data), pieces(&data)).await.unwrap();
    assert_eq!(toy.state.lock().blobs[&soci_index::digest_of(&data).to_string()], data);
    let other = vec![8; 100_000];
    for _ in 0..3 {
        toy.fault("uploads/", Fault::Status(500, Vec::new(), String::new()));
    }
    let error = client.push_blob(&repository(&toy), &descriptor(&other), pieces(&other)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 500, .. }), "{error:?}");
}

#[tokio::test]
async fn a_source_that_fails_or_lies_is_told_as_such() {
    let toy = Toy::start().await;
    let data = vec![7; 10_000];
    let client = client();
    let broken = UploadBody::stream(|| {
        let items = [Ok(Bytes::from_static(b"abc")), Err(io::Error::other("disk on fire"))];
        futures_util::stream::iter(items).boxed()
    });
    for body in [broken, pieces(&data[1..]), UploadBody::bytes(vec![7; 10_001])] {
        toy.forget_log();
        let error = client.push_blob(&repository(&toy), &descriptor(&data), body).await.unwrap_err();
        assert!(matches!(error, RegistryError::Upload(_)), "{error:?}");
        assert!(toy.count("uploads/") <= 2, "not retried");
    }
    let error = client
        .push_blob(
            &repository(&toy),
            &descriptor(&data),
            UploadBody::stream(|| futures_util::stream::pending().boxed()),
        )
        .await;
    let error = error.unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { .. }), "{error:?}");
    assert!(toy.state.lock().blobs.is_empty());
}

#[tokio::test]
async fn manifests_by_tag_and_digest() {
    let toy = Toy::start().await;
    let client = client();
    let bytes = br#"{"schemaVersion":2}"#;
    let digest = soci_index::digest_of(bytes);
    let tag = repository(&toy).with_tag("v1").unwrap();
    let pushed = client.push_manifest(&tag, soci_index::MANIFEST_MEDIA_TYPE, bytes).await.unwrap();
    assert_eq!((pushed.descriptor.digest(), pushed.subject_listed), (&digest, false));
    assert_eq!(client.manifest(&tag).await.unwrap().bytes, &bytes[..]);
    let by_digest = repository(&toy).with_digest(digest);
    client.push_manifest(&by_digest, soci_index::MANIFEST_MEDIA_TYPE, bytes).await.unwrap();
    let error = client.push_manifest(&by_digest, soci_index::MANIFEST_MEDIA_TYPE, b"{}").await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
    toy.fault(
        "manifests",
        Fault::Header("docker-content-digest".to_owned(), soci_index::digest_of(b"x").to_string()),
    );
    let error = client.push_manifest(&tag, soci_index::MANIFEST_MEDIA_TYPE, bytes).await.unwrap_err();
    assert!(matches!(error, RegistryError::InvalidResponse { .. }), "{error:?}");
}

/// A SOCI index for `subject`, one of many.
fn index(subject: &Digest, number: u32) -> (Descriptor, Vec<u8>) {
    let mut builder = IndexBuilder::v1(Descriptor::new(MediaType::ImageManifest, 1, subject.clone()));
    builder.build_tool(&format!("tool <{number}>"));
    let index = builder.build();
    let json = index.to_json();
    (index.referrer_descriptor(&json), json)
}

#[tokio::test]
async fn referrers_both_ways_on_every_kind_of_registry() {
    let kinds = [
        Referrers::Api,
        Referrers::Pages,
        Referrers::Missing,
        Referrers::Status(400),
        Referrers::Status(403),
        Referrers::Status(405),
        Referrers::Status(501),
        Referrers::LoginPage,
        Referrers::Redirect,
    ];
    for kind in kinds {
        let toy = Toy::start().await;
        toy.set(|switches| switches.referrers = kind);
        let client = client();
        let repository = repository(&toy);
        let subject = soci_index::digest_of(b"image");
        let tag = soci_index::fallback::tag(&subject);
        assert!(
            client.referrers(&repository, &subject, ARTIFACT_TYPE_V1).await.unwrap().is_empty(),
            "{kind:?}"
        );
        let mut expected = Vec::new();
        for number in 0..3 {
            let (descriptor, json) = index(&subject, number);
            for _ in 0..2 {
                client.push_referrer(&repository, &descriptor, &json, &subject).await.unwrap();
            }
            expected.push(descriptor.digest().to_string());
        }
        let found = client.referrers(&repository, &subject, ARTIFACT_TYPE_V1).await.unwrap();
        let mut digests: Vec<_> = found.iter().map(|descriptor| descriptor.digest().to_string()).collect();
        digests.sort();
        expected.sort();
        assert_eq!(digests, expected, "{kind:?}");
        assert!(client.referrers(&repository, &subject, ARTIFACT_TYPE_V2).await.unwrap().is_empty());
        let with_api = matches!(kind, Referrers::Api | Referrers::Pages);
        assert_eq!(!toy.state.lock().manifests.contains_key(&tag), with_api, "{kind:?}");
        if !with_api {
            let (media_type, bytes) = toy.state.lock().manifests[&tag].clone();
            assert_eq!(media_type, soci_index::INDEX_MEDIA_TYPE);
            let text = String::from_utf8(bytes).unwrap();
            assert!(
                text.contains(r#""com.amazon.soci.build-tool-identifier":"tool \u003c0\u003e""#),
                "{text}"
            );
            assert_eq!(found[0].annotations().as_ref().unwrap().len(), 1);
        }
    }
}

#[tokio::test]
async fn a_fallback_tag_that_is_no_list_is_left_alone() {
    let toy = Toy::start().await;
    let repository = repository(&toy);
    let subject = soci_index::digest_of(b"subject");
    let theirs =
        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":7}"#;
    let tag = soci_index::fallback::tag(&subject);
    toy.add_manifest(&tag, soci_index::INDEX_MEDIA_TYPE, theirs);
    let (descriptor, bytes) = index(&subject, 1);
    let error = client().push_referrer(&repository, &descriptor, &bytes, &subject).await.unwrap_err();
    assert!(error.to_string().contains("no list of referrers"), "{error}");
    assert_eq!(toy.state.lock().manifests[&tag].1, theirs);
}

#[tokio::test]
async fn two_writers_of_the_fallback_tag_do_not_lose_each_other() {
    let toy = Toy::start().await;
    let subject = soci_index::digest_of(b"image");
    let repository = repository(&toy);
    let (clients, indices): (Vec<_>, Vec<_>) =
        (0..3).map(|number| (client(), index(&subject, number))).unzip();
    let pushes = clients
        .iter()
        .zip(&indices)
        .map(|(client, (descriptor, json))| client.push_referrer(&repository, descriptor, json, &subject));
    for pushed in futures_util::future::join_all(pushes).await {
        pushed.unwrap();
    }
    let found = clients[0].referrers(&repository, &subject, ARTIFACT_TYPE_V1).await.unwrap();
    assert_eq!(found.len(), 3);
}

#[tokio::test]
async fn a_registry_in_trouble_is_not_taken_for_one_without_referrers() {
    let toy = Toy::start().await;
    toy.set(|switches| switches.referrers = Referrers::Status(503));
    let subject = soci_index::digest_of(b"image");
    let error = client().referrers(&repository(&toy), &subject, ARTIFACT_TYPE_V1).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    toy.set(|switches| {
        switches.referrers = Referrers::Missing;
        switches.auth = Auth::Basic("u:other".to_owned());
    });
    let error = client().referrers(&repository(&toy), &subject, ARTIFACT_TYPE_V1).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error:?}");
}
