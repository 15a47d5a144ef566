//! A private registry: who may pull, and how the daemon learns it.

use std::fs;

use serde_json::json;
use soci_tests::process::{Said, say};
use soci_tests::registry::{PASSWORD, USER, user};
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::Stack;

#[test]
fn wrong_or_missing_credentials_are_one_clear_line() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    for command in [
        vec!["image", "rpull", "--user", "testuser:wrong-secret", &reference],
        vec!["image", "rpull", &reference],
        vec!["image", "pull", "--user", "testuser:wrong-secret", &reference],
    ] {
        let error = stack.soci(&command).one_line_error();
        assert!(!error.contains("wrong-secret"), "{error}");
        assert!(error.contains(stack.registry.host()), "which registry? {error}");
        assert!(error.contains("not authorized"), "{error}");
    }
    assert!(stack.content().is_empty(), "nothing may be left of a refused pull");
    assert!(stack.mounts().is_empty());
}

/// Lazy reads come after rpull has ended; the daemon has to have the credentials by itself, and keep them to itself.
#[test]
fn the_daemon_reads_with_the_credentials_of_rpull() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let (reference, _) = stack.publish(&image, "small:1", 64 * 1024);
    stack.rpull(&[], &reference).ok();
    assert_eq!(stack.mounts().len(), 1);
    let blob = &image.layers[0].digest;
    let before = stack.registry.downloaded_of(blob);
    assert!(before < image.size() / 2, "pulled whole: {before} bytes");
    stack.soci_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
    assert!(stack.registry.downloaded_of(blob) > before);

    assert!(!stack.daemon.log().contains(PASSWORD));
    let labels = stack.ctr(&["snapshot", "--snapshotter", "soci", "ls"]).ok().out;
    assert!(!labels.contains(PASSWORD));
    let found = soci_tests::process::say(
        std::process::Command::new("grep")
            .args(["-rlF", PASSWORD])
            .arg(stack.daemon.root())
            .arg(stack.folder().join("containerd")),
    );
    assert_eq!(found.out, "", "the password is on disk");
    assert!(!user().is_empty());
}

/// The image of one repository needs no credentials of another: an unknown user reads nothing that was not fetched before.
#[test]
fn push_needs_credentials() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    let reference = stack.push(&image, "small:1");
    stack.soci(&["create", "--min-layer-size", "0", &reference]).ok();
    for command in
        [["push", "--user", "testuser:nope"].as_slice(), &["image", "push", "--user", "testuser:nope"]]
    {
        let error = stack.soci(&[command, &[reference.as_str()]].concat()).one_line_error();
        assert!(!error.contains("nope"), "{error}");
    }
    stack.soci(&["image", "push", "--user", &user(), "--platform", "linux/amd64", &reference]).ok();
    stack.soci(&["push", "--user", &user(), &reference]).ok();
}

/// By somebody whose docker configuration has a login for the registry, which the daemon's has not.
fn rpull_logged_in(stack: &Stack, options: &[&str], reference: &str) -> Said {
    let docker = stack.folder().join("callers-docker");
    fs::create_dir(&docker).unwrap();
    let login = json!({ "auths": { stack.registry.host(): { "username": USER, "password": PASSWORD } } });
    fs::write(docker.join("config.json"), login.to_string()).unwrap();
    let mut command = stack.soci_command(&[&["image", "rpull"], options, &[reference]].concat());
    say(command.env("DOCKER_CONFIG", &docker))
}

/// Who pulls has a docker configuration of their own, the daemon has none.
#[test]
fn the_daemon_reads_with_what_the_caller_is_logged_in_with() {
    let stack = Stack::start();
    let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
    let said = rpull_logged_in(&stack, &[], &reference).ok();
    assert_eq!(said.err, "");
    assert_eq!(stack.mounts().len(), 1, "it is lazy");
    stack.soci_run("soci", &[], &reference, &["sha256sum", BIG.0]).ok();
}

/// The way to the registry that only the caller knows: nothing is mounted that could not be read.
#[test]
fn what_the_daemon_cannot_reach_is_downloaded() {
    let stack = Stack::start();
    let image = rootfs::small(stack.folder());
    stack.publish(&image, "small:1", 64 * 1024);
    let hosts = stack.folder().join("hosts");
    fs::create_dir_all(hosts.join("registry.invalid")).unwrap();
    let toml = format!(
        "server = \"http://{0}\"\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        stack.registry.host()
    );
    fs::write(hosts.join("registry.invalid/hosts.toml"), toml).unwrap();
    let reference = "registry.invalid/small:1";
    let said = rpull_logged_in(&stack, &["--hosts-dir", hosts.to_str().unwrap()], reference).ok();
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    assert!(said.err.contains("cannot read the image from registry.invalid"), "{}", said.err);
    assert!(stack.mounts().is_empty(), "nothing is lazy");
    stack.soci_run("soci", &[], reference, &["sha256sum", BIG.0]).ok();
}
