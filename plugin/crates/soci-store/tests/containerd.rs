//! Against a real containerd of its own (as root): content, labels, and what its garbage collector keeps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::CreateImageRequest;
use oci_spec::image::{Descriptor, Digest, MediaType};
use soci_index::{IndexBuilder, SociIndex, ZtocRecord, digest_of};
use soci_store::labels::{self, Labels};
use soci_store::{Containerd, Image, IndexTarget, OpenedWriter, StoreError, connect};

/// A containerd in a folder of its own; ends with this value.
struct Server {
    process: Child,
    folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> (Server, Containerd) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("containerd.sock"),
            at("ttrpc.sock")
        );
        std::fs::write(at("config.toml"), config).unwrap();
        let process = Command::new("containerd")
            .args(["--config", &at("config.toml")])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(at("log")).unwrap())
            .spawn()
            .expect("containerd is needed for this test");
        let server = Server { process, folder };
        let socket = server.folder.path().join("containerd.sock");
        let channel = connect(&socket, Duration::from_secs(5)).unwrap();
        let containerd = Containerd::new(channel, "test".parse().unwrap());
        for _ in 0..100 {
            if containerd.images().list(&[]).await.is_ok() {
                return (server, containerd);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = std::fs::read_to_string(server.folder.path().join("log")).unwrap_or_default();
        panic!("containerd does not answer: {log}");
    }

    fn ctr(&self, arguments: &[&str]) {
        let socket = self.folder.path().join("containerd.sock");
        let outcome =
            Command::new("ctr").args(["-n", "test", "-a"]).arg(socket).args(arguments).output().unwrap();
        assert!(outcome.status.success(), "{arguments:?}: {outcome:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn blob(media_type: &str, bytes: &'static [u8]) -> (Descriptor, Bytes) {
    let descriptor = Descriptor::new(MediaType::from(media_type), bytes.len() as u64, digest_of(bytes));
    (descriptor, Bytes::from_static(bytes))
}

async fn exists(containerd: &Containerd, digest: &Digest) -> bool {
    containerd.content().info(digest).await.unwrap().is_some()
}

/// Has containerd collect garbage: deleting an image synchronously does.
async fn collect(containerd: &Containerd) {
    let target = blob("application/octet-stream", b"collect").0;
    let image = Image::new("collect", target, Labels::new());
    containerd.images().create_or_update(&image).await.unwrap();
    containerd.images().delete("collect", true).await.unwrap();
}

#[tokio::test]
async fn writes_reads_and_labels() {
    let (_server, containerd) = Server::start().await;
    let content = containerd.content();
    let lease = containerd.leases().create(Duration::from_secs(600)).await.unwrap();
    let (descriptor, bytes) = blob("application/octet-stream", b"some bytes of a blob");
    let digest = descriptor.digest().clone();
    let label = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);

    assert!(content.info(&digest).await.unwrap().is_none());
    assert!(content.read_all(&digest, 100).await.unwrap_err().is_not_found());
    content.write_bytes(Some(&lease), &descriptor, label("a", "1"), bytes.clone()).await.unwrap();
    // A second time is a success and sets the labels.
    content.write_bytes(Some(&lease), &descriptor, label("b", "2"), bytes.clone()).await.unwrap();
    let info = content.info(&digest).await.unwrap().unwrap();
    assert_eq!((info.size, info.labels.len()), (20, 2));
    assert_eq!(content.read_all(&digest, 100).await.unwrap(), bytes);
    assert_eq!(content.read_range(&digest, 5..10).await.unwrap(), bytes.slice(5..10));
    assert!(matches!(content.read_all(&digest, 19).await, Err(StoreError::TooLarge { .. })));
    assert!(content.read_range(&digest, 5..21).await.is_err());
    content.remove_label(&digest, "a").await.unwrap();
    assert_eq!(content.info(&digest).await.unwrap().unwrap().labels, label("b", "2"));
    assert_eq!(content.list(&[soci_store::equals("b", "2")]).await.unwrap().len(), 1);
    assert_eq!(content.list(&[soci_store::present("a")]).await.unwrap().len(), 0);
    let long = content.set_labels(&digest, label("k", &"v".repeat(4096))).await;
    assert!(matches!(long, Err(StoreError::LabelTooLong { .. })));

    // Held by the lease alone, and gone after it.
    collect(&containerd).await;
    assert!(exists(&containerd, &digest).await);
    containerd.leases().delete(&lease).await.unwrap();
    containerd.leases().delete(&lease).await.unwrap();
    collect(&containerd).await;
    assert!(!exists(&containerd, &digest).await);
}

#[tokio::test]
async fn a_large_blob_goes_in_pieces() {
    let (_server, containerd) = Server::start().await;
    let lease = containerd.leases().create(Duration::from_secs(600)).await.unwrap();
    let bytes: Vec<u8> = (0..40_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let bytes = Bytes::from(bytes);
    let descriptor = Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(&bytes));
    // One piece that is larger than a message may be.
    containerd.content().write_bytes(Some(&lease), &descriptor, Labels::new(), bytes.clone()).await.unwrap();
    assert_eq!(containerd.content().read_all(descriptor.digest(), 1 << 30).await.unwrap(), bytes);
}

#[tokio::test]
async fn broken_bodies_leave_nothing() {
    let (_server, containerd) = Server::start().await;
    let lease = containerd.leases().create(Duration::from_secs(600)).await.unwrap();
    let content = containerd.content();
    let (descriptor, bytes) = blob("application/octet-stream", b"some bytes of a blob");
    let pieces = |items: Vec<Result<Bytes, &'static str>>| futures_util::stream::iter(items);

    let short =
        content.write(Some(&lease), &descriptor, Labels::new(), pieces(vec![Ok(bytes.slice(..7))])).await;
    assert!(matches!(short, Err(StoreError::Mismatch { .. })), "{short:?}");
    let long = content
        .write(Some(&lease), &descriptor, Labels::new(), pieces(vec![Ok(bytes.clone()), Ok(bytes.clone())]))
        .await;
    assert!(matches!(long, Err(StoreError::Mismatch { .. })), "{long:?}");
    let failed = content
        .write(Some(&lease), &descriptor, Labels::new(), pieces(vec![Ok(bytes.slice(..7)), Err("cut")]))
        .await;
    assert!(matches!(failed, Err(StoreError::Body { .. })), "{failed:?}");
    let other = Bytes::from_static(b"other bytes, same no.");
    let wrong =
        content.write(Some(&lease), &descriptor, Labels::new(), pieces(vec![Ok(other.slice(..20))])).await;
    assert!(matches!(wrong, Err(StoreError::Refused { .. })), "{wrong:?}");
    assert!(!exists(&containerd, descriptor.digest()).await);

    // A writer that was left alone in the middle does not spoil the next one.
    let OpenedWriter::Writer(mut writer) = content.open_writer(Some(&lease), &descriptor).await.unwrap()
    else {
        panic!("it is there")
    };
    writer.write(other.slice(..9)).await.unwrap();
    drop(writer);
    content.write_bytes(Some(&lease), &descriptor, Labels::new(), bytes.clone()).await.unwrap();
    assert_eq!(content.read_all(descriptor.digest(), 100).await.unwrap(), bytes);
    assert!(matches!(content.open_writer(Some(&lease), &descriptor).await.unwrap(), OpenedWriter::Present));
}

#[tokio::test]
async fn two_writers_of_one_blob_both_succeed() {
    let (_server, containerd) = Server::start().await;
    let lease = containerd.leases().create(Duration::from_secs(600)).await.unwrap();
    let content = containerd.with_lease(&lease).content();
    let (descriptor, bytes) = blob("application/octet-stream", b"some bytes of a blob");
    let write = |pause: u64| {
        let (content, descriptor, bytes) = (content.clone(), descriptor.clone(), bytes.clone());
        async move {
            let body = futures_util::stream::once(async move {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                Ok::<_, std::convert::Infallible>(bytes)
            });
            content.write(None, &descriptor, Labels::new(), body).await
        }
    };
    let (a, b) = tokio::join!(write(700), write(0));
    a.unwrap();
    b.unwrap();
    assert_eq!(content.read_all(descriptor.digest(), 100).await.unwrap(), bytes);
}

#[tokio::test]
async fn artifacts_live_as_long_as_their_image() {
    let (server, containerd) = Server::start().await;
    let leases = containerd.leases();
    let lease = leases.create(Duration::from_secs(600)).await.unwrap();
    let under = containerd.with_lease(&lease);

    let (config, config_bytes) = blob("application/vnd.oci.image.config.v1+json", b"{\"os\":\"linux\"}");
    let (layer, layer_bytes) = blob("application/vnd.oci.image.layer.v1.tar+gzip", b"the layer");
    under.content().write_bytes(None, &config, Labels::new(), config_bytes).await.unwrap();
    under.content().write_bytes(None, &layer, Labels::new(), layer_bytes).await.unwrap();
    let (manifest, manifest_bytes) =
        blob("application/vnd.oci.image.manifest.v1+json", b"{\"a manifest\":1}");
    let references = Labels::from([
        (labels::GC_REF_CONFIG.to_owned(), config.digest().to_string()),
        (labels::gc_ref_layer(0), layer.digest().to_string()),
    ]);
    under.content().write_bytes(None, &manifest, references, manifest_bytes).await.unwrap();
    let image = Image::new("example.com/image:1", manifest.clone(), Labels::new());
    under.images().create_or_update(&image).await.unwrap();

    let artifacts = under.artifacts();
    let mut indices = Vec::new();
    for (n, span_size) in [(0u8, 1u64 << 20), (1, 4 << 20)] {
        let bytes = Bytes::from(vec![n; 1000]);
        let ztoc = artifacts.store_ztoc(None, bytes, layer.digest(), Some(span_size)).await.unwrap();
        let mut builder = IndexBuilder::v1(manifest.clone());
        builder.add_ztoc(ZtocRecord {
            digest: ztoc.digest().clone(),
            size: ztoc.size(),
            layer_digest: layer.digest().clone(),
            layer_media_type: layer.media_type().to_string(),
            span_size,
            disable_xattrs: false,
        });
        let bytes = Bytes::from(builder.build().to_json());
        let target = IndexTarget {
            image_digest: manifest.digest().clone(),
            platform: "linux/amd64".to_owned(),
            created_at: format!("2024-01-0{}T00:00:00Z", n + 1).parse().unwrap(),
        };
        let index = artifacts.store_index(None, bytes, &target).await.unwrap();
        indices.push((index.digest().clone(), ztoc.digest().clone()));
    }
    leases.delete(&lease).await.unwrap();
    collect(&containerd).await;
    let artifacts = containerd.artifacts();
    let all = async || {
        let mut all = Vec::new();
        for (index, ztoc) in &indices {
            all.push((exists(&containerd, index).await, exists(&containerd, ztoc).await));
        }
        all
    };
    assert_eq!(all().await, [(true, true), (true, true)], "after the lease");

    // Both are recorded, newest first; zTOCs are found by layer and span size.
    let records = artifacts.list_indices().await.unwrap();
    assert_eq!(records.iter().map(|r| &r.digest).collect::<Vec<_>>(), [&indices[1].0, &indices[0].0]);
    assert_eq!(records[0].image_digest, *manifest.digest());
    assert_eq!((records[0].platform.as_str(), records[0].version.as_str()), ("linux/amd64", "v1"));
    assert_eq!(artifacts.list_ztocs().await.unwrap().len(), 2);
    let found = artifacts.find_ztoc(layer.digest(), 1 << 20).await.unwrap().unwrap();
    assert_eq!((found.digest, found.span_size), (indices[0].1.clone(), Some(1 << 20)));
    assert!(artifacts.find_ztoc(layer.digest(), 77).await.unwrap().is_none());
    assert!(artifacts.index(&indices[0].1).await.unwrap().is_none(), "a zTOC is no index");
    let bytes = artifacts.read_index(&indices[0].0).await.unwrap();
    assert_eq!(SociIndex::parse(&bytes).unwrap().ztocs().count(), 1);

    // Pruning takes the layers, not the artifacts.
    server.ctr(&["content", "prune", "references"]);
    collect(&containerd).await;
    assert!(!exists(&containerd, layer.digest()).await, "the layer was pruned");
    assert_eq!(all().await, [(true, true), (true, true)], "after pruning");

    // A plain pull of the same image rewrites the record's labels; another name holds as well.
    containerd
        .images()
        .create_or_update(&Image::new("example.com/other:1", manifest.clone(), Labels::new()))
        .await
        .unwrap();
    containerd.images().delete("example.com/image:1", true).await.unwrap();
    assert_eq!(all().await, [(true, true), (true, true)], "another name");

    artifacts.remove_index(&indices[1].0).await.unwrap();
    collect(&containerd).await;
    assert_eq!(all().await, [(true, true), (false, false)], "after index rm");
    assert!(artifacts.remove_index(&indices[1].0).await.unwrap_err().is_not_found());

    containerd.images().delete("example.com/other:1", true).await.unwrap();
    assert_eq!(all().await, [(false, false), (false, false)], "after the image");
    assert!(containerd.content().list(&[]).await.unwrap().is_empty(), "nothing stays");
}

/// One record that somebody else made, of a kind that we do not know, is no reason to show none.
#[tokio::test]
async fn an_odd_image_does_not_hide_the_others() {
    let (_server, containerd) = Server::start().await;
    let target = blob("application/octet-stream", b"image").0;
    containerd.images().create(&Image::new("good:1", target, Labels::new())).await.unwrap();
    let odd = containerd_client::services::v1::Image {
        name: "odd:1".to_owned(),
        target: Some(containerd_client::types::Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: format!("sha512:{}", "0".repeat(128)),
            size: 1,
            annotations: HashMap::new(),
        }),
        ..Default::default()
    };
    let request = CreateImageRequest { image: Some(odd), source_date_epoch: None };
    containerd.images_client().create(containerd.request(request)).await.unwrap();
    let listed = containerd.images().list(&[]).await.unwrap();
    let names: Vec<&str> = listed.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["good:1"]);
    assert!(matches!(containerd.images().get("odd:1").await, Err(StoreError::Malformed { .. })));
}
