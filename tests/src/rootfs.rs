//! The trees that images are made from: a few programs of the machine and hand-made files of every kind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, setxattr, utimensat,
};

use serde_json::{Value, json};

use crate::image::{Image, ImageBuilder, Packing};
use crate::process::run;

/// A name and the content of `/secret`, which only root may read.
pub const SECRET: &str = "only for root\n";
/// Name and size of the big file.
pub const BIG: (&str, usize) = ("data/big.bin", 3 << 20);

/// Config object of the images made here.
pub fn config() -> Value {
    json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/" })
}

/// Bytes that compress to about half, the same ones for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8 & 0x0f | 0x40
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Programs: busybox under many names, `cat` as it is, setuid and with a capability; a secret; a big file.
pub fn programs(folder: &Path) -> PathBuf {
    let root = folder.join("programs");
    for name in ["bin", "etc", "data", "proc", "sys", "dev", "run"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("package busybox-static is installed");
    for name in ["sh", "ls", "sha256sum", "sleep", "id", "echo", "test", "true", "dd", "wc", "stat"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    for (name, mode) in [("cat", 0o755), ("cat-suid", 0o4755), ("cat-cap", 0o755), ("cat-evil", 0o755)] {
        fs::copy("/bin/cat", root.join("bin").join(name)).unwrap();
        fs::set_permissions(root.join("bin").join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    run("setcap", &["cap_dac_override+ep", root.join("bin/cat-cap").to_str().unwrap()]);
    libraries(Path::new("/bin/cat"), &root);
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nplain:x:1000:1000::/:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nplain:x:1000:\n").unwrap();
    fs::write(root.join("secret"), SECRET).unwrap();
    fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(root.join(BIG.0), noise(1, BIG.1)).unwrap();
    settle(&root, 1_700_000_000);
    root
}

/// What a program is linked with, under the same names.
fn libraries(program: &Path, root: &Path) {
    for word in
        run("ldd", &[program.to_str().unwrap()]).split_whitespace().filter(|word| word.starts_with('/'))
    {
        let target = root.join(word.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(word, target).unwrap();
    }
}

/// Files of every kind, with odd names, times and attributes.
pub fn oddities(folder: &Path) -> PathBuf {
    let root = folder.join("oddities");
    let odd = root.join("odd");
    fs::create_dir_all(odd.join("names")).unwrap();
    let long = "n".repeat(255);
    let names: [&[u8]; 8] = [
        b" leading and trailing ",
        b"new\nline",
        b"not\xff\xfeutf8",
        b"-rf",
        "größe-日本".as_bytes(),
        b"%s%n",
        b"back\\slash",
        long.as_bytes(),
    ];
    for (number, name) in names.into_iter().enumerate() {
        fs::write(odd.join("names").join(OsStr::from_bytes(name)), format!("file {number}")).unwrap();
    }
    let mut deep = odd.join("deep");
    for level in 0..40 {
        deep = deep.join(format!("level{level:02}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "reached").unwrap();
    fs::write(odd.join("empty"), "").unwrap();
    for size in [1, 511, 512, 513, 4095, 4096, 65536, 200_001] {
        fs::write(odd.join(format!("size{size}")), noise(size as u64, size)).unwrap();
    }
    fs::write(odd.join("linked"), "one inode, three names").unwrap();
    fs::hard_link(odd.join("linked"), odd.join("linked2")).unwrap();
    fs::hard_link(odd.join("linked"), odd.join("names/linked3")).unwrap();
    symlink("/bin/busybox", odd.join("absolute")).unwrap();
    symlink("../nowhere", odd.join("dangling")).unwrap();
    symlink("x/".repeat(1500), odd.join("long-link")).unwrap();
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("wide", FileType::CharacterDevice, makedev(300, 70_000)),
        ("loop", FileType::BlockDevice, makedev(7, 0)),
        ("fifo", FileType::Fifo, 0),
    ] {
        mknodat(CWD, odd.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    for (name, mode, owner) in [
        ("setgid", 0o2755, (0, 50)),
        ("sticky", 0o1777, (0, 0)),
        ("none", 0o000, (65_534, 65_534)),
        ("big-ids", 0o600, (3_000_000, 4_000_000)),
    ] {
        fs::create_dir(odd.join(name)).unwrap();
        fs::write(odd.join(name).join("file"), name).unwrap();
        std::os::unix::fs::chown(odd.join(name), Some(owner.0), Some(owner.1)).unwrap();
        std::os::unix::fs::chown(odd.join(name).join("file"), Some(owner.0), Some(owner.1)).unwrap();
        fs::set_permissions(odd.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, key, value) in [
        ("size1", "user.plain", b"value".as_slice()),
        ("size1", "user.binary", b"a\0b=c\nd\xff"),
        ("setgid", "user.on-a-folder", b""),
    ] {
        setxattr(odd.join(name), key, value, XattrFlags::empty()).unwrap();
    }
    for (folder, name) in [
        ("hide", "gone"),
        ("hide", "stays"),
        ("opaque", "gone"),
        ("opaque", "also-gone"),
        ("was-folder", "x"),
    ] {
        fs::create_dir_all(root.join("lower").join(folder)).unwrap();
        fs::write(root.join("lower").join(folder).join(name), "lower").unwrap();
    }
    fs::write(root.join("lower/was-file"), "lower").unwrap();
    settle(&root, 1_600_000_000);
    // After 2038, and in between two seconds: tar keeps both.
    set_time(&odd.join("size513"), 5_000_000_000, 0);
    set_time(&odd.join("size4095"), 1_500_000_000, 123_456_789);
    root
}

/// The same with what tar keeps and containerd's unpacking does not: a time before 1970.
pub fn rarities(folder: &Path) -> PathBuf {
    let root = oddities(folder);
    set_time(&root.join("odd/size512"), -1000, 0);
    root
}

/// Whiteouts, an opaque folder, and names that change their kind.
pub fn changes(folder: &Path) -> PathBuf {
    let root = folder.join("changes");
    for name in ["lower/hide", "lower/opaque", "lower/was-file"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(root.join("lower/hide/.wh.gone"), "").unwrap();
    fs::write(root.join("lower/opaque/.wh..wh..opq"), "").unwrap();
    fs::write(root.join("lower/opaque/new"), "upper").unwrap();
    fs::write(root.join("lower/was-file/inside"), "upper").unwrap();
    fs::write(root.join("lower/was-folder"), "upper").unwrap();
    settle(&root, 1_650_000_000);
    root
}

/// Gives every name below `root` the same time, so that two runs make the same bytes.
fn settle(root: &Path, seconds: i64) {
    run(
        "find",
        &[root.to_str().unwrap(), "-depth", "-exec", "touch", "-h", "-d", &format!("@{seconds}"), "{}", "+"],
    );
}

fn set_time(path: &Path, tv_sec: i64, tv_nsec: i64) {
    let time = Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    utimensat(
        CWD,
        path,
        &Timestamps { last_access: time, last_modification: time },
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// Programs alone: one layer.
pub fn small(folder: &Path) -> Image {
    let place = folder.join("small");
    ImageBuilder::new(&place)
        .layer(&programs(&place), Packing::Gzip)
        .finish("docker.io/library/small:1", config())
}

/// Programs, oddities and changes: three layers, each packed as told.
pub fn varied(folder: &Path, packing: [Packing; 3]) -> Image {
    let place = folder.join("varied");
    ImageBuilder::new(&place)
        .layer(&programs(&place), packing[0])
        .layer(&oddities(&place), packing[1])
        .layer(&changes(&place), packing[2])
        .finish("docker.io/library/varied:1", config())
}
