//! What is read of a container's image before its first process is there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use soci_tests::image::digest;
use soci_tests::rootfs::{self, BIG};
use soci_tests::stack::{Stack, container_name};

/// Nothing is read ahead but what a container's own command line names.
const NAMED: &str = "[limits]\nread_ahead_bytes = \"0b\"\n[start]\nfiles = \"\"\nlikely_files = \"\"\n";

/// An OCI runtime that makes no container before it is let go.
struct HeldRuntime {
    program: PathBuf,
    go: PathBuf,
}

impl HeldRuntime {
    fn new(folder: &Path) -> HeldRuntime {
        let held = HeldRuntime { program: folder.join("held-runc"), go: folder.join("go") };
        let (here, go) = (folder.display(), held.go.display());
        // It ends with the folder, whatever becomes of the test.
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in *' create '*) while [ -d {here} ] && [ ! -e {go} ]; do sleep 0.05; done ;; esac\nexec runc \"$@\"\n"
        );
        fs::write(&held.program, script).unwrap();
        fs::set_permissions(&held.program, fs::Permissions::from_mode(0o755)).unwrap();
        held
    }

    fn let_go(&self) {
        fs::write(&self.go, "").unwrap();
    }
}

impl Drop for HeldRuntime {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The only layer file of a daemon has these bytes, which a file of the image begins with. What was not fetched is a hole in it.
fn here(stack: &Stack, bytes: &[u8]) -> bool {
    let layers = fs::read_dir(stack.daemon.root().join("layers")).unwrap();
    let files: Vec<PathBuf> = layers.map(|entry| entry.unwrap().path().join("layer.erofs")).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    fs::read(&files[0]).unwrap().windows(bytes.len()).step_by(512).any(|window| window == bytes)
}

/// The program, found through PATH and through a symbolic link, and a file that the command line names are read while the container is still being made, whoever makes it.
#[test]
fn what_a_command_line_names_is_read_before_there_is_a_process() {
    for client in ["soci", "ctr"] {
        let stack = Stack::with_config(NAMED);
        let (reference, _) = stack.publish(&rootfs::small(stack.folder()), "small:1", 64 * 1024);
        stack.rpull(&[], &reference).ok();
        let program = fs::read("/bin/busybox").unwrap()[..4096].to_vec();
        let named = rootfs::noise(1, BIG.1)[BIG.1 - 4096..].to_vec();
        assert!(!here(&stack, &program) && !here(&stack, &named), "it is read already, so nothing is proved");

        let runtime = HeldRuntime::new(stack.folder());
        let name = container_name();
        let held = runtime.program.to_str().unwrap();
        let run = ["run", "--rm", "--snapshotter", "soci", "--runc-binary", held, &reference, &name];
        let line = [&run[..], &["sha256sum", BIG.0]].concat();
        let mut process = if client == "soci" { stack.soci_start(&line) } else { stack.ctr_start(&line) };
        process.wait_until("what runs is read", Duration::from_secs(60), || {
            here(&stack, &program) && here(&stack, &named)
        });
        // Nobody but the daemon can have asked for it: the runtime has not made a container yet.
        assert!(process.wait(Duration::ZERO).is_none(), "{client}: {}", process.output());

        runtime.let_go();
        let status = process.wait(Duration::from_secs(60));
        assert!(status.is_some_and(|status| status.success()), "{client}: {}", process.output());
        let wanted = digest(&rootfs::noise(1, BIG.1)).replace("sha256:", "");
        // What a process wrote just before its end, ctr loses at times.
        assert!(client == "ctr" || process.output().starts_with(&wanted), "{}", process.output());
    }
}
