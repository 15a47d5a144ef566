//! Folders of hosts: `<folder>/<host>/hosts.toml`, or certificates alone, as docker has them.

use super::hosts_file::{self, HostEntry};
use crate::error::ClientError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What is said about one registry.
#[derive(Debug)]
pub(super) struct HostFolder {
    pub(super) fingerprint: Fingerprint,
    pub(super) entries: Vec<HostEntry>,
}

/// Tells whether anything changed since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    folder: Option<PathBuf>,
    text: Vec<u8>,
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

/// What the first of `folders` that knows `domain` says of it; an entry for the registry itself where none does.
pub(super) fn read(folders: &[PathBuf], domain: &str) -> Result<HostFolder, ClientError> {
    for folder in folders {
        for name in names(domain) {
            let folder = folder.join(name);
            if folder.try_exists().map_err(|source| unreadable(&folder, source))? {
                return read_one(folder);
            }
        }
    }
    Ok(HostFolder { fingerprint: Fingerprint::default(), entries: vec![HostEntry::default()] })
}

/// In containerd's order: the port written in a way that every file system can have, as it is, and for all hosts.
fn names(domain: &str) -> Vec<String> {
    let with_port = domain.rsplit_once(':').filter(|(host, port)| !host.is_empty() && !port.contains(']'));
    let with_port = with_port.map(|(host, port)| format!("{host}_{port}_"));
    with_port.into_iter().chain([domain.to_owned(), "_default".to_owned()]).collect()
}

fn read_one(folder: PathBuf) -> Result<HostFolder, ClientError> {
    let file = folder.join("hosts.toml");
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(unreadable(&file, source)),
    };
    let entries = if text.is_empty() {
        vec![docker_style(&folder)?]
    } else {
        let wrong = |key: String, reason: String| ClientError::HostsFile { path: file.clone(), key, reason };
        let utf8 =
            std::str::from_utf8(&text).map_err(|_| wrong("text".to_owned(), "is not UTF-8".to_owned()))?;
        hosts_file::parse(utf8, &folder).map_err(|mistake| wrong(mistake.key, mistake.reason))?
    };
    let paths = entries.iter().flat_map(|entry| {
        entry.ca.iter().chain(entry.client.iter().flat_map(|(certificate, key)| [certificate, key]))
    });
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let files = paths.map(|path| (path.clone(), changed(path))).collect();
    Ok(HostFolder { fingerprint: Fingerprint { folder: Some(folder), text, files }, entries })
}

/// `*.crt` are authorities, `*.cert` are client certificates, with their keys in `*.key`.
fn docker_style(folder: &Path) -> Result<HostEntry, ClientError> {
    let failed = |source| unreadable(folder, source);
    let mut entry = HostEntry::default();
    let mut files = Vec::new();
    for file in folder.read_dir().map_err(failed)? {
        files.push(file.map_err(failed)?.path());
    }
    // So that the same one of several is chosen each time.
    files.sort();
    for path in files {
        match path.extension().and_then(|extension| extension.to_str()) {
            _ if path.is_dir() => {}
            Some("crt") => entry.ca.push(path),
            Some("cert") => {
                let key = Some(path.with_extension("key")).filter(|key| key.exists());
                let key = key.unwrap_or_else(|| path.clone());
                entry.client.push((path, key));
            }
            _ => {}
        }
    }
    Ok(entry)
}

fn unreadable(path: &Path, source: io::Error) -> ClientError {
    ClientError::HostsFolder { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn server(folders: &[PathBuf], domain: &str) -> Option<String> {
        let found = read(folders, domain).unwrap();
        found.entries.last().unwrap().url.as_ref().map(|url| url.authority.clone())
    }

    #[test]
    fn the_folder_is_found_under_containerds_names() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [one.path().to_owned(), "/nonexistent".into(), two.path().to_owned()];
        assert_eq!(server(&folders, "a.example"), None);
        write(two.path(), "_default/hosts.toml", "server = 'https://all'");
        assert_eq!(server(&folders, "a.example:5000").as_deref(), Some("all"));
        write(two.path(), "a.example:5000/hosts.toml", "server = 'https://colon'");
        assert_eq!(server(&folders, "a.example:5000").as_deref(), Some("colon"));
        write(two.path(), "a.example_5000_/hosts.toml", "server = 'https://underscores'");
        assert_eq!(server(&folders, "a.example:5000").as_deref(), Some("underscores"));
        assert_eq!(server(&folders, "a.example").as_deref(), Some("all"));
        // The first folder that has the host wins, also with a name of less priority.
        write(one.path(), "_default/hosts.toml", "server = 'https://first'");
        assert_eq!(server(&folders, "a.example:5000").as_deref(), Some("first"));
        assert_eq!(names("[::1]:5000"), ["[::1]_5000_", "[::1]:5000", "_default"]);
        assert_eq!(names("[::1]"), ["[::1]", "_default"]);
    }

    #[test]
    fn certificates_alone_are_for_the_registry_itself() {
        let root = tempfile::tempdir().unwrap();
        for name in ["b.crt", "a.crt", "pair.cert", "pair.key", "single.cert", "notes.txt", "sub.crt/x"] {
            write(root.path(), &format!("r.example/{name}"), "");
        }
        // An empty file counts as none.
        write(root.path(), "r.example/hosts.toml", "");
        let found = read(&[root.path().to_owned()], "r.example").unwrap();
        let [entry] = found.entries.as_slice() else { panic!("{found:?}") };
        let at = |name: &str| root.path().join("r.example").join(name);
        assert_eq!(entry.ca, [at("a.crt"), at("b.crt")]);
        let pairs = [(at("pair.cert"), at("pair.key")), (at("single.cert"), at("single.cert"))];
        assert_eq!(entry.client, pairs);
        assert_eq!((entry.url.as_ref(), entry.skip_verify), (None, None));
    }

    #[test]
    fn errors_name_file_and_key() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "r.example/hosts.toml", "[host.'https://m']\nca = 3");
        let error = read(&[root.path().to_owned()], "r.example").unwrap_err().to_string();
        let file = root.path().join("r.example/hosts.toml");
        let expected = "host.\"https://m\".ca has to be a path or an array of paths, not an integer";
        assert_eq!(error, format!("{}: {expected}", file.display()));
    }

    #[test]
    fn a_change_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let folders = [root.path().to_owned()];
        let print = || read(&folders, "r.example").unwrap().fingerprint;
        let none = print();
        write(root.path(), "r.example/hosts.toml", "ca = 'ca.pem'");
        let first = print();
        assert!(first != none && first == print());
        write(root.path(), "r.example/ca.pem", "");
        assert!(print() != first);
    }
}
