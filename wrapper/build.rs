//! Which revision is built, for `--version`.

use std::path::Path;
use std::process::Command;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    // Not that of a repository around ours, where there is only an archive's content.
    let ours = git(&["rev-parse", "--show-toplevel"]).as_deref().map(Path::new) == root;
    let revision = git(&["rev-parse", "HEAD"]).filter(|_| ours);
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|_| ours) {
        println!("cargo:rerun-if-changed={log}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    let revision = revision.map(|revision| format!(" {revision}")).unwrap_or_default();
    println!("cargo:rustc-env=SOCI_REVISION={revision}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let said = Command::new("git").args(arguments).output().ok().filter(|said| said.status.success())?;
    Some(String::from_utf8(said.stdout).ok()?.trim().to_owned())
}
