//! What udev is told of our loop devices: not to look into them.
//!
//! It looks for file systems at a dozen places of every block device that appears. Those of a layer are in the registry: each would be fetched, at the speed of a
//! read that somebody waits for (measured: a dozen spans of every layer, before anybody has read a byte).

use std::fs;
use std::io;
use std::path::Path;

/// Where it is, if it is there (`udev(7)`: rules of this boot are in `rules.d` below it; it notices new ones by itself, within seconds).
pub(super) const PLACE: &str = "/run/udev";
/// Before the rules that look into devices, which are at 60.
const NAME: &str = "59-soci-snapshotter.rules";
/// The devices above FUSE; those above a file that is here whole may be looked into. The variable is that of systemd's `60-persistent-storage.rules`.
const RULES: &str = r#"# Of soci-snapshotter-grpc: what is read of these devices is fetched from a registry.
SUBSYSTEM=="block", KERNEL=="loop*", ATTR{loop/backing_file}=="*/.soci-snapshotter/layer.erofs", ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1"
"#;

/// Does nothing where there is no udev, or where it knows.
///
/// # Errors
/// The system's; udev looks into the devices then.
pub(super) fn tell(place: &Path) -> io::Result<()> {
    let rules = place.join("rules.d");
    let path = rules.join(NAME);
    if !place.is_dir() || fs::read_to_string(&path).is_ok_and(|found| found == RULES) {
        return Ok(());
    }
    fs::create_dir_all(&rules)?;
    // Whole at once. Names that end otherwise are not read.
    let new = rules.join(format!("{NAME}.{}", std::process::id()));
    fs::write(&new, RULES)?;
    fs::rename(&new, &path).inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::FuseMount;

    #[test]
    fn where_there_is_no_udev() {
        let place = tempfile::tempdir().unwrap();
        tell(&place.path().join("udev")).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn told_once_and_again_when_it_differs() {
        let place = tempfile::tempdir().unwrap();
        let rules = place.path().join("rules.d");
        for before in [None, Some("older"), Some(RULES)] {
            if let Some(before) = before {
                fs::write(rules.join(NAME), before).unwrap();
            }
            tell(place.path()).unwrap();
            assert_eq!(fs::read_to_string(rules.join(NAME)).unwrap(), RULES);
            assert_eq!(fs::read_dir(&rules).unwrap().count(), 1);
        }
    }

    #[test]
    fn the_rule_is_about_the_file_that_fuse_shows() {
        let shown = FuseMount::layer_file(Path::new("*"));
        assert!(RULES.contains(&format!("=={:?}", shown.display().to_string())), "{RULES}");
    }
}
