//! The OCI runtime specification of a container: containerd's defaults, what the image says, what the command line says.
//!
//! The order and the rules are those of `ctr run` (containerd's `oci.WithDefaultSpec`, `oci.WithDefaultUnixDevices`, `oci.WithImageConfig` and
//! the options after them), so that a container is the same whoever starts it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, Linux, LinuxCpu, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxResources,
    LinuxSeccomp, Mount, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec, User,
};
use thiserror::Error;

use self::user::ProcessUser;

pub(crate) mod capability;
pub(crate) mod device;
pub(crate) mod environment;
pub(crate) mod mount;
pub(crate) mod namespace;
pub(crate) mod user;

/// Version of the runtime specification that this writes; runc from 1.0 on takes it.
const VERSION: &str = "1.0.2";

/// Paths that a container sees empty.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

/// Paths that a container cannot write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// How far `--privileged` goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Privileges {
    /// The defaults.
    #[default]
    Ordinary,
    /// Every capability, nothing masked, but only the usual devices.
    WithoutHostDevices,
    /// Every capability, nothing masked, every device of the host.
    WithHostDevices,
}

/// What the command line says about the container.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// Command and arguments instead of the image's entrypoint and command; empty for the image's.
    pub(crate) args: Vec<String>,
    pub(crate) cwd: Option<PathBuf>,
    /// `NAME=value` entries, or `NAME` to remove; later ones win.
    pub(crate) env: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) annotations: HashMap<String, String>,
    pub(crate) terminal: bool,
    pub(crate) privileges: Privileges,
    pub(crate) net_host: bool,
    pub(crate) read_only: bool,
    /// A directory of the host as root file system; `None` for the image's snapshot.
    pub(crate) root: Option<PathBuf>,
    pub(crate) rootfs_propagation: Option<String>,
    pub(crate) add_capabilities: Vec<Capability>,
    pub(crate) drop_capabilities: Vec<Capability>,
    pub(crate) join_namespaces: Vec<LinuxNamespace>,
    pub(crate) hostname: Option<String>,
    pub(crate) allow_new_privileges: bool,
    /// Path of the control group; `None` for `/<namespace>/<id>`.
    pub(crate) cgroup: Option<String>,
    /// Bytes.
    pub(crate) memory_limit: Option<i64>,
    pub(crate) cpu: Option<LinuxCpu>,
    pub(crate) devices: Vec<PathBuf>,
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) apparmor_profile: Option<String>,
}

/// No specification can be made for that command line on this host.
#[derive(Debug, Error)]
pub(crate) enum SpecError {
    #[error("no command: the image names none and none was given")]
    NoCommand,
    #[error("cannot read this process's capabilities")]
    Capabilities(#[source] io::Error),
    #[error("a part of the specification is invalid")]
    Part(#[from] OciSpecError),
    #[error(transparent)]
    Device(#[from] device::DeviceError),
}

/// The specification of the container `id` in containerd's `namespace`.
///
/// `image` is the configuration of its image, if it has one; `user` what its or the command line's user was resolved to.
///
/// # Errors
/// Nobody says what to run, or a device or this process's own rights cannot be read.
pub(crate) fn build(
    namespace: &str,
    id: &str,
    image: Option<&ImageConfiguration>,
    user: &ProcessUser,
    request: &Request,
) -> Result<Spec, SpecError> {
    let config = image.and_then(|image| image.config().as_ref());
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path(request.root.clone().unwrap_or_else(|| PathBuf::from("rootfs")))
        .set_readonly(request.read_only.then_some(true));
    let mut mounts = mount::defaults();
    let mut capabilities = match request.privileges {
        Privileges::Ordinary => capability::defaults(),
        _ => capability::of_this_process().map_err(SpecError::Capabilities)?,
    };
    capabilities.extend(request.add_capabilities.iter().copied());
    for capability in &request.drop_capabilities {
        capabilities.remove(capability);
    }

    let image_env = config.and_then(|config| config.env().as_deref()).unwrap_or_default();
    let mut env =
        if image_env.is_empty() { vec![environment::DEFAULT.to_owned()] } else { image_env.to_vec() };
    env = environment::merge(env.iter().map(String::as_str), request.env.iter().map(String::as_str));
    if request.terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(request)))
        .set_resources(Some(resources(request)?))
        .set_cgroups_path(Some(match &request.cgroup {
            Some(path) => PathBuf::from(path),
            None => Path::new("/").join(namespace).join(id),
        }))
        .set_devices(
            (!request.devices.is_empty() || request.privileges == Privileges::WithHostDevices)
                .then_some(nodes(request)?),
        )
        .set_seccomp(request.seccomp.clone())
        .set_rootfs_propagation(request.rootfs_propagation.clone())
        .set_masked_paths(Some(MASKED.map(str::to_owned).into()))
        .set_readonly_paths(Some(READ_ONLY.map(str::to_owned).into()));
    if request.privileges != Privileges::Ordinary {
        mount::make_writable(&mut mounts, &["sysfs", "cgroup"]);
        linux.set_masked_paths(None).set_readonly_paths(None).set_seccomp(None);
    }

    mounts.extend(request.mounts.iter().cloned());
    if request.net_host {
        mounts.extend(mount::host_name_resolution());
        let hostname = rustix::system::uname();
        let entry = format!("HOSTNAME={}", hostname.nodename().to_string_lossy());
        env = environment::merge(env.iter().map(String::as_str), [entry.as_str()]);
    }

    let image_cwd = config.and_then(|config| config.working_dir().as_deref()).filter(|cwd| !cwd.is_empty());
    let mut process = Process::default();
    process
        .set_terminal(request.terminal.then_some(true))
        .set_user(process_user(user))
        .set_args(Some(args(image, &request.args)?))
        .set_env(Some(env))
        .set_cwd(request.cwd.clone().unwrap_or_else(|| PathBuf::from(image_cwd.unwrap_or("/"))))
        .set_capabilities(Some(capability::sets(capabilities)))
        .set_rlimits(Some(vec![open_files()?]))
        .set_no_new_privileges((!request.allow_new_privileges).then_some(true))
        .set_apparmor_profile(request.apparmor_profile.clone());

    spec.set_version(VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(request.hostname.clone())
        .set_mounts(Some(mounts))
        .set_process(Some(process))
        .set_annotations((!request.annotations.is_empty()).then(|| request.annotations.clone()))
        .set_linux(Some(linux));
    Ok(spec)
}

/// The command line's words replace entrypoint and command both, as in ctr.
fn args(image: Option<&ImageConfiguration>, given: &[String]) -> Result<Vec<String>, SpecError> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let config = image.and_then(|image| image.config().as_ref()).ok_or(SpecError::NoCommand)?;
    let entrypoint = config.entrypoint().iter().flatten();
    let args: Vec<String> = entrypoint.chain(config.cmd().iter().flatten()).cloned().collect();
    if args.is_empty() { Err(SpecError::NoCommand) } else { Ok(args) }
}

fn process_user(user: &ProcessUser) -> User {
    let mut process = User::default();
    process
        .set_uid(user.uid)
        .set_gid(user.gid)
        .set_additional_gids((!user.additional_gids.is_empty()).then(|| user.additional_gids.clone()));
    process
}

fn open_files() -> Result<PosixRlimit, OciSpecError> {
    PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).hard(1024_u64).soft(1024_u64).build()
}

fn namespaces(request: &Request) -> Vec<LinuxNamespace> {
    let mut namespaces = namespace::defaults();
    if request.net_host {
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    }
    for joined in &request.join_namespaces {
        namespace::set(&mut namespaces, joined.clone());
    }
    namespaces
}

fn nodes(request: &Request) -> Result<Vec<oci_spec::runtime::LinuxDevice>, SpecError> {
    let mut nodes = match request.privileges {
        Privileges::WithHostDevices => device::of_the_host()?,
        _ => Vec::new(),
    };
    for path in &request.devices {
        nodes.extend(device::at(path)?);
    }
    Ok(nodes)
}

fn resources(request: &Request) -> Result<LinuxResources, SpecError> {
    let mut rules = vec![device::deny_all()];
    rules.extend(device::default_rules());
    if request.privileges == Privileges::WithHostDevices {
        rules = vec![device::allow_all()];
    }
    for path in &request.devices {
        rules.extend(device::at(path)?.iter().map(device::allow));
    }
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(rules));
    if let Some(limit) = request.memory_limit {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(limit));
        resources.set_memory(Some(memory));
    }
    resources.set_cpu(request.cpu.clone());
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn image() -> ImageConfiguration {
        serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": ["/entry"], "Cmd": ["serve"], "Env": ["PATH=/x", "A=1"], "WorkingDir": "/srv"},
            "rootfs": {"type": "layers", "diff_ids": []}
        }))
        .unwrap()
    }

    fn built(request: &Request) -> Value {
        let user = ProcessUser { uid: 1, gid: 2, additional_gids: vec![2, 3] };
        serde_json::to_value(build("ns", "box", Some(&image()), &user, request).unwrap()).unwrap()
    }

    #[test]
    fn the_image_says_what_runs() {
        let spec = built(&Request::default());
        assert_eq!(spec["process"]["args"], json!(["/entry", "serve"]));
        assert_eq!(spec["process"]["env"], json!(["PATH=/x", "A=1"]));
        assert_eq!(spec["process"]["cwd"], "/srv");
        assert_eq!(spec["process"]["user"], json!({"uid": 1, "gid": 2, "additionalGids": [2, 3]}));
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert_eq!(spec["root"]["path"], "rootfs");
        assert!(spec["root"].get("readonly").is_none());
        assert!(spec.get("hostname").is_none());
        assert_eq!(spec["linux"]["cgroupsPath"], "/ns/box");
        assert_eq!(spec["linux"]["resources"]["devices"][0], json!({"allow": false, "access": "rwm"}));
        assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn the_command_line_has_the_last_word() {
        let request = Request {
            args: vec!["sh".into()],
            cwd: Some("/w".into()),
            env: vec!["A=2".into()],
            terminal: true,
            net_host: true,
            read_only: true,
            hostname: Some("h".into()),
            allow_new_privileges: true,
            cgroup: Some("/other".into()),
            memory_limit: Some(1 << 20),
            devices: vec!["/dev/null".into()],
            ..Request::default()
        };
        let spec = built(&request);
        assert_eq!(spec["process"]["args"], json!(["sh"]));
        assert_eq!(spec["process"]["cwd"], "/w");
        let env = spec["process"]["env"].as_array().unwrap();
        assert!(env.contains(&json!("A=2")) && env.contains(&json!("TERM=xterm")), "{env:?}");
        assert!(env.iter().any(|entry| entry.as_str().unwrap().starts_with("HOSTNAME=")));
        assert!(spec["process"].get("noNewPrivileges").is_none());
        assert_eq!(spec["root"]["readonly"], true);
        assert_eq!(spec["linux"]["cgroupsPath"], "/other");
        assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 1 << 20);
        assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/null");
        assert!(!spec["linux"]["namespaces"].to_string().contains("network"));
        assert!(spec["mounts"].to_string().contains("/etc/resolv.conf"));
    }

    #[test]
    fn privileged_masks_nothing() {
        let spec = built(&Request { privileges: Privileges::WithHostDevices, ..Request::default() });
        assert!(spec["linux"].get("maskedPaths").is_none());
        assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
        assert!(spec["linux"]["devices"].as_array().unwrap().len() > 3);
    }

    #[test]
    fn somebody_has_to_say_what_runs() {
        let built = build("ns", "box", None, &ProcessUser::default(), &Request::default());
        assert!(matches!(built, Err(SpecError::NoCommand)));
    }
}
