//! Bad input gets a clear error, and nothing is lost.

use std::os::unix::net::UnixListener;
use std::process::Command;

use soci_tests::daemon::program;
use soci_tests::process::say;
use soci_tests::registry::{free_port, user};
use soci_tests::rootfs;
use soci_tests::stack::Stack;

#[test]
fn unknown_images() {
    let stack = Stack::start();
    let reference = stack.reference("nothing/here:1");
    for command in [
        ["image", "rpull", "--user", &user(), &reference].as_slice(),
        &["image", "pull", "--user", &user(), &reference],
        &["image", "push", "--user", &user(), &reference],
        &["image", "tag", &reference, "elsewhere:1"],
        &["create", &reference],
        &["push", "--user", &user(), &reference],
        &["run", "--rm", "--snapshotter", "soci", &reference, "nobody"],
    ] {
        let error = stack.soci(command).one_line_error();
        assert!(error.contains("nothing/here:1") || error.contains("not found"), "{command:?}: {error}");
    }
    let error = stack.soci(&["image", "rpull", "--user", &user(), "UPPER//:case"]).one_line_error();
    assert!(error.contains("UPPER"), "{error}");
    assert_eq!(stack.ctr(&["image", "ls", "-q"]).ok().out, "");
}

#[test]
fn an_unreachable_registry() {
    let stack = Stack::start();
    let host = format!("127.0.0.1:{}", free_port());
    let error = stack.soci(&["image", "rpull", &format!("{host}/small:1")]).one_line_error();
    assert!(error.contains(&host), "{error}");
}

/// The registry goes away after rpull: what was not read is EIO at the latest after the deadline, the rest works; nothing hangs.
#[test]
fn a_registry_that_goes_away_and_comes_back() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "up"]).ok().out, "up\n");
    stack.registry.stop();
    assert_eq!(stack.soci_run("soci", &[], &reference, &["echo", "up"]).ok().out, "up\n");
    stack.registry.restart();
    let said = stack.soci_run("soci", &[], &reference, &["sha256sum", rootfs::BIG.0]).ok();
    let wanted = soci_tests::image::digest(&rootfs::noise(1, rootfs::BIG.1)).replace("sha256:", "");
    assert!(said.out.starts_with(&wanted), "a failure must not be remembered: {}", said.out);
}

#[test]
fn a_socket_that_is_taken() {
    let mut stack = Stack::start();
    let second = stack.daemon.second();
    assert!(!second.success);
    let socket = stack.daemon.socket();
    assert!(second.err.contains(socket.to_str().unwrap()), "{}", second.err);
    assert!(stack.daemon.runs());
    stack.ctr(&["snapshot", "--snapshotter", "soci", "ls"]).ok();

    // Somebody else's socket, which answers: not ours to remove.
    let other = stack.folder().join("other.sock");
    let listener = UnixListener::bind(&other).unwrap();
    let mut command = Command::new(program("soci-snapshotter-grpc"));
    command.arg("--address").arg(&other).arg("--root").arg(stack.folder().join("other-root"));
    let said = say(&mut command);
    assert!(!said.success && said.err.contains("other.sock"), "{}", said.err);
    assert!(other.exists());
    drop(listener);
}

#[test]
fn a_config_names_all_its_mistakes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    std::fs::write(
        &config,
        "mount_timeout_sec = \"soon\"\nsome_key_of_tomorrow = 1\n[pull_modes.soci_v1]\nenable = \"yes\"\n[content_store]\ntype = 7\n",
    )
    .unwrap();
    let mut command = Command::new(program("soci-snapshotter-grpc"));
    command.arg("--config").arg(&config).arg("--root").arg(folder.path().join("root"));
    command.arg("--address").arg(folder.path().join("s.sock"));
    let said = say(&mut command);
    assert!(!said.success);
    for key in ["mount_timeout_sec", "pull_modes.soci_v1", "content_store"] {
        assert!(said.err.contains(key), "{key} is not named\n{}", said.err);
    }
    assert!(!said.err.contains("tomorrow"), "an unknown key is no mistake\n{}", said.err);
    assert!(!folder.path().join("s.sock").exists());

    let missing = folder.path().join("missing.toml");
    let said = say(Command::new(program("soci-snapshotter-grpc"))
        .arg("--config")
        .arg(&missing)
        .arg("--root")
        .arg(folder.path().join("root")));
    assert!(!said.success && said.err.contains("missing.toml"), "{}", said.err);
}

/// Without the daemon lazy pulls are refused with a word, everything else works.
#[test]
fn no_daemon() {
    let mut stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    stack.daemon.stop(rustix::process::Signal::TERM);
    let refused = stack.rpull(&[], &reference);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.starts_with("soci: ") && refused.err.lines().count() == 1, "{}", refused.err);
    assert!(refused.err.contains("soci-snapshotter-grpc.sock"), "who is missing? {}", refused.err);
    stack.soci(&["image", "pull", "--user", &user(), &reference]).ok();
    assert_eq!(stack.soci_run("overlayfs", &[], &reference, &["echo", "up"]).ok().out, "up\n");
}
