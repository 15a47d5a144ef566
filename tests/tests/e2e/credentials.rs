//! A private registry: who may pull, and how the daemon learns it.

use soci_tests::registry::{PASSWORD, user};
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
