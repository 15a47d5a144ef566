//! The command line: upstream's flags, environment variables and subcommands.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::keeper::HolderOptions;
use crate::kernel::errand::Errand;
use crate::telemetry::Level;

/// Where the socket is when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
/// The configuration file that may be missing.
pub const DEFAULT_CONFIG: &str = "/etc/soci-snapshotter-grpc/config.toml";
/// Where snapshots and layers are kept.
pub const DEFAULT_ROOT: &str = "/var/lib/soci-snapshotter-grpc/";

/// containerd proxy snapshotter that mounts image layers before they are downloaded.
#[derive(Debug, Parser)]
#[command(name = "soci-snapshotter-grpc", version, args_conflicts_with_subcommands = false)]
pub struct Args {
    /// Socket to serve on: a path, unix://path, or fd:// for the one that systemd passes
    #[arg(long, env = "SOCI_SNAPSHOTTER_ADDRESS", default_value = DEFAULT_SOCKET, global = true)]
    pub address: Address,
    /// Configuration file; the default one may be missing
    #[arg(long, env = "SOCI_SNAPSHOTTER_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// panic, fatal, error, warn, info, debug or trace
    #[arg(
        long,
        env = "SOCI_SNAPSHOTTER_LOG_LEVEL",
        default_value = "info",
        value_name = "LEVEL",
        global = true
    )]
    pub log_level: Level,
    /// Directory for snapshots and layers
    #[arg(long, env = "SOCI_SNAPSHOTTER_ROOT", default_value = DEFAULT_ROOT, value_name = "DIR", global = true)]
    pub root: PathBuf,
    /// Stay as a supervisor that starts the daemon, and starts it again when it dies; for systems without systemd
    #[arg(long)]
    pub supervise: bool,
    /// What to do instead of serving
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program can do besides serving.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Print configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Hold descriptors for a daemon; started by it
    #[command(name = crate::keeper::client::COMMAND, hide = true)]
    KeepDescriptors(HolderOptions),
    /// Do what may wait in the kernel for a daemon; started by it
    #[command(name = crate::kernel::errand::COMMAND, hide = true, subcommand)]
    KernelErrand(Errand),
}

/// Which configuration to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Print every key with its default
    Default,
    /// Print what is in effect with the given configuration file
    Dump,
}

/// Where to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket of our own at this path.
    Path(PathBuf),
    /// The socket that systemd passes (`fd://`).
    Inherited,
}

/// An address that is none of the three forms.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Nothing at all, or only the scheme.
    #[error("the socket's path is empty")]
    Empty,
    /// A scheme other than `unix://` and `fd://`.
    #[error("unknown kind of address {0:?}: expected a path, unix://path or fd://")]
    Scheme(String),
}

// === impl Args ===

impl Args {
    /// From the command line, its first element being the program's name. Single-dash forms of long flags (`-root`, `-root=…`), which
    /// Go's flag package allows and old unit files use, are read as the double-dash ones.
    ///
    /// # Errors
    /// clap's own, which know how to print themselves and which status to exit with.
    pub fn parse_from_command_line(line: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.into_iter().map(with_two_dashes))
    }

    /// The file to read, and whether it was asked for (and so must exist).
    #[must_use]
    pub fn config_file(&self) -> (&Path, bool) {
        match &self.config {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_CONFIG), false),
        }
    }
}

fn with_two_dashes(argument: OsString) -> OsString {
    let long = argument.to_str().and_then(|text| text.strip_prefix('-')).is_some_and(|rest| {
        let name = rest.split_once('=').map_or(rest, |(name, _)| name);
        ["address", "config", "log-level", "root", "supervise", "version", "help"].contains(&name)
    });
    if !long {
        return argument;
    }
    let mut longer = OsString::from("-");
    longer.push(argument);
    longer
}

// === impl Address ===

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        if let Some(rest) = text.strip_prefix("fd://") {
            // systemd's own convention has nothing after it; a name is tolerated because the Go program does.
            let _ = rest;
            return Ok(Address::Inherited);
        }
        let path = match text.strip_prefix("unix://") {
            Some(path) => path,
            None if text.contains("://") => return Err(AddressError::Scheme(text.to_owned())),
            None => text,
        };
        if path.is_empty() { Err(AddressError::Empty) } else { Ok(Address::Path(PathBuf::from(path))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Args::parse_from_command_line(
            std::iter::once("soci-snapshotter-grpc").chain(line.iter().copied()).map(OsString::from),
        )
    }

    #[test]
    fn clap_accepts_the_definition() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn single_dashes_are_what_old_unit_files_use() {
        let args =
            parse(&["-address", "/a.sock", "-root=/r", "-log-level", "debug", "-config", "/c.toml"]).unwrap();
        assert_eq!(args.address, Address::Path("/a.sock".into()));
        assert_eq!(args.root, Path::new("/r"));
        assert_eq!(args.config_file(), (Path::new("/c.toml"), true));
        assert!(parse(&["-level", "debug"]).is_err());
    }

    #[test]
    fn defaults() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.address, Address::Path(DEFAULT_SOCKET.into()));
        assert_eq!(args.config_file(), (Path::new(DEFAULT_CONFIG), false));
        assert_eq!(args.log_level, Level::INFO);
        assert_eq!(args.command, None);
    }

    #[test]
    fn subcommands_and_the_version() {
        let args = parse(&["--config", "/x", "config", "dump"]).unwrap();
        assert_eq!(args.command, Some(Command::Config(ConfigCommand::Dump)));
        assert_eq!(
            parse(&["config", "default"]).unwrap().command,
            Some(Command::Config(ConfigCommand::Default))
        );
        assert_eq!(parse(&["-version"]).unwrap_err().kind(), clap::error::ErrorKind::DisplayVersion);
    }

    #[test]
    fn addresses() {
        assert_eq!("unix:///x.sock".parse::<Address>().unwrap(), Address::Path("/x.sock".into()));
        assert_eq!("fd://".parse::<Address>().unwrap(), Address::Inherited);
        for bad in ["", "unix://", "tcp://1.2.3.4:5", "http://x"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
