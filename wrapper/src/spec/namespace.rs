//! Namespaces of the container: new ones, the host's, or others' (`--with-ns`).

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use thiserror::Error;

/// `--with-ns` is not of the form `type:path`.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum NamespaceFlagError {
    #[error("joining a Linux namespace using --with-ns requires the format 'nstype:path'")]
    Format,
    #[error("the Linux namespace type specified in --with-ns is not valid: {typ}")]
    UnknownType { typ: String },
}

/// Reads one `--with-ns` value: `network:/proc/1/ns/net` and the like, with the runtime specification's names.
///
/// # Errors
/// Not two parts, or a type that Linux does not have.
pub(crate) fn parse_flag(value: &str) -> Result<LinuxNamespace, NamespaceFlagError> {
    let (typ, path) = value.split_once(':').ok_or(NamespaceFlagError::Format)?;
    if path.is_empty() || path.contains(':') {
        return Err(NamespaceFlagError::Format);
    }
    let typ = LinuxNamespaceType::try_from(typ)
        .map_err(|_| NamespaceFlagError::UnknownType { typ: typ.to_owned() })?;
    Ok(namespace(typ, Some(PathBuf::from(path))))
}

/// New namespaces for everything but users and control groups, as containerd's default has it.
pub(super) fn defaults() -> Vec<LinuxNamespace> {
    [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
    ]
    .map(|typ| namespace(typ, None))
    .into()
}

/// Takes the place of the namespace of its type, or is added.
pub(super) fn set(namespaces: &mut Vec<LinuxNamespace>, namespace: LinuxNamespace) {
    match namespaces.iter_mut().find(|old| old.typ() == namespace.typ()) {
        Some(old) => *old = namespace,
        None => namespaces.push(namespace),
    }
}

fn namespace(typ: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ).set_path(path);
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_has_type_and_path() {
        let joined = parse_flag("network:/proc/1/ns/net").unwrap();
        assert_eq!(joined.typ(), LinuxNamespaceType::Network);
        assert_eq!(joined.path().as_deref(), Some("/proc/1/ns/net".as_ref()));
        assert_eq!(parse_flag("network"), Err(NamespaceFlagError::Format));
        assert_eq!(parse_flag("network:"), Err(NamespaceFlagError::Format));
        assert_eq!(parse_flag("network:a:b"), Err(NamespaceFlagError::Format));
        assert_eq!(parse_flag("x:/y"), Err(NamespaceFlagError::UnknownType { typ: "x".into() }));
    }

    #[test]
    fn joining_replaces_the_new_one() {
        let mut namespaces = defaults();
        let before = namespaces.len();
        set(&mut namespaces, parse_flag("ipc:/ns").unwrap());
        assert_eq!(namespaces.len(), before);
        set(&mut namespaces, parse_flag("user:/ns").unwrap());
        assert_eq!(namespaces.len(), before + 1);
    }
}
