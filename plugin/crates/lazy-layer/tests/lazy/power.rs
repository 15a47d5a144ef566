//! The power is cut at every moment at which something is brought to the disk, and no wrong byte is ever served afterwards.
//!
//! A child process works on a layer in a file system of its own and dies just before or after a sync. What the file system's device has then is
//! what a machine would find after the cut: all that was not synced is lost. Of that, the kernel may have written any part earlier: the file system of the dead
//! child is made to do so, in a bad order, and its device is looked at again after each part ([`Early`]). Needs root, loop devices and ext4.

use std::fs::{self, File};
use std::num::NonZeroU64;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lazy_layer::{BlobSource, Layer, LayerStore, StoreOptions};
use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::bed::{PATIENCE, Source, read, read_all};
use crate::making::{Made, Random, Shape};
use crate::whole::diff_id;

/// Where the child works.
const PLACE: &str = "SOCI_TEST_CUT_PLACE";
/// At which of its syncs it dies.
const CUT: &str = "SOCI_TEST_CUT";
/// Bytes of a device: an ext4 with a journal, and the layer a few times.
const DEVICE: u64 = 24 << 20;
const PAGE: u64 = 4096;

fn made() -> Made {
    Made::random(71, Shape::Gzip, 25, 32_768)
}

/// Mounts a device's image and unmounts it in the end.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        // Nothing is written but what is synced, and a rename does not make the file system sync by itself.
        let options = "loop,noatime,commit=600,noauto_da_alloc";
        run(Command::new("mount").args(["-t", "ext4", "-o", options]).arg(image).arg(&at));
        Self { at }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr} (this test needs root, loop devices and ext4)");
}

/// A store on a file system, in one boot of the machine.
struct Machine {
    store: LayerStore,
    runtime: Runtime,
    _boot: TempDir,
}

impl Machine {
    fn start(root: &Path, boot: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut options = StoreOptions::new(root);
        options.boot_id = folder.path().join("boot");
        options.max_read_ahead = 0;
        options.fill.disable = true;
        options.min_free = 0;
        fs::write(&options.boot_id, boot).unwrap();
        let store = LayerStore::open(options, runtime.handle().clone()).unwrap();
        Self { store, runtime, _boot: folder }
    }

    fn layer(&self, made: &Made) -> Arc<Layer> {
        match self.store.open_layer(&made.key()).unwrap() {
            Some(layer) => layer,
            None => self.store.create_layer(&made.key(), &made.ztoc_bytes).unwrap(),
        }
    }

    /// The daemon ends, and the engine lets go of the layer.
    fn end(self) {
        let start = std::time::Instant::now();
        while !self.store.open_layers().is_empty() {
            assert!(start.elapsed() < PATIENCE, "a test must drop its layers first");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn source(made: &Made) -> Arc<dyn BlobSource> {
    Source::new(&made.blob)
}

/// What the child does: a layer is made, some of it comes, the daemon ends in order and starts again in the same boot and in another one, all of it comes
/// and is checked.
#[test]
#[ignore = "the_power_goes runs it"]
fn child() {
    let place = PathBuf::from(std::env::var_os(PLACE).expect("the_power_goes says where"));
    let made = made();
    let part = |number: usize, layer: &Arc<Layer>| {
        let third = made.files.len().div_ceil(3);
        for (path, content) in made.files.chunks(third).nth(number).unwrap() {
            assert!(read(layer, path).unwrap() == *content);
        }
    };
    for (number, boot) in ["first", "first", "second"].into_iter().enumerate() {
        let machine = Machine::start(&place, boot);
        let layer = machine.layer(&made);
        let attachment = layer.attach(source(&made));
        part(number, &layer);
        if number == 2 {
            layer.expect(&diff_id(&made));
            read_all(&layer, &made);
            layer.read_file(0, u32::MAX, Box::new(|_| {}));
            let completed = layer.completed();
            assert!(
                machine.runtime.block_on(async { tokio::time::timeout(PATIENCE, completed).await.unwrap() })
            );
        }
        machine.store.close().unwrap();
        // Something comes after what was thought to be the end.
        part((number + 1) % 3, &layer);
        drop((layer, attachment));
        machine.end();
    }
}

/// What of that which a dead process had not synced the kernel may have written all the same: each is more than the one before.
#[derive(Clone, Copy, Debug)]
enum Early {
    Nothing,
    /// What says which spans are here, and not one of the spans.
    States,
    /// Some pages of the spans, and what says where in the file they are.
    SomeSpans,
    Everything,
}

impl Early {
    const ALL: [Early; 4] = [Early::Nothing, Early::States, Early::SomeSpans, Early::Everything];

    fn write(self, place: &Path, random: &mut Random) {
        let open = |name: &str| {
            let directories = fs::read_dir(place.join("layers")).into_iter().flatten();
            let files = directories.filter_map(|entry| File::open(entry.unwrap().path().join(name)).ok());
            files.collect::<Vec<_>>()
        };
        match self {
            Early::Nothing => {}
            Early::States => open("states").iter().for_each(|file| file.sync_all().unwrap()),
            Early::SomeSpans => {
                for file in open("layer.erofs") {
                    let pages = file.metadata().unwrap().len() / PAGE;
                    for _ in 0..pages / 2 {
                        // Has the kernel begin to write it.
                        let page = random.below(pages) * PAGE;
                        fadvise(&file, page, NonZeroU64::new(PAGE), Advice::DontNeed).unwrap();
                    }
                }
                File::create(place.join("commit")).unwrap().sync_all().unwrap();
            }
            Early::Everything => open("layer.erofs").iter().for_each(|file| file.sync_all().unwrap()),
        }
    }
}

#[test]
fn the_power_goes() {
    let mut random = Random::seeded("the_power_goes");
    let made = made();
    let scratch = tempfile::Builder::new().prefix("power-").tempdir().unwrap();
    let empty = scratch.path().join("empty");
    File::create(&empty).unwrap().set_len(DEVICE).unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(&empty));
    let (mut cuts, mut copies) = (0u32, 0u32);
    loop {
        let image = scratch.path().join("device");
        fs::copy(&empty, &image).unwrap();
        let live = Mounted::new(&image, scratch.path().join("live"));
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "power::child", "--ignored", "--nocapture"])
            .env(PLACE, &live.at)
            .env(CUT, cuts.to_string())
            .output()
            .unwrap();
        let ended = status.status.success();
        assert!(
            ended || status.status.signal() == Some(Signal::KILL.as_raw()),
            "{}{}",
            String::from_utf8_lossy(&status.stdout),
            String::from_utf8_lossy(&status.stderr)
        );
        for early in Early::ALL {
            early.write(&live.at, &mut random);
            let copy = scratch.path().join("copy");
            fs::copy(&image, &copy).unwrap();
            after_the_cut(
                &copy,
                scratch.path().join("after"),
                &made,
                &format!("cut {cuts}, written early: {early:?}"),
            );
            copies += 1;
        }
        if ended {
            break;
        }
        cuts += 1;
    }
    println!("{cuts} cuts, {copies} copies");
    assert!(cuts > 20, "the child has fewer syncs than it should have");
}

/// Whatever is on the device, what is read is right.
fn after_the_cut(device: &Path, at: PathBuf, made: &Made, what: &str) {
    println!("{what}");
    let mounted = Mounted::new(device, at);
    let machine = Machine::start(&mounted.at, "after");
    let layer = machine.layer(made);
    let attachment = layer.attach(source(made));
    read_all(&layer, made);
    drop((layer, attachment));
    machine.end();
}
