//! `soci image rpull` against a real containerd and registry, with a snapshotter that only notes what it is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "rpull/proxy.rs"]
mod proxy;
#[path = "rpull/stub.rs"]
mod stub;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use oci_spec::image::{Descriptor, Digest, MediaType};
use rustix::process::Signal;
use soci_index::fallback::{self, ReferrersIndex};
use soci_index::{IndexBuilder, ZtocRecord, digest_of};
use soci_store::labels::Labels;
use soci_store::{OpenedWriter, connect};
use soci_tests::containerd::Containerd;
use soci_tests::image::{Image, ImageBuilder, Packing};
use soci_tests::process::{Process, Said, say};
use soci_tests::registry::{PASSWORD, Registry, USER, user};

use crate::proxy::Proxy;
use crate::stub::{Behaviour, Stub};

/// Real parts in a folder of their own.
struct Parts {
    stub: Stub,
    containerd: Containerd,
    registry: Registry,
    image: Image,
    folder: tempfile::TempDir,
}

const REPOSITORY: &str = "team/image";

impl Parts {
    /// An image of three layers in the registry; nothing of it in containerd.
    fn start(behaviour: Behaviour) -> Parts {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("soci.sock");
        let stub = Stub::start(&socket, &folder.path().join("snapshots"), behaviour);
        let containerd = Containerd::start(
            &folder.path().join("containerd"),
            "test",
            &socket,
            &folder.path().join("root"),
        );
        let registry = Registry::start(&folder.path().join("registry"));
        let mut builder = ImageBuilder::new(&folder.path().join("image"));
        for n in 0..3 {
            let root = folder.path().join(format!("layer{n}"));
            fs::create_dir_all(&root).unwrap();
            fs::write(root.join(format!("file{n}")), format!("content of layer {n}")).unwrap();
            builder = builder.layer(&root, Packing::Gzip);
        }
        let image = builder.finish("local/image:1", serde_json::json!({}));
        let parts = Parts { stub, containerd, registry, image, folder };
        parts.containerd.ctr(&["image", "import", "--no-unpack", parts.image.archive.to_str().unwrap()]).ok();
        let reference = parts.reference();
        parts.soci(&["image", "push", "--user", &user(), &reference, &parts.image.name]).ok();
        parts.forget(&parts.image.name);
        parts
    }

    fn reference(&self) -> String {
        format!("{}/{REPOSITORY}:1", self.registry.host())
    }

    fn soci(&self, arguments: &[&str]) -> Said {
        say(&mut self.command(arguments))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
        command.env("CONTAINERD_ADDRESS", self.containerd.socket()).env("CONTAINERD_NAMESPACE", "test");
        command.env_remove("SOCI_SNAPSHOTTER_ADDRESS").args(arguments);
        command
    }

    fn rpull(&self, options: &[&str]) -> Said {
        let reference = self.reference();
        self.soci(&[&["image", "rpull", "--user", &user()], options, &[&reference]].concat())
    }

    /// Removes an image with all that hangs on it.
    fn forget(&self, name: &str) {
        self.soci(&["image", "rm", "--sync", name]).ok();
        assert_eq!(self.content(), Vec::<String>::new());
    }

    fn content(&self) -> Vec<String> {
        let listed = self.containerd.ctr(&["content", "ls", "-q"]).ok().out;
        listed.split_whitespace().map(str::to_owned).collect()
    }

    /// Makes an index with zTOCs (whose bytes nobody looks at here) for layers 0 and 2 and puts it into the registry.
    fn publish_index(&self, mark: u8) -> (Digest, Vec<Digest>) {
        let manifest_type = MediaType::from("application/vnd.docker.distribution.manifest.v2+json");
        let manifest: Digest = self.image.manifest.parse().unwrap();
        let mut builder =
            IndexBuilder::v1(Descriptor::new(manifest_type, self.image.manifest_size, manifest.clone()));
        let mut ztocs = Vec::new();
        for n in [0, 2] {
            let layer = &self.image.layers[n];
            let bytes = vec![mark, n as u8, 77];
            self.registry.put_blob(REPOSITORY, &bytes);
            ztocs.push(digest_of(&bytes));
            builder.add_ztoc(ZtocRecord {
                digest: digest_of(&bytes),
                size: bytes.len() as u64,
                layer_digest: layer.digest.parse().unwrap(),
                layer_media_type: layer.packing.media_type().to_owned(),
                span_size: 4 << 20,
                disable_xattrs: false,
            });
        }
        self.registry.put_blob(REPOSITORY, b"{}");
        let index = builder.build();
        let json = index.to_json();
        let digest = digest_of(&json);
        let oci = "application/vnd.oci.image.manifest.v1+json";
        self.registry.put_manifest(REPOSITORY, digest.as_ref(), oci, &json);
        let mut list = ReferrersIndex::default();
        list.put(&index.referrer_descriptor(&json));
        let oci = "application/vnd.oci.image.index.v1+json";
        self.registry.put_manifest(REPOSITORY, &fallback::tag(&manifest), oci, &list.to_json());
        (digest, ztocs)
    }

    /// What rpull prints for a piece of content.
    fn line(&self, digest: &str, media_type: &str) -> String {
        format!("fetching {}... {media_type}", &digest.chars().take(15).collect::<String>())
    }

    /// Lines for the manifest, the config and these layers; the config's digest is not known here.
    fn assert_fetched(&self, said: &Said, layers: &[usize]) {
        let mut lines: Vec<&str> = said.out.lines().collect();
        assert_eq!(
            lines.remove(0),
            self.line(&self.image.manifest, "application/vnd.docker.distribution.manifest.v2+json")
        );
        assert!(
            lines.remove(0).ends_with("... application/vnd.docker.container.image.v1+json"),
            "{}",
            said.out
        );
        let mut expected: Vec<String> = layers
            .iter()
            .map(|n| &self.image.layers[*n])
            .map(|layer| self.line(&layer.digest, layer.packing.media_type()))
            .collect();
        expected.sort();
        lines.sort_unstable();
        assert_eq!(lines, expected);
    }

    fn start_command(&self, name: &str, arguments: &[&str]) -> Process {
        Process::start(name, &mut self.command(arguments), &self.folder.path().join(name))
    }

    /// No lease, no image, no half download, no snapshot that is being made.
    fn assert_nothing_left(&self, after: &str) {
        assert_eq!(self.soci(&["image", "ls", "-q"]).ok().out, "", "{after}");
        assert_eq!(self.containerd.ctr(&["leases", "ls", "-q"]).ok().out, "", "{after}");
        assert_eq!(self.ingests(), "", "{after}");
        assert!(!self.stub.names().iter().any(|(_, kind)| kind == "active"), "{after}");
    }

    /// Names of downloads that have not ended.
    fn ingests(&self) -> String {
        let listed = self.containerd.ctr(&["content", "active"]).ok().out;
        listed.lines().filter(|line| line.contains("sha256:")).collect()
    }

    fn assert_pulled(&self) {
        assert_eq!(self.soci(&["image", "ls", "-q"]).ok().out, format!("{}\n", self.reference()));
        let leases = self.containerd.ctr(&["leases", "ls", "-q"]).ok().out;
        assert_eq!(leases, "", "the lease is gone");
        assert!(!self.stub.names().iter().any(|(_, kind)| kind == "active"), "{:?}", self.stub.names());
    }
}

fn is_in(content: &[String], digest: &Digest) -> bool {
    content.iter().any(|item| item == digest.as_ref())
}

#[test]
fn lazy_layers_stay_where_they_are() {
    let parts = Parts::start(Behaviour::Remote);
    let (index, ztocs) = parts.publish_index(1);
    let said = parts.rpull(&[]).ok();
    assert_eq!(said.err, "");
    parts.assert_fetched(&said, &[1]);
    parts.assert_pulled();

    // The credentials came first, and the lazy layers with all that a remote snapshotter is told.
    let events = parts.stub.events();
    let credentials = &events[0];
    assert_eq!(
        credentials.text,
        format!("credentials {} {REPOSITORY} {USER} {PASSWORD}", parts.registry.host())
    );
    let prepared: Vec<_> = events.iter().filter(|event| event.text.starts_with("prepare ")).collect();
    assert_eq!(prepared.len(), 3);
    for (n, event) in prepared.iter().enumerate() {
        let label = |key: &str| event.labels.get(&format!("containerd.io/snapshot{key}")).map(String::as_str);
        if n == 1 {
            assert_eq!(label(".ref"), None, "{:?}", event.labels);
            continue;
        }
        let layer = &parts.image.layers[n];
        let rest: Vec<&str> = parts.image.layers[n..].iter().map(|layer| layer.digest.as_str()).collect();
        assert!(label(".ref").unwrap().starts_with("sha256:"));
        assert_eq!(label("/cri.layer-digest"), Some(layer.digest.as_str()));
        assert_eq!(label("/cri.image-ref"), Some(parts.reference().as_str()));
        assert_eq!(label("/cri.manifest-digest"), Some(parts.image.manifest.as_str()));
        assert_eq!(label("/cri.image-layers"), Some(rest.join(",").as_str()));
        assert_eq!(label("/remote/soci.size"), Some(layer.size.to_string().as_str()));
        assert_eq!(label("/remote/soci.index.digest"), Some(index.as_ref()));
        let sizes: Vec<String> = parts.image.layers[n..].iter().map(|layer| layer.size.to_string()).collect();
        assert_eq!(label("/remote/image.layers.size"), Some(sizes.join(",").as_str()));
    }

    // The artifacts are containerd content, the lazy layers are not; all goes with the image.
    let content = parts.content();
    for digest in ztocs.iter().chain([&index]) {
        assert!(is_in(&content, digest), "{digest}");
    }
    let here: Vec<bool> = parts.image.layers.iter().map(|layer| content.contains(&layer.digest)).collect();
    assert_eq!(here, [false, true, false]);
    parts.containerd.ctr(&["content", "prune", "references"]).ok();
    assert!(ztocs.iter().chain([&index]).all(|digest| is_in(&parts.content(), digest)));
    parts.forget(&parts.reference());
    assert_eq!(parts.stub.names().len(), 0, "snapshots go with the image");
}

#[test]
fn a_second_pull_finds_everything() {
    let parts = Parts::start(Behaviour::Remote);
    let (index, _) = parts.publish_index(1);
    parts.rpull(&["--soci-index-digest", index.as_ref()]).ok();
    let before = parts.stub.events().len();
    let said = parts.rpull(&["--soci-index-digest", index.as_ref()]).ok();
    parts.assert_fetched(&said, &[]);
    let again: Vec<String> = parts.stub.events()[before..].iter().map(|event| event.text.clone()).collect();
    assert!(!again.iter().any(|text| text.starts_with("prepare")), "{again:?}");
    parts.assert_pulled();
}

#[test]
fn a_snapshotter_that_cannot_gets_the_layers() {
    let parts = Parts::start(Behaviour::Defer);
    parts.publish_index(1);
    let said = parts.rpull(&[]).ok();
    parts.assert_fetched(&said, &[0, 1, 2]);
    parts.assert_pulled();
    assert_eq!(parts.stub.files(), ["file0", "file1", "file2"]);
}

/// Who may read here need not be who may read there: what would be mounted could not be read.
#[test]
fn a_snapshotter_that_cannot_reach_the_registry_gets_the_layers() {
    let parts = Parts::start(Behaviour::Apart);
    parts.publish_index(1);
    let said = parts.rpull(&[]).ok();
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    assert!(said.err.contains("all layers are downloaded: no route to it"), "{}", said.err);
    parts.assert_fetched(&said, &[0, 1, 2]);
    parts.assert_pulled();
    assert_eq!(parts.stub.files(), ["file0", "file1", "file2"]);
    assert!(parts.stub.events().iter().all(|event| event.labels.is_empty()), "nothing is asked for lazily");
}

/// The caller's docker configuration is not the daemon's.
#[test]
fn credentials_that_were_found_are_handed_over() {
    let parts = Parts::start(Behaviour::Remote);
    parts.publish_index(1);
    let docker = parts.folder.path().join("docker");
    fs::create_dir(&docker).unwrap();
    let host = parts.registry.host();
    let login = serde_json::json!({ "auths": { host: { "username": USER, "password": PASSWORD } } });
    fs::write(docker.join("config.json"), login.to_string()).unwrap();
    let mut command = parts.command(&["image", "rpull", &parts.reference()]);
    let said = say(command.env("DOCKER_CONFIG", &docker)).ok();
    parts.assert_fetched(&said, &[1]);
    let expected = format!("found credentials {host} {REPOSITORY} {USER} {PASSWORD}");
    assert_eq!(parts.stub.events()[0].text, expected);
}

/// A pull takes as long as its longest chain of round trips: zTOCs wait for the index, and for nothing else.
#[test]
fn ztocs_do_not_wait_for_the_config() {
    let parts = Parts::start(Behaviour::Remote);
    let (_, ztocs) = parts.publish_index(1);
    let ztocs: Vec<String> = ztocs.iter().map(Digest::to_string).collect();
    // Before the zTOCs no blob is asked for but the config.
    let is_config = |path: &str, ztocs: &[String]| {
        path.contains("/blobs/") && !ztocs.iter().any(|ztoc| path.contains(ztoc.as_str()))
    };
    let proxy = Proxy::start(parts.registry.host(), is_config, ztocs.clone());
    let reference = format!("{}/{REPOSITORY}:1", proxy.host());
    let said = parts.soci(&["image", "rpull", "--user", &user(), &reference]).ok();
    assert_eq!(said.err, "");
    let passed = proxy.passed();
    let place = |text: &str| passed.iter().position(|path| path.contains("/blobs/") && path.contains(text));
    let config = passed.iter().position(|path| is_config(path, &ztocs)).unwrap();
    assert!(ztocs.iter().all(|ztoc| place(ztoc).unwrap() < config), "{passed:?}");
}

#[test]
fn without_a_usable_index_all_is_downloaded() {
    let none = digest_of(b"nothing").to_string();
    for (asked, published) in [(None, false), (Some(none.as_str()), true), (Some("sha256:short"), true)] {
        let parts = Parts::start(Behaviour::Defer);
        if published {
            parts.publish_index(1);
        }
        let options: Vec<&str> = asked.iter().flat_map(|digest| ["--soci-index-digest", digest]).collect();
        let said = parts.rpull(&options).ok();
        assert_eq!(said.err.lines().count(), 1, "{}", said.err);
        assert!(said.err.starts_with("soci: no SOCI index"), "{}", said.err);
        assert!(!said.err.contains(PASSWORD));
        parts.assert_fetched(&said, &[0, 1, 2]);
        parts.assert_pulled();
        assert_eq!(parts.stub.files(), ["file0", "file1", "file2"]);
        // The snapshotter is asked once, and says in its log what it found; but not for what is no digest.
        let events = parts.stub.events();
        let prepared = events.iter().filter(|event| event.text.starts_with("prepare "));
        for (n, event) in prepared.enumerate() {
            let label = |key: &str| event.labels.get(key).map(String::as_str);
            let is_asked = n == 0 && asked != Some("sha256:short");
            assert_eq!(label("containerd.io/snapshot.ref").is_some(), is_asked);
            let index = label("containerd.io/snapshot/remote/soci.index.digest");
            assert_eq!(index, asked.filter(|_| is_asked));
        }
    }
}

#[test]
fn a_lost_ztoc_costs_only_its_layer() {
    let parts = Parts::start(Behaviour::Remote);
    let (_, ztocs) = parts.publish_index(1);
    let blob = |digest: &Digest| {
        let hex = digest.digest();
        let data = parts.folder.path().join("registry/data/docker/registry/v2");
        let link = data.join(format!("repositories/{REPOSITORY}/_layers/sha256/{hex}"));
        assert!(Path::new(&link).exists());
        fs::remove_dir_all(link).unwrap();
        fs::remove_dir_all(
            data.join(format!("blobs/sha256/{}/{hex}", &hex.chars().take(2).collect::<String>())),
        )
        .unwrap();
    };
    blob(&ztocs[1]);
    // The registry remembers blobs; it forgets them over a restart.
    let mut parts = parts;
    parts.registry.stop();
    parts.registry.restart();
    let said = parts.rpull(&[]).ok();
    assert!(said.err.starts_with("soci: the zTOC of layer "), "{}", said.err);
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    parts.assert_fetched(&said, &[1, 2]);
    parts.assert_pulled();
}

#[test]
fn failures_are_one_line_and_leave_nothing() {
    let mut parts = Parts::start(Behaviour::Refuse);
    parts.publish_index(1);
    let error = parts.rpull(&[]).one_line_error();
    assert!(error.contains("out of order"), "{error}");
    let reference = parts.reference();
    let error = parts.soci(&["image", "rpull", "--user", "nobody:wrong-secret", &reference]).one_line_error();
    assert!(error.contains("not authorized") && !error.contains("wrong-secret"), "{error}");
    let unknown = format!("{}/{REPOSITORY}:none", parts.registry.host());
    let error = parts.soci(&["image", "rpull", "--user", &user(), &unknown]).one_line_error();
    assert!(error.contains("not found"), "{error}");
    parts.registry.stop();
    let error = parts.rpull(&[]).one_line_error();
    assert!(error.contains("cannot reach"), "{error}");
    assert_eq!(parts.soci(&["image", "ls", "-q"]).ok().out, "");
    assert_eq!(parts.containerd.ctr(&["leases", "ls", "-q"]).ok().out, "");
    assert_eq!(parts.stub.names().len(), 0);
}

/// Ctrl-C and `--timeout`, with a download in the middle.
#[test]
fn a_pull_that_ends_early_leaves_nothing() {
    let parts = Parts::start(Behaviour::Defer);
    let layer = parts.image.layers[1].digest.clone();
    // Nobody asks for that: the layer does not come.
    let never = vec![layer, "never".to_owned()];
    let proxy = Proxy::start(parts.registry.host(), |path, awaited| path.contains(&awaited[0]), never);
    let reference = format!("{}/{REPOSITORY}:1", proxy.host());
    let user = user();
    for command in ["pull", "rpull"] {
        let line = ["image", command, "--snapshotter", "soci", "--user", &user, &reference];
        for end in [Some(Signal::INT), None] {
            let after = format!("{command} and {end:?}");
            let limit: &[&str] = if end.is_none() { &["--timeout", "8s"] } else { &[] };
            let mut process = parts.start_command("soci", &[limit, &line].concat());
            process.wait_until("the layer is on its way", Duration::from_secs(60), || {
                parts.ingests().contains("soci-sha256:")
            });
            if let Some(signal) = end {
                process.signal(signal);
            }
            let status = process.wait(Duration::from_secs(60)).expect("it ends");
            assert_eq!(status.code(), Some(1), "{after}: {}", process.output());
            let said = if end.is_some() { "interrupted" } else { "did not end within" };
            assert!(process.output().contains(said), "{after}: {}", process.output());
            parts.assert_nothing_left(&after);
        }
    }
}

/// While another writes the same blob, it is not ours to drop.
#[test]
fn an_interrupted_pull_leaves_the_download_of_another() {
    let parts = Parts::start(Behaviour::Defer);
    let layer = &parts.image.layers[1];
    let digest: Digest = layer.digest.parse().unwrap();
    let bytes = parts.registry.blob(REPOSITORY, &layer.digest);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (writer, containerd, lease) = runtime.block_on(async {
        let channel = connect(&parts.containerd.socket(), Duration::from_secs(10)).unwrap();
        let containerd = soci_store::Containerd::new(channel, "test".parse().unwrap());
        let lease = containerd.leases().create(Duration::from_secs(3600)).await.unwrap();
        let blob = Descriptor::new(MediaType::ImageLayerGzip, bytes.len() as u64, digest.clone());
        let OpenedWriter::Writer(mut writer) =
            containerd.content().open_writer(Some(&lease), &blob).await.unwrap()
        else {
            panic!("it is there")
        };
        writer.write(bytes[..7].to_vec().into()).await.unwrap();
        (writer, containerd, lease)
    });
    let user = user();
    let line = ["image", "pull", "--no-unpack", "--debug", "--user", &user, &parts.reference()];
    let mut pull = parts.start_command("soci", &line);
    pull.wait_until("the others are here", Duration::from_secs(60), || {
        let here = parts.content();
        [0, 2].iter().all(|n| here.contains(&parts.image.layers[*n].digest))
            && pull_waits_for(&parts.folder.path().join("soci"), &layer.digest)
    });
    pull.signal(Signal::INT);
    assert_eq!(pull.wait(Duration::from_secs(30)).expect("it ends").code(), Some(1));
    runtime.block_on(async {
        let mut writer = writer;
        writer.write(bytes[7..].to_vec().into()).await.unwrap();
        writer.commit(bytes.len() as u64, &digest, Labels::new()).await.unwrap();
        assert!(containerd.content().info(&digest).await.unwrap().is_some());
        containerd.leases().delete(&lease).await.unwrap();
    });
}

/// Whether it has been told at least twice that the blob is being written, by its log.
fn pull_waits_for(log: &Path, digest: &str) -> bool {
    let log = fs::read_to_string(log).unwrap();
    log.lines().filter(|line| line.contains("write content") && line.contains(digest)).count() > 1
}
