//! From TOML, naming every mistake at once.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::keys::{Config, Decompressor, Mirror, Slot, Visit};
use super::{Mistake, Size};

/// Unknown keys are left alone and case does not matter, both as in the Go program.
pub(super) fn read(text: &str, mistakes: &mut Vec<Mistake>) -> Config {
    let mut config = Config::default();
    match text.parse::<Table>() {
        Ok(table) => {
            let mut reader = Reader { table: &table, mistakes };
            config.visit(&mut reader);
        }
        Err(error) => mistakes.push(Mistake::new("", error.to_string().trim_end())),
    }
    config
}

struct Reader<'a> {
    table: &'a Table,
    mistakes: &'a mut Vec<Mistake>,
}

// === impl Reader ===

impl Reader<'_> {
    fn wrong(&mut self, path: &str, expected: &str, found: &Value) {
        self.mistakes
            .push(Mistake::new(path, format!("expected {expected}, found {} {found}", found.type_str())));
    }
}

impl Visit for Reader<'_> {
    fn key(&mut self, path: &'static str, _: &'static str, slot: Slot<'_>) {
        let value = match find(self.table, path) {
            Found::Value(value) => value,
            Found::Nothing => return,
            Found::NotATable(at, value) => {
                // Named once, however many keys the table would have.
                let mistake =
                    Mistake::new(at, format!("expected a table, found {} {value}", value.type_str()));
                if !self.mistakes.contains(&mistake) {
                    self.mistakes.push(mistake);
                }
                return;
            }
        };
        match (slot, value) {
            (Slot::Bool(slot), Value::Boolean(value)) => *slot = *value,
            (Slot::Bool(_), other) => self.wrong(path, "true or false", other),
            (Slot::Int(slot, bounds), Value::Integer(value)) if bounds.contains(value) => *slot = *value,
            (Slot::Int(_, bounds), Value::Integer(value)) => {
                self.mistakes.push(Mistake::new(
                    path,
                    format!("{value} is not within {} and {}", bounds.start(), bounds.end()),
                ));
            }
            (Slot::Int(..), other) => self.wrong(path, "a whole number", other),
            (Slot::Text(slot), Value::String(value)) => slot.clone_from(value),
            (Slot::Choice(slot, choices), Value::String(value)) => {
                match choices.iter().find(|choice| choice.eq_ignore_ascii_case(value)) {
                    Some(choice) => (*choice).clone_into(slot),
                    None => self
                        .mistakes
                        .push(Mistake::new(path, format!("{value:?} is none of {}", choices.join(", ")))),
                }
            }
            (Slot::Size(slot), Value::String(value)) => match value.parse::<Size>() {
                Ok(_) => slot.clone_from(value),
                Err(error) => self.mistakes.push(Mistake::new(path, error.to_string())),
            },
            (Slot::Text(_) | Slot::Choice(..) | Slot::Size(_), other) => self.wrong(path, "a string", other),
            (Slot::Hosts(slot), Value::Table(hosts)) => {
                for (host, table) in hosts {
                    slot.insert(host.clone(), self.mirrors(&format!("{path}.{host:?}"), table));
                }
            }
            (Slot::Streams(slot), Value::Table(streams)) => {
                for (name, table) in streams {
                    slot.insert(name.clone(), self.decompressor(&format!("{path}.{name}"), table));
                }
            }
            (Slot::Hosts(_) | Slot::Streams(_), other) => self.wrong(path, "a table", other),
        }
    }
}

impl Reader<'_> {
    fn mirrors(&mut self, path: &str, value: &Value) -> Vec<Mirror> {
        let Value::Table(table) = value else {
            self.wrong(path, "a table", value);
            return Vec::new();
        };
        let list = match get(table, "mirrors") {
            None => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => {
                self.wrong(&format!("{path}.mirrors"), "a list of tables", other);
                return Vec::new();
            }
        };
        let mut mirrors = Vec::new();
        for (number, value) in list.iter().enumerate() {
            let path = format!("{path}.mirrors[{number}]");
            let Value::Table(table) = value else {
                self.wrong(&path, "a table", value);
                continue;
            };
            let mut mirror = Mirror::default();
            for (key, value) in table {
                let at = format!("{path}.{key}");
                match (key.to_ascii_lowercase().as_str(), value) {
                    ("host", Value::String(host)) => mirror.host.clone_from(host),
                    ("host", other) => self.wrong(&at, "a string", other),
                    ("insecure", Value::Boolean(insecure)) => mirror.insecure = *insecure,
                    ("insecure", other) => self.wrong(&at, "true or false", other),
                    ("request_timeout_sec", Value::Integer(seconds)) => mirror.request_timeout_sec = *seconds,
                    ("request_timeout_sec", other) => self.wrong(&at, "a whole number", other),
                    _ => {}
                }
            }
            if mirror.host.is_empty() {
                self.mistakes.push(Mistake::new(&path, "no host"));
            }
            mirrors.push(mirror);
        }
        mirrors
    }

    fn decompressor(&mut self, path: &str, value: &Value) -> Decompressor {
        let mut stream = Decompressor::default();
        let Value::Table(table) = value else {
            self.wrong(path, "a table", value);
            return stream;
        };
        match get(table, "path") {
            Some(Value::String(program)) if program.starts_with('/') => stream.path.clone_from(program),
            Some(Value::String(program)) => self
                .mistakes
                .push(Mistake::new(&format!("{path}.path"), format!("{program:?} is not an absolute path"))),
            Some(other) => self.wrong(&format!("{path}.path"), "a string", other),
            None => self.mistakes.push(Mistake::new(path, "no path")),
        }
        match get(table, "args") {
            None => {}
            Some(Value::Array(args)) if args.iter().all(Value::is_str) => {
                stream.args = args.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            }
            Some(other) => self.wrong(&format!("{path}.args"), "a list of strings", other),
        }
        stream
    }
}

enum Found<'a> {
    Value(&'a Value),
    Nothing,
    NotATable(&'static str, &'a Value),
}

fn find<'a>(top: &'a Table, path: &'static str) -> Found<'a> {
    let mut table = top;
    let mut end = 0;
    for part in path.split('.') {
        let Some(value) = get(table, part) else { return Found::Nothing };
        end += part.len();
        if end == path.len() {
            return Found::Value(value);
        }
        match value {
            Value::Table(inner) => table = inner,
            other => return Found::NotATable(path.get(..end).unwrap_or(path), other),
        }
        end += 1;
    }
    Found::Nothing
}

/// The exact spelling first, then any case.
fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    table
        .get(key)
        .or_else(|| table.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value))
}

/// Names that may not be written as they are.
pub(super) fn known_streams(
    streams: &BTreeMap<String, Decompressor>,
    path: &str,
    mistakes: &mut Vec<Mistake>,
) {
    for name in streams.keys() {
        if name != "gzip" && name != "zstd" {
            mistakes.push(Mistake::new(
                &format!("{path}.{name}"),
                "only gzip and zstd streams can be given a program",
            ));
        }
    }
}
