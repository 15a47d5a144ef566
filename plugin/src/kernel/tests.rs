//! The exchange itself, on a layer all of whose bytes are here: whether they were checked as a whole is asked before it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::str::FromStr as _;

use bytes::Bytes;
use lazy_layer::{BlobSource, ByteStream, LayerKey, LayerStore, StoreOptions};
use oci_spec::image::Digest;
use sha2::{Digest as _, Sha256};
use ztoc::CompressedOffset;

use super::errand::ErrandOptions;
use super::*;
use crate::fuse::{FuseMount, FuseOptions, Unmounted};
use crate::keeper::Hold;
use crate::mountinfo::MountInfo;

#[derive(Debug)]
struct Blob(Bytes);

impl BlobSource for Blob {
    fn host(&self) -> Arc<str> {
        "memory".into()
    }

    fn read(&self, range: Range<CompressedOffset>) -> ByteStream {
        let bytes = self.0.slice(range.start.0 as usize..range.end.0 as usize);
        Box::pin(futures_util::stream::once(std::future::ready(Ok(bytes))))
    }
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)).unwrap()
}

fn digest(bytes: &[u8]) -> Digest {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Digest::from_str(&format!("sha256:{hex}")).unwrap()
}

/// Every regular file below a directory.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() {
                let content = fs::read(&path).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

#[test]
fn readers_go_on_when_fuse_has_gone() {
    readers_go_on(false);
}

/// Where this machine can do without loop devices; else as before.
#[test]
fn readers_go_on_without_a_device_for_new_ones() {
    let scratch = tempfile::tempdir().unwrap();
    readers_go_on(probe::probe(scratch.path(), KernelOptions::default()).unwrap());
}

fn mounts_at(point: &Path) -> usize {
    MountInfo::all().unwrap().iter().filter(|mount| mount.point == point).count()
}

/// KiB that the kernel reads ahead of who reads what is mounted here.
fn read_ahead(at: &Path) -> u32 {
    let (major, minor) = attach::split(fs::metadata(at).unwrap().dev());
    let text = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    text.trim().parse().unwrap()
}

fn readers_go_on(without_device: bool) {
    let root = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = LayerStore::open(StoreOptions::new(root.path()), runtime.handle().clone()).unwrap();
    let (blob, ztoc) = (golden("layers/gnu-gzip6.tgz"), golden("ztoc/head/gnu-gzip6.s65536.ztoc"));
    let key = LayerKey { layer: digest(&blob), ztoc: digest(&ztoc) };
    let layer = store.create_layer(&key, &ztoc).unwrap();
    let source = layer.attach(Arc::new(Blob(blob.into())));
    let at = root.path().join("snapshots/1/fs");
    fs::create_dir_all(&at).unwrap();
    let options = FuseOptions { layer_file: true, ..FuseOptions::default() };
    let fuse = FuseMount::mount(Arc::clone(&layer), &at, options, |_| Hold::none()).unwrap();
    let options = KernelOptions {
        read_ahead_kib: 128,
        local_read_ahead_kib: 512,
        without_device,
        ..KernelOptions::default()
    };
    let errands = Errands::new(ErrandOptions::default(), runtime.handle().clone());
    let kernel = Kernel { options, errands };
    let attach = |layer| runtime.block_on(kernel.attach(layer, &at, Duration::from_secs(60))).unwrap();
    let mount = attach(&layer);

    let mut early = File::open(mount.mount_point().join("usr/lib/rand")).unwrap();
    let device = erofs::device_at(mount.mount_point()).unwrap();
    assert_eq!((read_ahead(mount.mount_point()), device.backing().unwrap().direct_io), (128, true));
    let before = contents(mount.mount_point());
    assert!(before.len() > 5);
    io::copy(&mut File::open(FuseMount::layer_file(&at)).unwrap(), &mut io::sink()).unwrap();
    assert_eq!(layer.status().spans_present, layer.status().spans);
    // Bytes that nobody checked as a whole stay behind FUSE.
    if !layer.is_complete() {
        assert!(!runtime.block_on(mount.leave_fuse()).unwrap());
        assert_eq!(mount.front_end(), FrontEnd::KernelOverFuse);
    }
    runtime.block_on(mount.exchange()).unwrap();
    assert_eq!(mount.front_end(), FrontEnd::Local);
    drop(source);
    assert_eq!(fuse.unmount().unwrap(), Unmounted::Gone);
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();

    let mut rand = Vec::new();
    early.read_to_end(&mut rand).unwrap();
    assert_eq!(rand, before[&mount.mount_point().join("usr/lib/rand")]);
    assert_eq!(contents(mount.mount_point()), before);
    let (backing, local) = (device.backing().unwrap(), fs::metadata(layer.path()).unwrap());
    assert_eq!((backing.device, backing.inode), (attach::split(local.dev()), local.ino()));
    assert_eq!((read_ahead(mount.mount_point()), backing.direct_io), (512, false));
    assert_eq!(erofs::file_at(mount.mount_point()), None, "what is cached is shared");
    assert_eq!(runtime.block_on(mount.leave_device()).unwrap(), without_device);
    let new = erofs::file_at(mount.mount_point());
    assert_eq!(new.as_deref(), without_device.then_some(layer.path().as_path()));

    // Who comes later goes on with what is there.
    let id = |path: &Path| fs::metadata(path).unwrap().dev();
    let before = id(mount.mount_point());
    let mount = attach(&layer);
    assert_eq!(mount.front_end(), FrontEnd::Local);
    assert_eq!((id(mount.mount_point()), mounts_at(mount.mount_point())), (before, 1));
    runtime.block_on(mount.exchange()).unwrap();
    runtime.block_on(mount.leave_device()).unwrap();
    assert_eq!((id(mount.mount_point()), mounts_at(mount.mount_point())), (before, 1));
    drop(early);
    assert_eq!(mount.unmount().unwrap(), Unmounting::Done);
    assert_eq!(mounts_at(mount.mount_point()), 0);
    assert_eq!(fs::read_dir(at.with_file_name("erofs")).unwrap().count(), 0);
}
