//! `soci plugins`.

use containerd_client::services::v1::{Plugin, PluginsRequest};

use crate::context::Context;
use crate::error::Error;
use crate::table::{self, Layout};
use crate::terminal;

/// How `ctr` lays its table of plugins out.
const LAYOUT: Layout = Layout { min_width: 4, padding: 4 };

/// Arguments of `soci plugins`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List containerd plugins.
    #[command(visible_alias = "ls")]
    List(ListArgs),
}

/// Arguments of `soci plugins list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci plugins ls\n  soci plugins ls id==soci")]
struct ListArgs {
    /// Print only the plugin ids.
    #[arg(short, long)]
    quiet: bool,
    /// Print detailed information about each plugin.
    #[arg(short, long)]
    detailed: bool,
    /// Expressions of containerd's filter language, such as id==soci.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// Runs `soci plugins`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let Command::List(args) = args.command;
    let containerd = context.containerd();
    let request = containerd.request(PluginsRequest { filters: args.filters });
    let mut client = containerd.introspection_client();
    let plugins = containerd.call("list", "plugins", client.plugins(request)).await?.plugins;
    if args.quiet {
        return plugins.iter().try_for_each(|plugin| terminal::line(&plugin.id));
    }
    if args.detailed {
        return plugins.iter().try_for_each(|plugin| terminal::line(&details(plugin)));
    }
    let mut rows = vec![["TYPE", "ID", "PLATFORMS", "STATUS", ""].map(str::to_owned).to_vec()];
    rows.extend(plugins.iter().map(row));
    let mut out = Vec::new();
    table::write(&mut out, LAYOUT, &rows)
        .map_err(|source| Error::Io { what: "lay the table out".to_owned(), source })?;
    terminal::print(&out)
}

fn row(plugin: &Plugin) -> Vec<String> {
    vec![
        plugin.r#type.clone(),
        plugin.id.clone(),
        platforms(plugin),
        status(plugin).to_owned(),
        String::new(),
    ]
}

fn platforms(plugin: &Plugin) -> String {
    let names: Vec<String> = plugin
        .platforms
        .iter()
        .map(|platform| {
            let mut name = format!("{}/{}", platform.os, platform.architecture);
            if !platform.variant.is_empty() {
                name.push('/');
                name.push_str(&platform.variant);
            }
            name
        })
        .collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

fn status(plugin: &Plugin) -> &'static str {
    match &plugin.init_err {
        None => "ok",
        Some(error) if error.message.contains("skip plugin") => "skip",
        Some(_) => "error",
    }
}

fn details(plugin: &Plugin) -> String {
    let mut rows = vec![
        ["Type:".to_owned(), plugin.r#type.clone()],
        ["ID:".to_owned(), plugin.id.clone()],
        ["Platforms:".to_owned(), platforms(plugin)],
    ];
    if !plugin.capabilities.is_empty() {
        rows.push(["Capabilities:".to_owned(), plugin.capabilities.join(",")]);
    }
    let mut exports: Vec<String> =
        plugin.exports.iter().map(|(key, value)| format!("{key}={value}")).collect();
    exports.sort();
    rows.extend(exports.into_iter().map(|export| ["Exports:".to_owned(), export]));
    if let Some(error) = &plugin.init_err {
        rows.push(["Error:".to_owned(), format!("code {}: {}", error.code, error.message)]);
    }
    let lines = rows.into_iter().map(|[name, value]| format!("{name:<14}{value}\n"));
    lines.collect::<String>()
}
