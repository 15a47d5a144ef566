//! The main job: pulled without being downloaded, then run.

use soci_tests::rootfs::{self, BIG, SECRET};
use soci_tests::stack::Stack;

const SPAN: u64 = 256 * 1024;

/// Two layers lazy, one too small for a ztoc: what rpull prints and what is mounted.
#[test]
fn rpull_prints_what_it_downloads_and_mounts_the_rest() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [soci_tests::image::Packing::Gzip; 3]);
    let reference = stack.push(&image, "varied:1");
    let smallest = image.layers[2].size;
    assert!(image.layers[..2].iter().all(|layer| layer.size > smallest));
    let limit = (smallest + 1).to_string();
    let made = stack
        .soci(&["create", "--min-layer-size", &limit, "--span-size", &SPAN.to_string(), &reference])
        .ok()
        .out;
    let lazy = |line: &&str| line.starts_with("layer sha256:") && line.contains(" -> ztoc sha256:");
    assert_eq!(made.lines().filter(lazy).count(), 2, "{made}");
    let skipped = format!("layer {} -> ztoc skipped: ", image.layers[2].digest);
    let reason = format!("size {smallest} is less than min-layer-size {limit}");
    let told = made.lines().filter(|line| line.starts_with(&skipped) && line.ends_with(&reason));
    assert_eq!(told.count(), 1, "{made}");
    stack.soci(&["push", "--user", &soci_tests::registry::user(), &reference]).ok();
    let index = stack.indices(&reference).remove(0);
    stack.forget();

    let before = stack.registry.downloaded();
    let pulled = stack.rpull(&["--soci-index-digest", &index], &reference).ok().out;
    let fetching = |digest: &str, kind: &str| format!("fetching {}... {kind}", &digest[..15]);
    let lines: Vec<&str> = pulled.lines().filter(|line| line.starts_with("fetching ")).collect();
    assert_eq!(lines[0], fetching(&image.manifest, "application/vnd.docker.distribution.manifest.v2+json"));
    assert!(lines[1].ends_with("... application/vnd.docker.container.image.v1+json"), "{lines:?}");
    assert_eq!(
        lines[2..],
        [fetching(&image.layers[2].digest, "application/vnd.docker.image.rootfs.diff.tar.gzip")]
    );

    let mounts = stack.mounts();
    assert_eq!(mounts.len(), 2, "{mounts:?}");
    let root = stack.daemon.root();
    for line in mounts {
        let rest = line
            .strip_prefix(&format!("soci on {}/snapshotter/snapshots/", root.display()))
            .unwrap_or_else(|| panic!("{line}"));
        let (id, kind) = rest.split_once('/').unwrap();
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{line}");
        assert_eq!(kind, "fs type fuse.rawBridge (rw,nodev,relatime,user_id=0,group_id=0,allow_other)");
    }
    let downloaded = stack.registry.downloaded() - before;
    assert!(downloaded < image.size() / 4, "rpull downloaded {downloaded} of {} bytes", image.size());
}

/// `soci run` and `ctr run`, the index found through the fallback tag; only what is read is downloaded.
#[test]
fn containers_read_what_they_need() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    let tag = stack.registry.get("small/tags/list");
    assert!(tag.contains(&image.manifest.replace(':', "-")), "the fallback tag: {tag}");

    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts().len(), 1);
    let said = stack.soci_run("soci", &[], &reference, &["echo", "up", "and", "running"]).ok();
    assert_eq!(said.out, "up and running\n");
    let blob = &image.layers[0].digest;
    let little = stack.registry.downloaded_of(blob);
    assert!(little > 0 && little < image.size() * 3 / 4, "{little} of {} bytes", image.size());

    let wanted = soci_tests::image::digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
    let said = stack.ctr_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
    assert_eq!(said.out.split_whitespace().next(), Some(wanted.as_str()));
    assert!(stack.registry.downloaded_of(blob) > little);
}

/// The exit status of the process is the exit status of `soci run`; `--rm` removes container and snapshot.
#[test]
fn run_ends_as_the_process_does() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let said = stack.soci_run(
        "soci",
        &["--env", "GREETING=hello"],
        &reference,
        &["sh", "-c", "echo $GREETING; exit 42"],
    );
    assert_eq!((said.code, said.out.as_str()), (Some(42), "hello\n"), "{}", said.err);
    assert_eq!(stack.ctr(&["container", "ls", "-q"]).ok().out, "");
    let left = stack.ctr(&["snapshot", "--snapshotter", "soci", "ls"]).ok().out;
    assert!(!left.contains("Active"), "{left}");
}

/// Permission bits and capabilities of files count although the layer is a FUSE mount.
#[test]
fn setuid_programs_and_file_capabilities_work() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let view = stack.view("soci", &image);
    let root = view.path().to_str().unwrap();
    let as_plain = |program: &str| {
        let mut command = std::process::Command::new("chroot");
        soci_tests::process::say(command.args(["--userspec=1000:1000", root, program, "/secret"]))
    };
    assert!(!as_plain("/bin/cat").success, "an ordinary program must not read the secret");
    assert_eq!(as_plain("/bin/cat-suid").ok().out, SECRET);
    assert_eq!(as_plain("/bin/cat-cap").ok().out, SECRET);

    // In a container too, where new privileges are allowed.
    let options = ["--user", "1000", "--allow-new-privs"];
    assert!(!stack.soci_run("soci", &options, &reference, &["cat", "/secret"]).success);
    assert_eq!(stack.soci_run("soci", &options, &reference, &["cat-suid", "/secret"]).ok().out, SECRET);
    assert_eq!(stack.soci_run("soci", &options, &reference, &["cat-cap", "/secret"]).ok().out, SECRET);
}

/// `run --user NAME:SECRET` as the walk-through has it: no such user can exist, so it is taken for the registry.
#[test]
fn registry_credentials_given_to_run_are_understood() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    let said =
        stack.soci_run("soci", &["--user", &soci_tests::registry::user()], &reference, &["id", "-u"]).ok();
    assert_eq!(said.out, "0\n");
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    assert!(!said.err.contains(soci_tests::registry::PASSWORD), "{}", said.err);
    let said = stack.soci_run("soci", &["--user", "1000:1000"], &reference, &["id", "-u"]).ok();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("1000\n", ""));
}
