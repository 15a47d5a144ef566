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

/// The first `d.d.d` in it is what nerdctl reads (it demands 0.10.0 or later before it runs `convert`). Behind it the revision, where that was
/// known to the build.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), env!("SOCI_REVISION"));

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

    /// Commands that do something, with the words that name them.
    fn leaves(command: &clap::Command, words: &str, found: &mut Vec<(String, clap::Command)>) {
        let words = format!("{words}{} ", command.get_name());
        let below: Vec<_> = command.get_subcommands().filter(|below| below.get_name() != "help").collect();
        if below.is_empty() {
            found.push((words.clone(), command.clone()));
        }
        below.into_iter().for_each(|below| leaves(below, &words, found));
    }

    /// The words of the command that a line, up to a pipe, is understood as.
    fn understood(line: &str) -> String {
        let ours = line.split(" | ").next().unwrap();
        let parsed = Args::command().try_get_matches_from(ours.split(' '));
        let mut matches = &parsed.unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut words = "soci ".to_owned();
        while let Some((name, below)) = matches.subcommand() {
            words.push_str(&format!("{name} "));
            matches = below;
        }
        words
    }

    #[test]
    fn each_command_has_examples_that_it_understands() {
        let mut found = Vec::new();
        leaves(&Args::command(), "", &mut found);
        assert!(found.len() > 20, "{found:?}");
        for (words, command) in found {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples =
                help.strip_prefix("Examples:\n").unwrap_or_else(|| panic!("{words}has no examples"));
            for line in examples.lines() {
                // Wrapped, it could not be pasted.
                assert!(line.len() < 80, "{line}");
                let line = line.strip_prefix("  ").unwrap_or_else(|| panic!("{line:?}"));
                let named = match line.split_once("$(") {
                    Some((before, rest)) => {
                        let (inner, behind) = rest.rsplit_once(')').unwrap();
                        assert!(understood(inner).starts_with("soci "));
                        understood(&format!("{before}it{behind}"))
                    }
                    None => understood(line),
                };
                assert_eq!(named, words, "{line}");
            }
        }
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
