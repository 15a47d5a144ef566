//! `hosts.toml`, as containerd reads it (its `docs/hosts.md`): the keys of a host stand at the top for `server`, and in
//! a table `[host."URL"]` for each mirror; mirrors are asked in the order of the file, the server last.

use super::capabilities::Capabilities;
use super::mirror::RequestTimeout;
use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

/// One host of the file.
#[derive(Clone, Debug)]
pub(super) struct HostEntry {
    /// None: the registry that the folder is for.
    pub(super) url: Option<HostUrl>,
    pub(super) capabilities: Capabilities,
    pub(super) ca: Vec<PathBuf>,
    /// Certificates and their keys; the same file twice where it has both.
    pub(super) client: Vec<(PathBuf, PathBuf)>,
    pub(super) skip_verify: Option<bool>,
    pub(super) header: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
    /// Not in the file: of mirrors that come from elsewhere.
    pub(super) request_timeout: Option<RequestTimeout>,
}

/// Where a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostUrl {
    /// With the API's root as its path, and `/` at its end.
    pub(super) base: Url,
    /// Host and port as written.
    pub(super) authority: String,
}

/// What is wrong, and at which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) key: String,
    pub(super) reason: String,
}

impl Default for HostEntry {
    fn default() -> Self {
        Self {
            url: None,
            capabilities: Capabilities::ALL,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: None,
            header: HeaderMap::new(),
            dial_timeout: None,
            request_timeout: None,
        }
    }
}

/// All hosts of a file in `folder`, in the order in which they are asked.
pub(super) fn parse(text: &str, folder: &Path) -> Result<Vec<HostEntry>, Mistake> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count().saturating_add(1);
        // The message alone: with its excerpt of the file, a header's value could get into a log.
        Mistake { key: format!("line {line}"), reason: error.message().to_owned() }
    })?;
    let mut entries = Vec::new();
    match table.get("host") {
        None => {}
        Some(Value::Table(hosts)) => {
            for (url, host) in hosts {
                let prefix = format!("host.\"{url}\"");
                let Value::Table(host) = host else { return Err(wrong_type(&prefix, "a table", host)) };
                entries.push(
                    Keys { table: host, prefix: format!("{prefix}."), folder }.entry(Some((&prefix, url)))?,
                );
            }
        }
        Some(other) => return Err(wrong_type("host", "a table", other)),
    }
    let server = match table.get("server") {
        None => None,
        Some(Value::String(server)) => Some(server.as_str()).filter(|server| !server.is_empty()),
        Some(other) => return Err(wrong_type("server", "a string", other)),
    };
    let keys = Keys { table: &table, prefix: String::new(), folder };
    entries.push(keys.entry(server.map(|server| ("server", server)))?);
    Ok(entries)
}

/// The keys of one host.
struct Keys<'a> {
    table: &'a Table,
    prefix: String,
    folder: &'a Path,
}

impl Keys<'_> {
    fn entry(&self, url: Option<(&str, &str)>) -> Result<HostEntry, Mistake> {
        let override_path = self.flag("override_path")?.unwrap_or(false);
        Ok(HostEntry {
            url: url.map(|(key, url)| host_url(key, url, override_path)).transpose()?,
            capabilities: self.capabilities()?,
            ca: self.paths("ca")?,
            client: self.client()?,
            skip_verify: self.flag("skip_verify")?,
            header: self.header()?,
            dial_timeout: self.dial_timeout()?,
            request_timeout: None,
        })
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn mistake(&self, key: &str, reason: impl Into<String>) -> Mistake {
        Mistake { key: self.full(key), reason: reason.into() }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Mistake> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Boolean(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong_type(&self.full(key), "true or false", other)),
        }
    }

    /// None at all are all, as in containerd.
    fn capabilities(&self) -> Result<Capabilities, Mistake> {
        let names = match self.table.get("capabilities") {
            None => return Ok(Capabilities::ALL),
            Some(Value::Array(names)) if names.is_empty() => return Ok(Capabilities::ALL),
            Some(Value::Array(names)) => names,
            Some(other) => return Err(wrong_type(&self.full("capabilities"), "an array", other)),
        };
        let mut all = Capabilities::NONE;
        for name in names {
            let Value::String(name) = name else {
                return Err(wrong_type(&self.full("capabilities"), "an array of strings", name));
            };
            let one = Capabilities::from_name(name).ok_or_else(|| {
                self.mistake("capabilities", format!("{name:?} is none of pull, resolve, push, referrers"))
            })?;
            all = all.and(one);
        }
        Ok(all)
    }

    fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text)
    }

    /// A path or several.
    fn paths(&self, key: &str) -> Result<Vec<PathBuf>, Mistake> {
        let texts = self.strings(key, self.table.get(key), "a path or an array of paths")?;
        Ok(texts.into_iter().map(|text| self.path(text)).collect())
    }

    fn strings<'v>(&self, key: &str, value: Option<&'v Value>, what: &str) -> Result<Vec<&'v str>, Mistake> {
        match value {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(items)) => {
                let text =
                    |item: &'v Value| item.as_str().ok_or_else(|| wrong_type(&self.full(key), what, item));
                items.iter().map(text).collect()
            }
            Some(other) => Err(wrong_type(&self.full(key), what, other)),
        }
    }

    /// A file with certificate and key, several of them, or pairs of files.
    fn client(&self) -> Result<Vec<(PathBuf, PathBuf)>, Mistake> {
        const WHAT: &str = "a path, an array of paths, or an array of pairs of paths";
        let both = |text: &str| (self.path(text), self.path(text));
        match self.table.get("client") {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![both(text)]),
            Some(Value::Array(items)) => {
                let pair = |item: &Value| match item {
                    Value::String(text) => Ok(both(text)),
                    Value::Array(_) => match self.strings("client", Some(item), WHAT)?.as_slice() {
                        [certificate] | [certificate, ""] => Ok(both(certificate)),
                        [certificate, key] => Ok((self.path(certificate), self.path(key))),
                        other => Err(self.mistake("client", format!("{} paths make no pair", other.len()))),
                    },
                    other => Err(wrong_type(&self.full("client"), WHAT, other)),
                };
                items.iter().map(pair).collect()
            }
            Some(other) => Err(wrong_type(&self.full("client"), WHAT, other)),
        }
    }

    fn header(&self) -> Result<HeaderMap, Mistake> {
        let table = match self.table.get("header") {
            None => return Ok(HeaderMap::new()),
            Some(Value::Table(table)) => table,
            Some(other) => return Err(wrong_type(&self.full("header"), "a table", other)),
        };
        let mut header = HeaderMap::new();
        for (name, value) in table {
            let key = format!("header.{name}");
            let parsed = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| self.mistake(&key, "is not a header's name"))?;
            for text in self.strings(&key, Some(value), "a string or an array of strings")? {
                let mut value =
                    HeaderValue::from_str(text).map_err(|_| self.mistake(&key, "is not a header's value"))?;
                // It may be a password, so nobody is to see it.
                value.set_sensitive(true);
                header.append(parsed.clone(), value);
            }
        }
        Ok(header)
    }

    fn dial_timeout(&self) -> Result<Option<Duration>, Mistake> {
        match self.table.get("dial_timeout") {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => {
                let parsed = go_duration(text).filter(|timeout| !timeout.is_zero());
                let parsed =
                    parsed.ok_or_else(|| self.mistake("dial_timeout", "is not a duration such as \"3s\""))?;
                Ok(Some(parsed))
            }
            Some(other) => Err(wrong_type(&self.full("dial_timeout"), "a string such as \"3s\"", other)),
        }
    }
}

fn wrong_type(key: &str, what: &str, value: &Value) -> Mistake {
    Mistake { key: key.to_owned(), reason: format!("has to be {what}, not {}", type_of(value)) }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a float",
        Value::Boolean(_) => "a boolean",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "an array",
        Value::Table(_) => "a table",
    }
}

/// The API's root of `text`, a URL or a host: `/v2` is added, unless it is there or the path is to be taken as it is.
pub(super) fn host_url(key: &str, text: &str, override_path: bool) -> Result<HostUrl, Mistake> {
    let wrong = |reason: &str| Mistake { key: key.to_owned(), reason: reason.to_owned() };
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut base = Url::parse(&full).map_err(|_| wrong("is not a URL"))?;
    if !matches!(base.scheme(), "http" | "https") {
        return Err(wrong("is neither http nor https"));
    }
    if !base.username().is_empty() || base.password().is_some() {
        return Err(wrong("has a user name: credentials come from docker's configuration"));
    }
    if base.query().is_some() || base.fragment().is_some() {
        return Err(wrong("has a query or a fragment"));
    }
    let written = full.split_once("://").map(|(_, rest)| rest).unwrap_or_default();
    let authority = match written.split('/').next().unwrap_or_default() {
        // People mean the registry; that host has only a web page.
        "docker.io" | "index.docker.io" => {
            base.set_host(Some("registry-1.docker.io")).map_err(|_| wrong("is not a URL"))?;
            "registry-1.docker.io"
        }
        authority => authority,
    };
    let authority = authority.to_ascii_lowercase();
    let path = base.path().trim_end_matches('/');
    let path = match path.ends_with("/v2") || override_path {
        true => format!("{path}/"),
        false => format!("{path}/v2/"),
    };
    base.set_path(&path);
    Ok(HostUrl { base, authority })
}

/// Go's notation of durations, without its fractions: `1m30s`, `500ms`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            _ => return None,
        };
        sum = sum.checked_add(part)?;
        rest = tail;
    }
    Some(sum)
}

#[cfg(test)]
#[path = "hosts_file_tests.rs"]
mod tests;
