//! Names in a tar: cleaning, and the meaning of `.wh.`.

use super::{MAX_PATH, NAME_MAX, TreeError, lossy};

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the last component of a path means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// An ordinary file.
    Plain(&'a [u8]),
    /// The name below is hidden.
    Whiteout(&'a [u8]),
    /// The directory hides those below.
    Opaque,
    /// AUFS' own.
    Aufs(&'a [u8]),
}

/// The components of `/` + `path`, cleaned lexically. The root has none.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            _ if component.len() > NAME_MAX => {
                return Err(TreeError::NameTooLong { length: component.len() });
            }
            _ if component.contains(&0) => return Err(TreeError::InvalidName { path: lossy(path) }),
            _ => components.push(component),
        }
    }
    let length = components.iter().fold(0_usize, |sum, component| sum.saturating_add(component.len() + 1));
    if length > MAX_PATH {
        return Err(TreeError::PathTooLong { length });
    }
    Ok(components)
}

/// What leads to an ordinary file, as it is written, and the file's name. None where only [`clean`] can tell.
///
/// Of two paths with the same first part both lead to the same directory.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let parents = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash.saturating_add(1));
    let (parents, name) = path.split_at_checked(parents)?;
    let ordinary = !matches!(name, b"" | b"." | b"..") && !name.starts_with(WHITEOUT);
    let possible = name.len() <= NAME_MAX && path.len() < MAX_PATH && !name.contains(&0);
    (ordinary && possible).then_some((parents, name))
}

/// What a last component means; None if it is a whiteout that hides nothing a directory can have.
pub(super) fn classify(name: &[u8]) -> Option<Name<'_>> {
    if name == OPAQUE {
        return Some(Name::Opaque);
    }
    if name.starts_with(AUFS) {
        return Some(Name::Aufs(name));
    }
    match name.strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => None,
        Some(hidden) => Some(Name::Whiteout(hidden)),
        None => Some(Name::Plain(name)),
    }
}

/// True if a path leads into what AUFS left behind. Nothing can be below a whiteout, so that counts as well.
pub(super) fn is_aufs(parents: &[&[u8]], last: &Name<'_>) -> bool {
    matches!(last, Name::Aufs(_)) || parents.iter().any(|parent| parent.starts_with(WHITEOUT))
}
