//! The command line as a whole: global flags and the subcommand.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use soci_store::Namespace;

use crate::command::Command;
use crate::duration;

const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
const DEFAULT_NAMESPACE: &str = "default";
const DEFAULT_ROOT: &str = "/var/lib/soci-snapshotter-grpc/";

/// The first `d.d.d` in it is what nerdctl reads (it demands 0.10.0 or later before it runs `convert`).
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

/// Command line of `soci`.
#[derive(Debug, Parser)]
#[command(
    name = "soci",
    version = VERSION,
    disable_version_flag = true,
    about = "Pull, run and index container images that start before they are downloaded",
    max_term_width = 120,
    arg_required_else_help = true
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// Print the version.
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every subcommand takes, before or behind its name.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GlobalArgs {
    /// Address of containerd's GRPC server.
    #[arg(short, long, global = true, env = "CONTAINERD_ADDRESS", default_value = DEFAULT_ADDRESS)]
    pub(crate) address: PathBuf,
    /// Namespace to use with commands.
    #[arg(short, long, global = true, env = "CONTAINERD_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    pub(crate) namespace: Namespace,
    /// Say on stderr what is going on.
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// Total time for the command, such as 90s or 5m; 0 for no limit.
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse, default_value = "0")]
    pub(crate) timeout: Duration,
    /// Time for connecting to containerd.
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse, default_value = "0")]
    pub(crate) connect_timeout: Duration,
    /// Accepted for compatibility: indices always live in containerd's content store.
    #[arg(long, global = true, value_enum, default_value = "containerd", hide = true)]
    pub(crate) content_store: ContentStoreKind,
    /// Accepted for compatibility: the daemon's root directory is not read.
    #[arg(long, global = true, default_value = DEFAULT_ROOT, hide = true)]
    pub(crate) root: PathBuf,
}

/// Where upstream may keep indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ContentStoreKind {
    /// containerd's content store.
    Containerd,
    /// The snapshotter's own directory; there is none here, containerd's is used.
    Soci,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn grammar_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn version_has_three_numbers_first() {
        let rendered = Args::command().render_version();
        let version: Vec<u32> = rendered
            .trim()
            .strip_prefix("soci version ")
            .unwrap()
            .split([' ', '.'])
            .take(3)
            .map(|part| part.parse().unwrap())
            .collect();
        assert!(version >= vec![0, 10, 0], "{rendered}");
    }

    #[test]
    fn global_flags_stand_anywhere() {
        for line in [
            "soci -n x -a /s --debug image ls",
            "soci image -n x ls -a /s --debug",
            "soci image tag a -n x b -a /s --debug",
            "soci i rpull ref --namespace x --address=/s --debug",
        ] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(args.global.namespace.as_str(), "x", "{line}");
            assert_eq!(args.global.address, PathBuf::from("/s"), "{line}");
            assert!(args.global.debug, "{line}");
        }
    }
}
