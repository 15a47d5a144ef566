//! Linux capabilities of the container's process.

use std::io;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use thiserror::Error;

/// What containerd gives a process that asks for nothing (`oci.defaultUnixCaps`).
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Capabilities by their number in the kernel (`include/uapi/linux/capability.h`).
const BY_NUMBER: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// A value of `--cap-add` or `--cap-drop` that names no capability.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum CapabilityError {
    #[error("capabilities must be specified with 'CAP_' prefix: {name:?}")]
    NoPrefix { name: String },
    #[error("unknown capability {name:?}")]
    Unknown { name: String },
}

/// Reads `CAP_SYS_ADMIN` and the like.
///
/// # Errors
/// Without the prefix, as in ctr, or with a name that the kernel does not have.
pub(crate) fn parse(name: &str) -> Result<Capability, CapabilityError> {
    let bare =
        name.strip_prefix("CAP_").ok_or_else(|| CapabilityError::NoPrefix { name: name.to_owned() })?;
    bare.parse().map_err(|_| CapabilityError::Unknown { name: name.to_owned() })
}

/// The default set.
pub(super) fn defaults() -> Capabilities {
    DEFAULT.into_iter().collect()
}

/// What this process has: all that `--privileged` can hand on.
///
/// # Errors
/// `/proc/self/status` cannot be read or has no `CapEff`.
pub(super) fn of_this_process() -> io::Result<Capabilities> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no CapEff"))?;
    Ok(from_mask(mask))
}

fn from_mask(mask: u64) -> Capabilities {
    BY_NUMBER
        .into_iter()
        .enumerate()
        .filter(|(number, _)| mask & (1 << number) != 0)
        .map(|(_, capability)| capability)
        .collect()
}

/// The sets of a process that has these. Nothing is inheritable: a process that is not root must not gain them through execve (CVE-2022-24769).
pub(super) fn sets(capabilities: Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(capabilities.clone()))
        .set_effective(Some(capabilities.clone()))
        .set_permitted(Some(capabilities))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_the_prefix() {
        assert_eq!(parse("CAP_SYS_ADMIN"), Ok(Capability::SysAdmin));
        assert_eq!(parse("CAP_CHECKPOINT_RESTORE"), Ok(Capability::CheckpointRestore));
        assert_eq!(parse("SYS_ADMIN"), Err(CapabilityError::NoPrefix { name: "SYS_ADMIN".into() }));
        assert_eq!(parse("CAP_FLY"), Err(CapabilityError::Unknown { name: "CAP_FLY".into() }));
    }

    #[test]
    fn masks_are_read_by_the_kernels_numbers() {
        assert_eq!(from_mask(0), Capabilities::new());
        assert_eq!(from_mask(1 | 1 << 21 | 1 << 40).len(), 3);
        assert!(from_mask(1 << 21).contains(&Capability::SysAdmin));
        // The default set of containerd and of Docker, as every container shows it in CapEff.
        assert_eq!(from_mask(0xa804_25fb), defaults());
    }

    #[test]
    fn every_capability_is_written_with_its_prefix() {
        for capability in BY_NUMBER {
            let text = serde_json::to_value(capability).unwrap();
            let text = text.as_str().unwrap();
            assert_eq!(parse(text), Ok(capability), "{text}");
        }
    }
}
