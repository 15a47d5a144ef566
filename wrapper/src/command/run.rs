//! `soci run`.

mod seccomp;
mod session;
mod user;

use std::collections::HashMap;
use std::path::PathBuf;

use oci_registry::platform::Platform;
use oci_spec::runtime::{Capability, LinuxCpu, LinuxNamespace, Mount};
use prost_types::Any;

use self::session::Session;
use self::user::UserFlag;
use crate::context::Context;
use crate::error::Error;
use crate::rootfs;
use crate::spec::{self, Privileges};
use crate::task::options::{self, RuncOptions};
use crate::task::signals::Signals;
use crate::task::streams::Destination;

/// Where containerd's own clients put their fifos.
const FIFO_DIR: &str = "/run/containerd/fifo";

/// Length of the period that `--cpus` counts in, microseconds; ctr's.
const CPU_PERIOD: u64 = 100_000;

/// Arguments of `soci run`: those of `ctr run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci run --rm --net-host --snapshotter soci docker.io/library/redis:7 r1\n  soci run --detach --snapshotter soci docker.io/library/redis:7 r2\n  soci run --rm --snapshotter soci docker.io/library/redis:7 shell sh -c id",
    override_usage = "soci run [OPTIONS] IMAGE|ROOTFS ID [COMMAND] [ARG...]\n       soci run [OPTIONS] --config FILE ID"
)]
pub(crate) struct Args {
    /// Image to run, as `soci image ls` names it (with --rootfs a directory, with --config the container's ID).
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// The container's ID.
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// Command and arguments, instead of the image's entrypoint and command.
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,

    /// Remove the container after running; cannot be used with --detach.
    #[arg(long)]
    rm: bool,
    /// Detach from the task after it has started execution; cannot be used with --rm.
    #[arg(long, short, conflicts_with = "rm")]
    detach: bool,
    /// Allocate a TTY for the container.
    #[arg(long, short)]
    tty: bool,
    /// Send all IO to /dev/null.
    #[arg(long, conflicts_with_all = ["tty", "log_uri"])]
    null_io: bool,
    /// Log URI for what the container prints, such as file:///var/log/x.
    #[arg(long, value_name = "URI", conflicts_with = "tty")]
    log_uri: Option<String>,
    /// Directory used for storing IO FIFOs.
    #[arg(long, value_name = "DIR", default_value = FIFO_DIR)]
    fifo_dir: PathBuf,
    /// File path to write the task's pid.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Run image for specific platform.
    #[arg(long, value_parser = Platform::parse)]
    platform: Option<Platform>,
    /// Snapshotter name: `soci` for images that `image rpull` brought; the default is ctr's.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "overlayfs")]
    snapshotter: String,
    /// Labels added to the new snapshot for this container.
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = label)]
    snapshotter_label: Vec<(String, String)>,
    /// Use custom rootfs that is not managed by containerd snapshotter.
    #[arg(long)]
    rootfs: bool,

    /// Path to the runtime-specific spec config file.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Specify the working directory of the process.
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Specify additional container environment variables (e.g. FOO=bar); a name alone removes the image's.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Specify additional container environment variables in a file (e.g. FOO=bar, one per line).
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Specify additional labels (e.g. foo=bar).
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = label)]
    label: Vec<(String, String)>,
    /// Specify additional OCI annotations (e.g. foo=bar).
    #[arg(long, value_name = "KEY=VALUE", value_parser = annotation)]
    annotation: Vec<(String, String)>,
    /// Specify additional container mount (e.g. type=bind,src=/tmp,dst=/host,options=rbind:ro).
    #[arg(long, value_name = "MOUNT", value_parser = spec::mount::parse_flag)]
    mount: Vec<Mount>,
    /// Enable host networking for the container.
    #[arg(long)]
    net_host: bool,
    /// Set the container's host name.
    #[arg(long)]
    hostname: Option<String>,
    /// Username or user id, group optional (format: <name|uid>[:<group|gid>]). A value that names nobody in the image and has the form
    /// NAME:SECRET is taken as credentials for the image's registry and handed to the snapshotter.
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<UserFlag>,
    /// Run privileged container.
    #[arg(long)]
    privileged: bool,
    /// Don't pass all host devices to privileged container.
    #[arg(long)]
    privileged_without_host_devices: bool,
    /// Set the containers filesystem as readonly.
    #[arg(long)]
    read_only: bool,
    /// Turn off OCI spec's NoNewPrivileges feature flag.
    #[arg(long)]
    allow_new_privs: bool,
    /// Add Linux capabilities (set capabilities with 'CAP_' prefix).
    #[arg(long, value_name = "CAP", value_parser = spec::capability::parse)]
    cap_add: Vec<Capability>,
    /// Drop Linux capabilities (set capabilities with 'CAP_' prefix).
    #[arg(long, value_name = "CAP", value_parser = spec::capability::parse)]
    cap_drop: Vec<Capability>,
    /// Filter system calls with the profile of --seccomp-profile.
    #[arg(long, requires = "seccomp_profile")]
    seccomp: bool,
    /// File path to custom seccomp profile, in the runtime specification's JSON; --seccomp must be set too.
    #[arg(long, value_name = "FILE", requires = "seccomp")]
    seccomp_profile: Option<PathBuf>,
    /// Enable AppArmor with an existing custom profile.
    #[arg(long, value_name = "NAME")]
    apparmor_profile: Option<String>,
    /// File path to a device to add to the container; or a path to a directory tree of devices.
    #[arg(long, value_name = "PATH")]
    device: Vec<PathBuf>,
    /// Specify existing Linux namespaces to join at container runtime (format '<nstype>:<path>').
    #[arg(long, value_name = "TYPE:PATH", value_parser = spec::namespace::parse_flag)]
    with_ns: Vec<LinuxNamespace>,
    /// Cgroup path (to disable use of cgroup, set to "" explicitly).
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Memory limit (in bytes) for the container.
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<u64>,
    /// Set the number of cpus allowed.
    #[arg(long, conflicts_with_all = ["cpu_quota", "cpu_period"])]
    cpus: Option<f64>,
    /// Set the cpu shares.
    #[arg(long)]
    cpu_shares: Option<u64>,
    /// Limit CPU CFS quota.
    #[arg(long, allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Limit CPU CFS period.
    #[arg(long)]
    cpu_period: Option<u64>,
    /// Set the propagation of the container rootfs.
    #[arg(long, value_parser = ["private", "rprivate", "shared", "rshared", "slave", "rslave"])]
    rootfs_propagation: Option<String>,

    /// Runtime name.
    #[arg(long, default_value = "io.containerd.runc.v2")]
    runtime: String,
    /// Optional runtime config path.
    #[arg(long, value_name = "FILE")]
    runtime_config_path: Option<String>,
    /// Specify runc-compatible binary.
    #[arg(long, value_name = "PATH")]
    runc_binary: Option<String>,
    /// Specify runc-compatible root.
    #[arg(long, value_name = "DIR")]
    runc_root: Option<String>,
    /// Start runc with systemd cgroup manager.
    #[arg(long)]
    runc_systemd_cgroup: bool,
    /// Disable use of pivot-root (linux only).
    #[arg(long)]
    no_pivot: bool,
}

/// What a container is made of.
#[derive(Debug)]
enum Source {
    /// An image's snapshot.
    Image(String),
    /// A directory of the host.
    Directory(PathBuf),
    /// A whole specification in a file.
    SpecFile(PathBuf),
}

/// Runs `soci run`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let (source, id) = args.source_and_id()?;
    if args.privileged_without_host_devices && !args.privileged {
        return Err(usage("can't use 'privileged-without-host-devices' without 'privileged' specified"));
    }
    let request = args.request(&source)?;
    // From here on signals do not end this process.
    let mut signals = Signals::catch(context)
        .map_err(|source| Error::Io { what: "cannot catch signals".to_owned(), source })?;
    let mut session = Session::new(context, &args, id);
    let outcome = session.run(&mut signals, &source, request).await;
    signals.forget();
    let cleaned = tokio::select! {
        cleaned = session.clean_up() => cleaned,
        _ = signals.end_by_signal() => Err(Error::Interrupted),
    };
    let status = outcome?;
    cleaned?;
    match status.map(crate::task::ExitStatus::code) {
        None | Some(0) => Ok(()),
        Some(code) => Err(Error::Exit(code)),
    }
}

impl Args {
    fn source_and_id(&self) -> Result<(Source, String), Error> {
        let no_id = || usage("container id must be provided");
        if let Some(file) = &self.config {
            let id = self.image.clone().ok_or_else(no_id)?;
            return if self.id.is_some() {
                Err(usage("with spec config file, only container id should be provided"))
            } else {
                Ok((Source::SpecFile(file.clone()), id))
            };
        }
        let image = self.image.clone().ok_or_else(|| usage("image ref must be provided"))?;
        let id = self.id.clone().ok_or_else(no_id)?;
        if self.rootfs {
            let path = rootfs::absolute(image.as_ref()).map_err(|source| Error::Io {
                what: format!("cannot use {image} as root file system"),
                source,
            })?;
            return Ok((Source::Directory(path), id));
        }
        Ok((Source::Image(image), id))
    }

    fn request(&self, source: &Source) -> Result<spec::Request, Error> {
        let mut env = match &self.env_file {
            Some(file) => spec::environment::read_file(file).map_err(Error::command)?,
            None => Vec::new(),
        };
        env.extend(self.env.iter().cloned());
        Ok(spec::Request {
            args: self.command.clone(),
            cwd: self.cwd.clone(),
            env,
            mounts: self.mount.clone(),
            annotations: self.annotation.iter().chain(&self.label).cloned().collect(),
            terminal: self.tty,
            privileges: match (self.privileged, self.privileged_without_host_devices) {
                (false, _) => Privileges::Ordinary,
                (true, true) => Privileges::WithoutHostDevices,
                (true, false) => Privileges::WithHostDevices,
            },
            net_host: self.net_host,
            read_only: self.read_only,
            root: match source {
                Source::Directory(path) => Some(path.clone()),
                _ => None,
            },
            rootfs_propagation: self.rootfs_propagation.clone(),
            add_capabilities: self.cap_add.clone(),
            drop_capabilities: self.cap_drop.clone(),
            join_namespaces: self.with_ns.clone(),
            hostname: self.hostname.clone(),
            allow_new_privileges: self.allow_new_privs,
            cgroup: self.cgroup.clone(),
            memory_limit: self
                .memory_limit
                .filter(|&limit| limit != 0)
                .map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)),
            cpu: self.cpu()?,
            devices: self.device.clone(),
            seccomp: self
                .seccomp_profile
                .as_deref()
                .map(seccomp::read)
                .transpose()
                .map_err(Error::command)?,
            apparmor_profile: self.apparmor_profile.clone(),
        })
    }

    fn cpu(&self) -> Result<Option<LinuxCpu>, Error> {
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(self.cpu_shares.filter(|&shares| shares != 0));
        if let Some(cpus) = self.cpus {
            if !(cpus.is_finite() && cpus > 0.0 && cpus < 1e6) {
                return Err(usage("--cpus must be a positive number"));
            }
            #[expect(clippy::cast_possible_truncation, reason = "checked above")]
            let quota = (cpus * 100_000.0) as i64;
            cpu.set_quota(Some(quota)).set_period(Some(CPU_PERIOD));
        } else {
            cpu.set_quota(self.cpu_quota.filter(|&quota| quota != -1))
                .set_period(self.cpu_period.filter(|&period| period != 0));
        }
        Ok((cpu != LinuxCpu::default()).then_some(cpu))
    }

    fn destination(&self) -> Destination {
        match &self.log_uri {
            Some(uri) => Destination::Log(uri.clone()),
            None if self.null_io => Destination::Null,
            None => Destination::Here,
        }
    }

    fn runtime_options(&self) -> Option<Any> {
        if let Some(path) = &self.runtime_config_path {
            return Some(options::config_file(path));
        }
        options::runc(&RuncOptions {
            no_pivot_root: self.no_pivot,
            binary_name: self.runc_binary.clone().unwrap_or_default(),
            root: self.runc_root.clone().unwrap_or_default(),
            systemd_cgroup: self.runc_systemd_cgroup,
        })
    }

    fn labels(&self) -> HashMap<String, String> {
        self.label.iter().cloned().collect()
    }
}

fn usage(text: &str) -> Error {
    Error::Usage(text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, "true"));
    if key.is_empty() {
        Err("a label needs a name".to_owned())
    } else {
        Ok((key.to_owned(), value.to_owned()))
    }
}

fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("invalid key=value format annotation: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Args {
        Line::try_parse_from(std::iter::once("run").chain(line.split(' '))).unwrap().args
    }

    #[test]
    fn flags_end_where_the_command_begins() {
        let args = parse("--rm --net-host docker.io/library/x:1 box sh -c --rm -t");
        assert_eq!(args.command, ["sh", "-c", "--rm", "-t"]);
        assert!(args.rm && args.net_host && !args.tty);
        let (source, id) = args.source_and_id().unwrap();
        assert!(matches!(source, Source::Image(image) if image == "docker.io/library/x:1"));
        assert_eq!(id, "box");
    }

    #[test]
    fn a_spec_file_takes_the_place_of_the_image() {
        let (source, id) = parse("--config /spec.json box").source_and_id().unwrap();
        assert!(matches!(source, Source::SpecFile(_)));
        assert_eq!(id, "box");
        assert!(parse("--config /spec.json image box").source_and_id().is_err());
        assert_eq!(parse("image").source_and_id().unwrap_err().to_string(), "container id must be provided");
        assert!(parse("--rootfs /nowhere box").source_and_id().is_err());
    }

    #[test]
    fn labels_may_lack_a_value_annotations_may_not() {
        let args = parse("--label a --label b=c=d image box");
        assert_eq!(args.label, [("a".into(), "true".into()), ("b".into(), "c=d".into())]);
        assert!(annotation("a").is_err());
    }

    #[test]
    fn cpu_limits() {
        let cpu = parse("--cpus 1.5 image box").cpu().unwrap().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(150_000), Some(100_000)));
        let cpu = parse("--cpu-quota 5 --cpu-period 10 image box").cpu().unwrap().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(5), Some(10)));
        assert!(parse("--cpu-quota -1 image box").cpu().unwrap().is_none());
        assert!(parse("--cpus 0 image box").cpu().is_err());
    }

    #[test]
    fn the_user_is_not_shown() {
        // Debug output of the arguments must not hold a secret.
        let args = parse("--user alice:s3cr3t image box");
        assert!(!format!("{args:?}").contains("s3cr3t"));
    }
}
