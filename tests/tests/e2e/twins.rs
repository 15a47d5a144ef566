//! Two images with the same large layer, described by two zTOCs. It has another place in each: containerd itself shares layers that have the same ones below them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use soci_tests::forgery::{forge, replace};
use soci_tests::image::{Image, ImageBuilder, Packing, digest};
use soci_tests::registry::{PASSWORD, USER};
use soci_tests::rootfs::{self, BIG, SECRET};
use soci_tests::stack::Stack;

const BACKGROUND: &str =
    "[background_fetch]\nsilence_period_msec = 100\n[limits]\nread_ahead_bytes = \"0b\"\nstart_files = 0\n";

/// Images of this layer, each with a file of its own: above it, and below.
fn images(folder: &Path) -> [Image; 2] {
    let base = rootfs::programs(folder);
    ["one", "two"].map(|name| {
        let place = folder.join(name);
        let own = place.join("own");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("name"), name).unwrap();
        let layers = if name == "one" { [&base, &own] } else { [&own, &base] };
        layers
            .into_iter()
            .fold(ImageBuilder::new(&place), |image, layer| image.layer(layer, Packing::Gzip))
            .finish(&format!("docker.io/library/{name}:1"), rootfs::config())
    })
}

/// Waits until the layers of an image have this state, and gives their files' directories.
fn wait(stack: &Stack, reference: &str, base: &str, state: &str) {
    let start = Instant::now();
    loop {
        let layers: Value =
            serde_json::from_str(&stack.soci(&["image", "status", "--json", reference]).ok().out).unwrap();
        let layers = layers.as_array().unwrap();
        let layer = layers.iter().find(|layer| layer["layer"] == base).unwrap();
        if layer["state"] == state {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{layers:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Directories of a layer's files.
fn files(stack: &Stack, layer: &str) -> Vec<String> {
    let hex = layer.trim_start_matches("sha256:");
    let names = fs::read_dir(stack.daemon.root().join("layers")).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with(hex));
    names
}

/// All that a container sees of it is right.
fn runs(stack: &Stack, reference: &str, name: &str) {
    let script = format!("cat /secret /name; sha256sum /{}", BIG.0);
    let said = stack.soci_run("soci", &[], reference, &["sh", "-c", &script]).ok();
    let big = digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
    assert!(said.out.starts_with(&format!("{SECRET}{name}{big}")), "{}", said.out);
}

#[test]
fn a_complete_base_layer_serves_whoever_has_it() {
    let mut stack = Stack::with_config(BACKGROUND);
    let [one, two] = images(stack.folder());
    let base = one.layers[0].digest.clone();
    assert_eq!(two.layers[1].digest, base);
    let (first, _) = stack.publish(&one, "one:1", 64 * 1024);
    let (second, _) = stack.publish(&two, "two:1", 512 * 1024);
    stack.rpull(&[], &first).ok();
    wait(&stack, &first, &base, "complete");
    let file = files(&stack, &base);
    assert_eq!(file.len(), 1);

    let before = stack.registry.downloaded_of(&base);
    stack.rpull(&[], &second).ok();
    runs(&stack, &second, "two");
    // A byte of a layer shows where it is in the registry; that is asked for ahead, and may be asked for twice.
    let asked = stack.registry.downloaded_of(&base) - before;
    assert!(asked <= 2, "{asked} bytes were fetched");
    assert_eq!(files(&stack, &base), file, "there is one file for both");

    // It is the second one's from now on.
    stack.ctr(&["image", "rm", "--sync", &first]).ok();
    stack.collect_garbage();
    stack.restart_daemon(Signal::KILL);
    runs(&stack, &second, "two");
    stack.daemon.stop(Signal::KILL);
    stack.daemon.end_keepers();
    stack.daemon.launch();
    runs(&stack, &second, "two");
    assert_eq!(files(&stack, &base), file);
    assert!(stack.registry.downloaded_of(&base) - before <= 2, "all of it was here");

    // Lost, it is made from the second one's own zTOC. What rpull handed over is with the keeper, which is gone.
    stack.daemon.log_in(stack.registry.host(), USER, PASSWORD);
    stack.daemon.stop(Signal::KILL);
    stack.daemon.end_keepers();
    fs::remove_dir_all(stack.daemon.root().join("layers").join(&file[0])).unwrap();
    stack.daemon.launch();
    runs(&stack, &second, "two");
    let own = files(&stack, &base);
    assert!(own.len() == 1 && own != file, "{own:?}");
}

/// Whoever can push an index for an image with the same layer changes nothing for others, whoever comes first.
#[test]
fn a_forged_index_is_nobodys_twin() {
    let stack = Stack::with_config(BACKGROUND);
    let [one, two] = images(stack.folder());
    let base = one.layers[0].digest.clone();
    let (forged, index) = stack.publish(&one, "one:1", 64 * 1024);
    let (honest, _) = stack.publish(&two, "two:1", 512 * 1024);
    let index = forge(&stack, "one", &index, |ztoc| replace(ztoc, b"secret", b"public"));
    stack.rpull(&["--soci-index-digest", &index], &forged).ok();
    wait(&stack, &forged, &base, "refused");
    let poisoned = files(&stack, &base);
    stack.rpull(&[], &honest).ok();
    runs(&stack, &honest, "two");
    assert_eq!(files(&stack, &base).len(), 2, "each has its own file");
    wait(&stack, &honest, &base, "complete");

    // The other way round: what the image's configuration says is mounted, not what the index says.
    stack.ctr(&["image", "rm", "--sync", &forged]).ok();
    stack.collect_garbage();
    let start = Instant::now();
    while files(&stack, &base).iter().any(|file| poisoned.contains(file)) {
        assert!(start.elapsed() < Duration::from_secs(20), "the forged file stays");
        std::thread::sleep(Duration::from_millis(50));
    }
    stack.rpull(&["--soci-index-digest", &index], &forged).ok();
    runs(&stack, &forged, "one");
    let said = stack.soci_run("soci", &[], &forged, &["cat", "/public"]);
    assert!(!said.success, "{}", said.out);
}
