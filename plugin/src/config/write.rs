//! To TOML: what `config default` and `config dump` print, and what config.toml.example holds.

use std::fmt::Write as _;

use toml::Value;

use super::keys::{Config, Slot, Visit};

/// Every key with its value; with its meaning above it when `explained`.
pub(super) fn write(config: &Config, explained: bool) -> String {
    let mut writer = Writer { out: String::new(), table: "", explained };
    config.clone().visit(&mut writer);
    writer.out
}

struct Writer {
    out: String,
    table: &'static str,
    explained: bool,
}

// === impl Writer ===

impl Writer {
    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }
}

impl Visit for Writer {
    fn key(&mut self, path: &'static str, meaning: &'static str, slot: Slot<'_>) {
        let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
        if table != self.table {
            self.table = table;
            if !self.out.is_empty() {
                self.out.push('\n');
            }
            let _ = writeln!(self.out, "[{table}]");
        }
        if self.explained {
            let _ = writeln!(self.out, "# {meaning}");
        }
        match slot {
            Slot::Bool(value) => self.line(&format!("{name} = {value}")),
            Slot::Int(value, _) => self.line(&format!("{name} = {value}")),
            Slot::Text(value) | Slot::Choice(value, _) | Slot::Size(value) => {
                self.line(&format!("{name} = {}", quoted(value)))
            }
            // As dotted keys, so that what follows stays in its table.
            Slot::Hosts(hosts) if hosts.is_empty() => {
                if self.explained {
                    self.line("# host.\"docker.io\".mirrors = [{ host = \"mirror.example:5000\", insecure = false, request_timeout_sec = 0 }]");
                }
            }
            Slot::Hosts(hosts) => {
                for (host, mirrors) in hosts {
                    let list: Vec<String> = mirrors
                        .iter()
                        .map(|m| {
                            format!(
                                "{{ host = {}, insecure = {}, request_timeout_sec = {} }}",
                                quoted(&m.host),
                                m.insecure,
                                m.request_timeout_sec
                            )
                        })
                        .collect();
                    self.line(&format!("{name}.{}.mirrors = [{}]", quoted(host), list.join(", ")));
                }
            }
            Slot::Streams(streams) if streams.is_empty() => {
                if self.explained {
                    self.line(
                        "# decompress_streams.gzip = { path = \"/usr/bin/unpigz\", args = [\"-d\", \"-c\"] }",
                    );
                }
            }
            Slot::Streams(streams) => {
                for (stream, program) in streams {
                    let args: Vec<String> = program.args.iter().map(|arg| quoted(arg)).collect();
                    self.line(&format!(
                        "{name}.{} = {{ path = {}, args = [{}] }}",
                        quoted(stream),
                        quoted(&program.path),
                        args.join(", ")
                    ));
                }
            }
        }
    }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
