//! The program as containerd meets it: a real socket, containerd's own client types, nothing mocked. Needs root, as the daemon does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use soci_proto::daemon::daemon_client::DaemonClient;
use soci_proto::daemon::{AddCredentialsRequest, StatusRequest};
use tonic::transport::Channel;
use tonic::{Code, Request};

struct Daemon {
    folder: PathBuf,
    child: Child,
}

impl Daemon {
    fn command(folder: &Path) -> Command {
        // Registries and containerd are unreachable in these tests, on purpose.
        std::fs::write(
            folder.join("config.toml"),
            "[content_store]\ncontainerd_address = \"/nonexistent/containerd.sock\"\n[http]\nMaxRetries = -1\n",
        )
        .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_soci-snapshotter-grpc"));
        command.arg("-address").arg(folder.join("s.sock")).arg("-root").arg(folder.join("root"));
        command.arg("-config").arg(folder.join("config.toml")).arg("-log-level=debug");
        command.env_remove("LISTEN_PID").env_remove("NOTIFY_SOCKET");
        command
    }

    fn start(folder: &Path) -> Daemon {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
        let child = Daemon::command(folder).stdout(log).stderr(Stdio::inherit()).spawn().unwrap();
        let daemon = Daemon { folder: folder.to_owned(), child };
        daemon.logged("soci-snapshotter-grpc successfully started");
        daemon
    }

    fn logged(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(start.elapsed() < Duration::from_secs(20), "no {text:?} in {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    async fn channel(&self) -> Channel {
        containerd_client::connect(self.folder.join("s.sock")).await.unwrap()
    }

    /// Ends it with everything that it keeps.
    fn stop(mut self) -> Duration {
        let start = Instant::now();
        assert!(self.end());
        start.elapsed()
    }

    fn end(&mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        let told = rustix::process::kill_process(pid, rustix::process::Signal::INT).is_ok();
        told && self.child.wait().unwrap().success()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.end();
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn prepare(key: &str, parent: &str, pairs: &[(&str, &str)]) -> PrepareSnapshotRequest {
    PrepareSnapshotRequest {
        snapshotter: "soci".into(),
        key: key.into(),
        parent: parent.into(),
        labels: labels(pairs),
    }
}

const D: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

#[tokio::test]
async fn every_verb_over_a_real_socket() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    assert_eq!(std::fs::metadata(folder.path().join("s.sock")).unwrap().mode() & 0o777, 0o600);
    let mut client = SnapshotsClient::new(daemon.channel().await);

    let mounts = client.prepare(prepare("default/1/a", "", &[])).await.unwrap().into_inner().mounts;
    assert_eq!(
        (mounts[0].r#type.as_str(), mounts[0].options.as_slice()),
        ("bind", ["rw".to_owned(), "rbind".to_owned()].as_slice())
    );
    std::fs::write(Path::new(&mounts[0].source).join("file"), vec![1; 5000]).unwrap();
    let commit = CommitSnapshotRequest {
        snapshotter: "soci".into(),
        name: "default/2/base".into(),
        key: "default/1/a".into(),
        labels: labels(&[("containerd.io/snapshot.ref", "sha256:aa")]),
    };
    client.commit(commit).await.unwrap();
    let usage = client
        .usage(UsageRequest { snapshotter: "soci".into(), key: "default/2/base".into() })
        .await
        .unwrap();
    assert!(usage.get_ref().inodes == 2 && usage.get_ref().size >= 5000, "{usage:?}");

    let again =
        client.prepare(prepare("default/3/c", "default/2/base", &[])).await.unwrap().into_inner().mounts;
    assert_eq!(again[0].r#type, "overlay");
    let request = MountsRequest { snapshotter: "soci".into(), key: "default/3/c".into() };
    assert_eq!(client.mounts(request).await.unwrap().into_inner().mounts, again);
    let view = ViewSnapshotRequest {
        snapshotter: "soci".into(),
        key: "default/4/v".into(),
        parent: "default/2/base".into(),
        labels: HashMap::new(),
    };
    assert_eq!(client.view(view).await.unwrap().into_inner().mounts[0].options, ["ro", "rbind"]);

    let list = ListSnapshotsRequest {
        snapshotter: "soci".into(),
        filters: vec![r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="""#.into()],
    };
    let listed = client.list(list).await.unwrap().into_inner().message().await.unwrap().unwrap().info;
    assert_eq!(
        (listed.len(), listed[0].name.as_str(), listed[0].kind()),
        (1, "default/2/base", Kind::Committed)
    );
    let bad = ListSnapshotsRequest { snapshotter: "soci".into(), filters: vec!["name==".into()] };
    assert_eq!(client.list(bad).await.unwrap_err().code(), Code::InvalidArgument);

    // As containerd sends it: committed, and year 1.
    let year1 = prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 };
    let update = UpdateSnapshotRequest {
        snapshotter: "soci".into(),
        info: Some(Info {
            name: "default/3/c".into(),
            kind: Kind::Committed.into(),
            created_at: Some(year1),
            updated_at: Some(year1),
            labels: labels(&[("containerd.io/snapshot/x", "y")]),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["labels.containerd.io/snapshot/x".into()] }),
    };
    let updated = client.update(update).await.unwrap().into_inner().info.unwrap();
    assert_eq!((updated.kind(), updated.labels["containerd.io/snapshot/x"].as_str()), (Kind::Active, "y"));
    assert!(updated.created_at.unwrap().seconds > 1_600_000_000);

    let remove = |key: &str| RemoveSnapshotRequest { snapshotter: "soci".into(), key: key.into() };
    let status = client.remove(remove("default/2/base")).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "cannot remove snapshot default/2/base with child")
    );
    assert_eq!(client.remove(remove("nothing")).await.unwrap_err().code(), Code::NotFound);
    let stat = |key: &str| StatSnapshotRequest { snapshotter: "soci".into(), key: key.into() };
    assert_eq!(client.stat(stat("nothing")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        client.prepare(prepare("default/3/c", "", &[])).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    for key in ["default/3/c", "default/4/v", "default/2/base"] {
        client.remove(remove(key)).await.unwrap();
    }
    client.cleanup(CleanupRequest { snapshotter: "soci".into() }).await.unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("root/snapshotter/snapshots")).unwrap().count(), 0);

    // One for each layer of the containers' chains.
    let log = daemon.log();
    let documented = r#""level":"debug","mount-point":""#;
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("layer is normal snapshot(overlayfs)")).collect();
    assert_eq!(lines.len(), 3, "{log}");
    assert!(
        lines.iter().all(|line| line.starts_with(r#"{"key":"default/"#) && line.contains(documented)),
        "{lines:?}"
    );
    // Not on this thread: the client has to hear that the connection ends.
    let took = tokio::task::spawn_blocking(move || daemon.stop()).await.unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(!folder.path().join("s.sock").exists());
}

#[tokio::test]
async fn a_registry_that_is_not_there_leaves_the_layer_to_containerd() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let mut client = SnapshotsClient::new(daemon.channel().await);
    let wanted = [
        ("containerd.io/snapshot.ref", "sha256:aa"),
        ("containerd.io/snapshot/cri.image-ref", "127.0.0.1:1/nobody/there:1"),
        ("containerd.io/snapshot/cri.layer-digest", D),
        ("containerd.io/snapshot/cri.manifest-digest", D),
    ];
    let start = Instant::now();
    let mut request = Request::new(prepare("default/1/x", "", &wanted));
    request.metadata_mut().insert("containerd-namespace", "default".parse().unwrap());
    let mounts = client.prepare(request).await.unwrap().into_inner().mounts;
    assert_eq!(mounts[0].r#type, "bind");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    daemon.logged(r#"{"error":"unable to fetch SOCI artifacts: "#);
    daemon.logged(r#""msg":"failed to prepare remote snapshot""#);
    daemon.logged("no valid SOCI index found; deferring to container runtime");
    for line in daemon.log().lines() {
        let keys: Vec<String> = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line)
            .unwrap()
            .keys()
            .cloned()
            .collect();
        assert!(keys.is_sorted(), "{line}");
    }
}

#[tokio::test]
async fn credentials_go_in_and_never_come_out() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let mut client = DaemonClient::new(daemon.channel().await);
    let credentials = AddCredentialsRequest {
        host: "127.0.0.1:1".into(),
        repository: "nobody/there".into(),
        username: "hunter".into(),
        secret: "hunter2".into(),
        plain_http: true,
        skip_verify: false,
        ..AddCredentialsRequest::default()
    };
    client.add_credentials(credentials.clone()).await.unwrap();
    let nowhere = AddCredentialsRequest { host: String::new(), ..credentials };
    assert_eq!(client.add_credentials(nowhere).await.unwrap_err().code(), Code::InvalidArgument);
    let status = client.status(StatusRequest::default()).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.layers.len()), (env!("CARGO_PKG_VERSION"), 0));
    assert!(!daemon.log().contains("hunter"), "{}", daemon.log());
}

#[tokio::test]
async fn snapshots_survive_a_kill_and_a_second_daemon_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(folder.path());
    let mut client = SnapshotsClient::new(daemon.channel().await);
    client.prepare(prepare("default/1/a", "", &[])).await.unwrap();

    let second = Daemon::command(folder.path()).output().unwrap();
    assert!(!second.status.success() && second.stdout.is_empty());
    assert!(
        said(&second).starts_with("soci-snapshotter-grpc: another process already serves on "),
        "{}",
        said(&second)
    );
    let elsewhere =
        Daemon::command(folder.path()).arg("--address").arg(folder.path().join("other.sock")).output();
    // The flag is given twice.
    assert!(!elsewhere.unwrap().status.success());

    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(folder.path().join("s.sock").exists());
    std::fs::remove_file(folder.path().join("log")).unwrap();
    let daemon = Daemon::start(folder.path());
    let mut client = SnapshotsClient::new(daemon.channel().await);
    let request = MountsRequest { snapshotter: "soci".into(), key: "default/1/a".into() };
    assert_eq!(client.mounts(request).await.unwrap().into_inner().mounts.len(), 1);
}

#[test]
fn mistakes_are_named_on_stderr() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Daemon::command(folder.path());
    std::fs::write(folder.path().join("config.toml"), "no_prometheus = 3\n[blob]\nmax_retries = \"x\"\n")
        .unwrap();
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let text = said(&output);
    assert!(
        text.contains("no_prometheus: expected true or false") && text.contains("blob.max_retries: "),
        "{text}"
    );

    let foreign = folder.path().join("root/snapshotter");
    std::fs::create_dir_all(&foreign).unwrap();
    std::fs::write(foreign.join("metadata.db"), "bolt").unwrap();
    std::fs::write(folder.path().join("config.toml"), "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_soci-snapshotter-grpc"));
    command.arg("--root").arg(folder.path().join("root")).arg("--address").arg(folder.path().join("s.sock"));
    let output = command.output().unwrap();
    assert!(said(&output).contains("was written by the Go soci-snapshotter"), "{}", said(&output));
    assert_eq!(std::fs::read(foreign.join("metadata.db")).unwrap(), b"bolt");
}

#[test]
fn config_default_and_dump() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_soci-snapshotter-grpc")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let default = run(&["config", "default"]);
    assert!(default.contains("[pull_modes.soci_v1]\nenable = true"), "{default}");
    let file = folder.path().join("c.toml");
    std::fs::write(&file, "[http]\nMaxRetries = 3\n").unwrap();
    assert!(run(&["-config", file.to_str().unwrap(), "config", "dump"]).contains("MaxRetries = 3"));
    assert!(run(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
}
