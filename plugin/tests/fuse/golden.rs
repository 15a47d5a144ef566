//! The tree that FUSE shows, the one that the kernel's EROFS finds in the same layer file, and what GNU tar extracts: all the same.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use lazy_layer::CreateError;
use soci_snapshotter_grpc::snapshot::FrontEnd;

use crate::layers::{Fixture, read_golden};
use crate::view::{self, File, Files, Mount};

/// Golden layers with a usable zTOC.
const LAYERS: [&str; 15] = [
    "empty-stream.tgz",
    "garbage-after-eoa.tgz",
    "gnu-gzip6.tgz",
    "mix-fixed.tgz",
    "mix-pygzip.tgz",
    "mix-smallblocks.tgz",
    "mix-stored.tgz",
    "multi-member.tgz",
    "no-eoa.tgz",
    "one-zero-block.tgz",
    "pax-gzip9.tgz",
    "plain.tar",
    "ustar-gzip1-fname.tgz",
    "whiteouts.tgz",
    "zeros-only.tgz",
];

#[test]
fn three_views_of_every_golden_layer() {
    for name in LAYERS {
        eprintln!("{name}");
        let layer = read_golden(&format!("layers/{name}"));
        three_views(&Fixture::golden(name), &layer);
        kernel_view(&Fixture::golden(name), &layer);
    }
}

#[test]
fn unusable_ztocs_are_refused() {
    for name in ["hardlink-size", "sparse-pax00", "sparse-pax01"] {
        let layer = read_golden(&format!("layers/{name}.tgz"));
        let ztoc = read_golden(&format!("ztoc/head/{name}.s65536.ztoc"));
        match Fixture::new(&layer, &ztoc) {
            Err(CreateError::Toc { .. } | CreateError::Entry { .. }) => {}
            Err(other) => panic!("{name}: {other:?}"),
            Ok(_) => panic!("{name} was accepted"),
        }
    }
}

pub fn three_views(fixture: &Fixture, layer: &[u8]) {
    let mounted = fixture.mount();
    let fuse = view::of(&mounted.at);
    view::assert_same(&fuse, &view::of(&mounted.at));
    let started = SystemTime::now();
    let mut tar = extract(layer, &fixture.scratch("tar"));
    as_a_layer(&mut tar, started);
    let mut comparable = fuse.clone();
    // Linux gives every link 0777; FUSE shows what the tar says.
    comparable.values_mut().filter(|file| file.kind() == libc::S_IFLNK).for_each(|file| file.mode |= 0o777);
    for (path, file) in &mut comparable {
        // Asked for by name: it is not listed.
        if let Ok(value) = view::xattr(&mounted.at.join(path), b"trusted.overlay.opaque") {
            file.xattrs.insert(b"trusted.overlay.opaque".to_vec(), value);
        }
    }
    view::assert_same(&comparable, &tar);

    // Everything was read, so the file is complete where it matters.
    let erofs = Mount::new("erofs", "loop,ro", &fixture.layer.path(), &fixture.scratch("erofs"));
    let mut kernel = view::of(&erofs.0);
    for (path, file) in &mut kernel {
        let fuse = fuse[path].ino;
        assert_eq!(fuse, if path.as_os_str().is_empty() { 1 } else { file.ino });
        file.xattrs.remove(b"trusted.overlay.opaque".as_slice());
    }
    view::assert_same(&fuse, &kernel);
}

/// What EROFS above FUSE shows, nothing of the layer being here before.
pub fn kernel_view(fixture: &Fixture, layer: &[u8]) {
    let shown = fixture.show(FrontEnd::KernelOverFuse);
    let mut kernel = view::of(&shown.at);
    let started = SystemTime::now();
    let mut tar = extract(layer, &fixture.scratch("tar-again"));
    as_a_layer(&mut tar, started);
    kernel.values_mut().filter(|file| file.kind() == libc::S_IFLNK).for_each(|file| file.mode |= 0o777);
    view::assert_same(&kernel, &tar);
}

/// Extracts a layer with GNU tar.
pub fn extract(layer: &[u8], to: &Path) -> Files {
    let mut tar = Vec::new();
    match layer {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(layer).read_to_end(&mut tar).unwrap();
        }
        _ => tar.extend(layer),
    }
    if tar.iter().any(|byte| *byte != 0) {
        let mut child = Command::new("tar")
            .args([
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
                "--delay-directory-restore",
                "-xpf",
                "-",
                "-C",
            ])
            .arg(to)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It stops at the end of the archive, whatever comes behind.
        let _ = child.stdin.take().unwrap().write_all(&tar);
        assert!(child.wait().unwrap().success());
    }
    view::of(to)
}

/// What becomes of a plain extraction under the rules for layers.
pub fn as_a_layer(files: &mut Files, started: SystemTime) {
    let started = started.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let implicit = |file: &mut File| {
        // Not in the tar, so tar made it now.
        if file.kind() == libc::S_IFDIR && file.mtime.0 >= started {
            file.mtime = (0, 0);
            file.mode = libc::S_IFDIR | 0o755;
        }
    };
    files.values_mut().for_each(implicit);
    let whiteouts: Vec<PathBuf> = files
        .keys()
        .filter(|path| path.to_string_lossy().rsplit('/').next().unwrap().starts_with(".wh."))
        .cloned()
        .collect();
    for path in whiteouts {
        let mut file = files.remove(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let parent = path.parent().unwrap();
        if name == ".wh..wh..opq" {
            files.get_mut(parent).unwrap().xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
        } else {
            (file.mode, file.size) = (libc::S_IFCHR, 0);
            file.data.clear();
            files.insert(parent.join(name.strip_prefix(".wh.").unwrap()), file);
        }
    }
}

#[test]
fn golden_layers_are_all_accounted_for() {
    let refused = [
        "bad-contiguous",
        "bad-global-pax",
        "sparse-oldgnu",
        "zstd",
        "hardlink-size",
        "sparse-pax00",
        "sparse-pax01",
    ];
    for entry in fs::read_dir(crate::layers::golden("layers")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let stem = name.split('.').next().unwrap();
        assert!(LAYERS.contains(&name.as_str()) || refused.contains(&stem), "{name} is in no test");
    }
}
