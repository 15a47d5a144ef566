//! A client that knows nothing of us: `ctr image pull` into soci. Since containerd 2.1 the transfer service tells us which layer it is
//! preparing; before, nobody does, and everything is unpacked. The container starts either way.

use std::time::Duration;

use soci_tests::containerd;
use soci_tests::image::{Image, Packing};
use soci_tests::registry::{PASSWORD, USER, user};
use soci_tests::rootfs;
use soci_tests::stack::{Stack, eventually};

/// How many layers are lazy if the client says which they are.
fn lazy(layers: usize) -> usize {
    if containerd::version() >= (2, 1) { layers } else { 0 }
}

/// The pull of a client with credentials; those that it has are not told to us.
fn pull(stack: &Stack, reference: &str) {
    let options = ["--plain-http", "--user", &user(), "--platform", "linux/amd64", "--snapshotter", "soci"];
    stack.ctr(&[&["image", "pull"], &options[..], &[reference]].concat()).ok();
}

/// The daemon may read the registry.
fn log_in(stack: &Stack) {
    stack.daemon.log_in(stack.registry.host(), USER, PASSWORD);
}

/// Both clients run it, and every layer is there.
fn runs(stack: &Stack, reference: &str) {
    let files = ["cat", "/odd/linked2", "/lower/opaque/new"];
    for said in
        [stack.ctr_run("soci", &[], reference, &files), stack.soci_run("soci", &[], reference, &files)]
    {
        let said = said.ok();
        assert_eq!(said.out, "one inode, three namesupper", "{}", said.line);
    }
}

/// The image goes as any other.
fn goes(stack: &Stack) {
    stack.forget();
    eventually("no snapshot is left", Duration::from_secs(20), || {
        stack.ctr(&["snapshot", "--snapshotter", "soci", "ls"]).ok().out.lines().count() == 1
    });
}

fn biggest(image: &Image) -> u64 {
    image.layers.iter().map(|layer| layer.size).max().unwrap()
}

/// An index for the layers from `size` on.
fn publish(stack: &Stack, image: &Image, size: u64) -> String {
    let reference = stack.push(image, "varied:1");
    stack.index(&reference, &["--min-layer-size", &size.to_string(), "--span-size", "65536"]);
    stack.forget();
    reference
}

#[test]
fn every_layer_in_the_index() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let reference = publish(&stack, &image, 0);
    log_in(&stack);
    pull(&stack, &reference);
    assert_eq!(stack.mounts().len(), lazy(3));
    runs(&stack, &reference);
    goes(&stack);
}

/// One layer lazy, the others unpacked by the daemon: the client counts on it.
#[test]
fn one_layer_in_the_index() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let reference = publish(&stack, &image, biggest(&image));
    log_in(&stack);
    pull(&stack, &reference);
    assert_eq!(stack.mounts().len(), lazy(1));
    runs(&stack, &reference);
    goes(&stack);
}

/// No index: containerd unpacks.
#[test]
fn no_index() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let reference = stack.push(&image, "varied:1");
    stack.forget();
    log_in(&stack);
    pull(&stack, &reference);
    assert_eq!(stack.mounts().len(), 0);
    runs(&stack, &reference);
    goes(&stack);
}

/// An index, and a daemon that is not allowed to read it: containerd unpacks.
#[test]
fn an_index_that_the_daemon_may_not_read() {
    let stack = Stack::start();
    let image = rootfs::varied(stack.folder(), [Packing::Gzip; 3]);
    let reference = publish(&stack, &image, 0);
    pull(&stack, &reference);
    assert_eq!(stack.mounts().len(), 0);
    runs(&stack, &reference);
    goes(&stack);
}
