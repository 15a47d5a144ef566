//! `soci run`, `create`, `index`, `ztoc`, `push` and `rebuild-db` against a real containerd, runc and registry, on overlayfs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use soci_tests::containerd::Containerd;
use soci_tests::image::{Image, ImageBuilder, Packing};
use soci_tests::process::{Process, Said, say};
use soci_tests::registry::{Registry, user};

const NAME: &str = "docker.io/local/box:1";

/// Real parts in a folder of their own.
struct Parts {
    containerd: Containerd,
    image: Image,
    namespace: String,
    folder: tempfile::TempDir,
}

impl Parts {
    /// An image of busybox and a layer with a file of 3 MB, in containerd but not unpacked.
    fn start() -> Parts {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("soci.sock");
        // runc's state is by namespace and ID for the whole machine, whichever containerd it is.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("run-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let containerd =
            Containerd::start(&folder.path().join("containerd"), &namespace, &nowhere, folder.path());
        let base = folder.path().join("base");
        for directory in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(base.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", base.join("bin/busybox")).expect("package busybox-static is installed");
        for name in ["cat", "echo", "id", "sh", "sleep"] {
            symlink("busybox", base.join("bin").join(name)).unwrap();
        }
        fs::write(base.join("etc/passwd"), "root:x:0:0::/:/bin/sh\napp:x:100:101::/:/bin/sh\n").unwrap();
        fs::write(base.join("etc/group"), "root:x:0:\napp:x:101:\nextra:x:105:app\n").unwrap();
        let data = folder.path().join("data");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("big"), big()).unwrap();
        let image = ImageBuilder::new(&folder.path().join("image"))
            .layer(&base, Packing::Gzip)
            .layer(&data, Packing::Gzip)
            .finish(NAME, json!({"Env": ["PATH=/bin"], "Entrypoint": ["/bin/echo"], "Cmd": ["hello"]}));
        let parts = Parts { containerd, image, namespace, folder };
        parts.containerd.ctr(&["image", "import", "--no-unpack", parts.image.archive.to_str().unwrap()]).ok();
        parts
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
        command
            .env("CONTAINERD_ADDRESS", self.containerd.socket())
            .env("CONTAINERD_NAMESPACE", &self.namespace);
        command.env_remove("CONTAINERD_SNAPSHOTTER").args(arguments).stdin(Stdio::null());
        command
    }

    fn soci(&self, arguments: &[&str]) -> Said {
        say(&mut self.command(arguments))
    }

    fn run(&self, arguments: &[&str]) -> Said {
        let fifos = self.folder.path().join("fifos");
        self.soci(&[&["run", "--rm", "--fifo-dir", fifos.to_str().unwrap()], arguments].concat())
    }

    /// No container, no task, no snapshot but the image's, no fifo.
    fn assert_nothing_left(&self) {
        assert_eq!(self.containerd.ctr(&["container", "ls", "-q"]).ok().out.trim(), "");
        let snapshots = self.containerd.ctr(&["snapshot", "ls"]).ok().out;
        assert!(!snapshots.contains("Active"), "{snapshots}");
        let fifos = self.folder.path().join("fifos");
        assert!(!fifos.exists() || fs::read_dir(fifos).unwrap().next().is_none());
        let leases = self.containerd.ctr(&["lease", "ls", "-q"]).out;
        assert!(!leases.contains('-'), "{leases}");
    }

    fn lines(&self, arguments: &[&str]) -> Vec<String> {
        self.soci(arguments).ok().out.lines().map(str::to_owned).collect()
    }
}

/// 3 MB that gzip cannot do much with, the same in every run.
fn big() -> Vec<u8> {
    let mut state = 1_u64;
    (0..3_000_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn run_is_ctrs() {
    let parts = Parts::start();
    // Unpacked on the way; the short name will do.
    assert_eq!(parts.run(&["local/box:1", "a"]).ok().out, "hello\n");
    let said = parts.run(&[NAME, "a", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(7), "out\n", "err\n"));
    assert_eq!(
        parts.run(&["--user", "app", NAME, "a", "id"]).ok().out,
        "uid=100(app) gid=101(app) groups=101(app),105(extra)\n"
    );
    assert_eq!(parts.run(&["--user", "5:6", NAME, "a", "id", "-g"]).ok().out, "6\n");
    let said = parts.run(&["--user", "alice:s3cret", NAME, "a", "id", "-u"]).ok();
    assert_eq!(said.out, "0\n");
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    assert!(!said.err.contains("s3cret") && said.err.contains("credentials"), "{}", said.err);
    let error = parts.run(&["--user", "nobody", NAME, "a", "id"]).one_line_error();
    assert!(error.contains("no users found"), "{error}");
    let error = parts.run(&["docker.io/local/none:1", "a"]).one_line_error();
    assert!(error.contains("not found"), "{error}");
    let error = parts.run(&[NAME, "a", "/none"]).one_line_error();
    assert!(error.contains("/none"), "{error}");
    parts.assert_nothing_left();
}

#[test]
fn streams_are_copied_whole() {
    let parts = Parts::start();
    let mut child = parts
        .command(&["run", "--rm", NAME, "pipe", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&big()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == big(), "{} bytes came back", output.stdout.len());
    parts.assert_nothing_left();
}

#[test]
fn signals_reach_the_process_and_a_third_one_kills() {
    let parts = Parts::start();
    let log = parts.folder.path().join("log");
    let handler = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut run = Process::start(
        "soci run",
        &mut parts.command(&["run", "--rm", NAME, "trap", "sh", "-c", handler]),
        &log,
    );
    run.wait_until("it runs", Duration::from_secs(30), || {
        fs::read_to_string(&log).unwrap().contains("ready")
    });
    run.signal(Signal::TERM);
    assert_eq!(run.wait(Duration::from_secs(20)).unwrap().code(), Some(9));
    assert!(fs::read_to_string(&log).unwrap().ends_with("got\n"));

    let log = parts.folder.path().join("deaf");
    let deaf = "trap '' INT; echo ready; while :; do sleep 0.1; done";
    let mut run = Process::start(
        "soci run",
        &mut parts.command(&["run", "--rm", NAME, "deaf", "sh", "-c", deaf]),
        &log,
    );
    run.wait_until("it runs", Duration::from_secs(30), || {
        fs::read_to_string(&log).unwrap().contains("ready")
    });
    for _ in 0..3 {
        run.signal(Signal::INT);
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(
        run.wait(Duration::from_secs(20)).unwrap().code(),
        Some(137),
        "{}",
        fs::read_to_string(&log).unwrap()
    );
    parts.assert_nothing_left();
}

#[test]
fn a_container_outlives_containerd_and_detached_runs_their_starter() {
    let mut parts = Parts::start();
    let log = parts.folder.path().join("log");
    let script = "echo ready; sleep 4; echo survived; exit 4";
    // The process runs, and containerd has not said so yet.
    let runc = parts.folder.path().join("slow-runc");
    fs::write(&runc, "#!/bin/sh\nrunc \"$@\" || exit\ncase \" $* \" in *' start '*) sleep 2 ;; esac\n")
        .unwrap();
    fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).unwrap();
    let runc = runc.to_str().unwrap();
    let mut run = Process::start(
        "soci run",
        &mut parts.command(&["run", "--rm", "--runc-binary", runc, NAME, "long", "sh", "-c", script]),
        &log,
    );
    run.wait_until("it runs", Duration::from_secs(30), || {
        fs::read_to_string(&log).unwrap().contains("ready")
    });
    parts.containerd.restart(Signal::TERM);
    let code = run.wait(Duration::from_secs(30)).unwrap().code();
    let said = fs::read_to_string(&log).unwrap();
    assert!(code == Some(4) && said.contains("survived"), "{code:?}: {said}");

    let pid_file = parts.folder.path().join("pid");
    parts
        .soci(&[
            "run",
            "--detach",
            "--null-io",
            "--pid-file",
            pid_file.to_str().unwrap(),
            NAME,
            "far",
            "sleep",
            "60",
        ])
        .ok();
    let pid = fs::read_to_string(pid_file).unwrap();
    assert!(Path::new("/proc").join(&pid).exists());
    parts.containerd.ctr(&["task", "kill", "-s", "KILL", "far"]).ok();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Path::new("/proc").join(&pid).exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    parts.containerd.end_containers();
}

#[test]
fn an_index_is_made_shown_pushed_recovered_and_removed() {
    let parts = Parts::start();
    let (base, data) = (&parts.image.layers[0].digest, &parts.image.layers[1].digest);
    let error = parts.soci(&["create", NAME]).one_line_error();
    assert!(error.contains("no ztocs created, all layers either skipped or produced errors"), "{error}");
    let size = parts.image.layers[1].size.to_string();
    let lines = parts.lines(&["create", "--span-size", "1048576", "--min-layer-size", &size, NAME]);
    assert!(lines[0].starts_with(&format!("layer {base} -> ztoc skipped: ")), "{lines:?}");
    assert!(lines[0].ends_with(&format!("is less than min-layer-size {size}")), "{lines:?}");
    let ztoc = lines[1].strip_prefix(&format!("layer {data} -> ztoc ")).unwrap().to_owned();
    let again = parts.lines(&["create", "--span-size", "1048576", "--min-layer-size", &size, NAME]);
    assert_eq!(again[1], format!("layer {data} -> ztoc {ztoc} (already exists)"));

    let index = parts.lines(&["index", "ls", "-q"]);
    assert_eq!(index.len(), 1);
    let table = parts.lines(&["index", "list", "--ref", NAME]);
    assert!(
        table[0].starts_with("DIGEST  ") && table[0].ends_with("MANIFEST VERSION    CREATED"),
        "{table:?}"
    );
    assert!(
        table[1].contains(NAME) && table[1].contains("linux/amd64") && table[1].ends_with(" ago"),
        "{table:?}"
    );
    let info: Value = serde_json::from_str(&parts.soci(&["index", "info", &index[0]]).ok().out).unwrap();
    assert_eq!(info["subject"]["digest"], json!(parts.image.manifest));
    assert_eq!(info["layers"][0]["digest"], json!(ztoc));
    let info: Value = serde_json::from_str(&parts.soci(&["ztoc", "info", &ztoc]).ok().out).unwrap();
    assert_eq!(info["num_files"].as_u64().unwrap() as usize, info["files"].as_array().unwrap().len());
    assert!(info["num_spans"].as_u64().unwrap() > 1);
    assert!(parts.soci(&["ztoc", "info", &index[0]]).one_line_error().contains("soci index info"));
    assert!(parts.soci(&["index", "info", &ztoc]).one_line_error().contains("soci ztoc info"));

    let file = parts.folder.path().join("got");
    parts.soci(&["ztoc", "get-file", "-o", file.to_str().unwrap(), &ztoc, "big"]).ok();
    assert!(fs::read(file).unwrap() == big());
    let error = parts.soci(&["ztoc", "get-file", &ztoc, "none"]).one_line_error();
    assert_eq!(error, "soci: file none does not exist in metadata");

    let registry = Registry::start(&parts.folder.path().join("registry"));
    let remote = format!("{}/team/box:1", registry.host());
    parts.soci(&["image", "tag", NAME, &remote]).ok();
    parts.soci(&["image", "push", "--user", &user(), &remote]).ok();
    let lines = parts.lines(&["push", "--user", &user(), &remote]);
    assert_eq!(lines[0], "checking if a soci index already exists in remote repository...");
    assert_eq!(*lines.last().unwrap(), format!("successfully pushed artifact with digest: {}", index[0]));
    let lines = parts.lines(&["push", "--user", &user(), "--existing-index", "skip", &remote]);
    assert!(lines[1].contains("skipping pushing artifacts for image manifest"), "{lines:?}");
    let quiet = parts.lines(&["push", "--user", &user(), "--quiet", &remote]);
    assert_eq!(quiet, index);

    // The records go, the content stays; the labels that hold it are not the records.
    for (digest, label) in
        [(&index[0], "com.amazon.soci.index.image-digest="), (&ztoc, "com.amazon.soci.ztoc.layer-digest=")]
    {
        parts.containerd.ctr(&["content", "label", digest, label]).ok();
    }
    assert_eq!(parts.lines(&["index", "ls", "-q"]), Vec::<String>::new());
    parts.soci(&["rebuild-db"]).ok();
    assert_eq!(parts.lines(&["index", "ls", "-q"]), index);
    assert_eq!(parts.lines(&["ztoc", "ls", "-q"]), std::slice::from_ref(&ztoc));

    parts.soci(&["index", "rm", &index[0]]).ok();
    assert_eq!(parts.lines(&["index", "ls", "-q"]), Vec::<String>::new());
    let error = parts.soci(&["index", "rm", &index[0]]).one_line_error();
    assert_eq!(error, format!("soci: the index of the digest {} doesn't exist", index[0]));
}

/// `--timeout` ends a run in order.
#[test]
fn a_run_that_takes_too_long_leaves_nothing() {
    let parts = Parts::start();
    parts.run(&[NAME, "warm", "echo"]).ok();
    let fifos = parts.folder.path().join("fifos");
    let line = [
        "--timeout",
        "10s",
        "run",
        "--rm",
        "--fifo-dir",
        fifos.to_str().unwrap(),
        NAME,
        "slow",
        "sleep",
        "600",
    ];
    let error = parts.soci(&line).one_line_error();
    assert!(error.contains("did not end within 10s"), "{error}");
    parts.assert_nothing_left();
}

/// What holds a live mount's snapshot is not the second one's to end.
#[test]
fn a_second_mount_on_one_target_leaves_the_first() {
    let parts = Parts::start();
    let target = parts.folder.path().join("target");
    fs::create_dir(&target).unwrap();
    let target = target.to_str().unwrap();
    parts.soci(&["image", "mount", NAME, target]).ok();
    let error = parts.soci(&["image", "mount", NAME, target]).one_line_error();
    assert!(error.contains("already exists"), "{error}");
    let leases = || parts.containerd.ctr(&["leases", "ls", "-q"]).ok().out;
    let snapshots = || parts.containerd.ctr(&["snapshot", "ls"]).ok().out;
    assert!(leases().lines().any(|lease| lease == target), "{}", leases());
    parts.containerd.ctr(&["content", "prune", "references"]).ok();
    assert!(snapshots().contains(target), "{}", snapshots());
    parts.soci(&["image", "unmount", "--rm", target]).ok();
    assert!(!leases().contains(target) && !snapshots().contains(target));
    // One that fails for another reason takes its own lease back.
    assert!(!parts.soci(&["image", "mount", "--snapshotter", "nosuch", NAME, target]).success);
    assert!(!leases().contains(target), "{}", leases());
}

/// A zTOC may claim that its layer has any size.
#[test]
fn a_ztoc_of_another_size_is_refused() {
    let parts = Parts::start();
    parts.soci(&["create", "--min-layer-size", "0", NAME]).ok();
    let layer: oci_spec::image::Digest = parts.image.layers[1].digest.parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let forged = runtime.block_on(async {
        let channel = soci_store::connect(&parts.containerd.socket(), Duration::from_secs(10)).unwrap();
        let containerd = soci_store::Containerd::new(channel, parts.namespace.parse().unwrap());
        let artifacts = containerd.artifacts();
        let real = artifacts.find_ztoc(&layer, 4 << 20).await.unwrap().unwrap();
        let bytes = containerd.content().read_all(&real.digest, 1 << 20).await.unwrap();
        // Its slot in the table is known by its value.
        let size = parts.image.layers[1].size.to_le_bytes();
        let mut forged = bytes.to_vec();
        let places: Vec<usize> = (0..forged.len() - 8).filter(|at| forged[*at..at + 8] == size).collect();
        assert_eq!(places.len(), 1, "{places:?}");
        forged[places[0]..places[0] + 8].copy_from_slice(&(i64::MAX - 4096).to_le_bytes());
        let lease = containerd.leases().create(Duration::from_secs(3600)).await.unwrap();
        artifacts.store_ztoc(Some(&lease), forged.into(), &layer, Some(1)).await.unwrap().digest().to_string()
    });
    let error = parts.soci(&["ztoc", "get-file", &forged, "big"]).one_line_error();
    assert!(error.contains("of another blob"), "{error}");
}

/// What is not the command's failure is said all the same.
#[test]
fn an_odd_image_is_told_of_and_left_out() {
    let parts = Parts::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = soci_store::connect(&parts.containerd.socket(), Duration::from_secs(10)).unwrap();
        let containerd = soci_store::Containerd::new(channel, parts.namespace.parse().unwrap());
        let target = containerd_client::types::Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: format!("sha512:{}", "0".repeat(128)),
            size: 1,
            ..Default::default()
        };
        let image = containerd_client::services::v1::Image {
            name: "odd:1".to_owned(),
            target: Some(target),
            ..Default::default()
        };
        let request = containerd_client::services::v1::CreateImageRequest {
            image: Some(image),
            source_date_epoch: None,
        };
        containerd.images_client().create(containerd.request(request)).await.unwrap();
    });
    let said = parts.soci(&["image", "ls", "-q"]).ok();
    assert_eq!(said.out, format!("{NAME}\n"));
    assert!(
        said.err.starts_with("soci: an image is left out: ") && said.err.contains("odd:1"),
        "{}",
        said.err
    );
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
}
