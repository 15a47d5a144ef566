//! The container's mounts: containerd's defaults, `--mount` and what `--net-host` brings.

use std::path::PathBuf;

use oci_spec::runtime::Mount;
use thiserror::Error;

/// `--mount` is not of the form `type=…,src=…,dst=…,options=a:b`.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum MountFlagError {
    #[error("invalid mount specification: expected key=val, got {field:?}")]
    NotKeyValue { field: String },
    #[error("mount option {key:?} not supported")]
    UnknownKey { key: String },
    #[error("invalid mount specification: no destination")]
    NoDestination,
}

/// Reads one `--mount` value, with ctr's keys: `type`, `src` or `source`, `dst` or `destination`, and `options` separated by colons.
///
/// # Errors
/// A part without `=`, an unknown key, no destination.
pub(crate) fn parse_flag(value: &str) -> Result<Mount, MountFlagError> {
    let mut mount = Mount::default();
    let mut has_destination = false;
    for field in value.split(',') {
        let (key, value) =
            field.split_once('=').ok_or_else(|| MountFlagError::NotKeyValue { field: field.to_owned() })?;
        match key {
            "type" => mount.set_typ(Some(value.to_owned())),
            "source" | "src" => mount.set_source(Some(PathBuf::from(value))),
            "destination" | "dst" => {
                has_destination = !value.is_empty();
                mount.set_destination(PathBuf::from(value))
            }
            "options" => mount.set_options(Some(value.split(':').map(str::to_owned).collect())),
            _ => return Err(MountFlagError::UnknownKey { key: key.to_owned() }),
        };
    }
    if has_destination { Ok(mount) } else { Err(MountFlagError::NoDestination) }
}

/// The mounts of containerd's default specification for Linux (`oci.defaultMounts`).
pub(super) fn defaults() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ]
}

/// The host's name resolution, for a container in the host's network.
pub(super) fn host_name_resolution() -> [Mount; 2] {
    ["/etc/hosts", "/etc/resolv.conf"].map(|path| mount(path, "bind", path, &["rbind", "ro"]))
}

/// Takes `ro` off the mounts of these types, as `--privileged` does for sysfs and cgroups.
pub(super) fn make_writable(mounts: &mut [Mount], types: &[&str]) {
    for mount in mounts {
        if mount.typ().as_deref().is_some_and(|typ| types.contains(&typ))
            && let Some(options) = mount.options_mut()
        {
            options.retain(|option| option != "ro");
            options.push("rw".to_owned());
        }
    }
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let mount = parse_flag("type=bind,src=/host,dst=/in,options=rbind:ro").unwrap();
        assert_eq!(mount.typ().as_deref(), Some("bind"));
        assert_eq!(mount.source().as_deref(), Some("/host".as_ref()));
        assert_eq!(mount.destination(), &PathBuf::from("/in"));
        assert_eq!(mount.options().as_deref(), Some(&["rbind".to_owned(), "ro".to_owned()][..]));
        assert_eq!(parse_flag("type=tmpfs,destination=/t,source=x").unwrap().options(), &None);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse_flag("type=bind,ro"), Err(MountFlagError::NotKeyValue { field: "ro".into() }));
        assert_eq!(
            parse_flag("type=bind,readonly=1"),
            Err(MountFlagError::UnknownKey { key: "readonly".into() })
        );
        assert_eq!(parse_flag("type=bind,src=/x"), Err(MountFlagError::NoDestination));
    }

    #[test]
    fn privileged_makes_sysfs_writable() {
        let mut mounts = defaults();
        make_writable(&mut mounts, &["sysfs"]);
        let sys = mounts.iter().find(|mount| mount.destination().as_os_str() == "/sys").unwrap();
        assert!(!sys.options().as_ref().unwrap().iter().any(|option| option == "ro"));
    }
}
