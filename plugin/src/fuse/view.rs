//! What there is to see in a mounted layer: the layer's own tree and the state file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use erofs_image::{Image, Nid};
use fuser::{Errno, FileAttr, FileType, INodeNo};
use lazy_layer::{Layer, Mapping};

use super::attributes::{self, LAYER_FILE, Node, STATE_DIRECTORY, STATE_FILE};
use super::errno::ToErrno;
use super::mount::FuseOptions;
use super::state_file::{self, StateFile};
use crate::telemetry::Limiter;

/// How long the kernel may believe an answer: for ever, nothing changes.
pub(super) const FOREVER: Duration = Duration::from_secs(1 << 30);
const NEVER: Duration = Duration::ZERO;
/// What overlayfs asks for on an opaque directory: without and with the option `userxattr`. The image stores the first.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const USER_OPAQUE: &[u8] = b"user.overlay.opaque";

/// One layer as the kernel sees it, for the requests and for replies on other threads.
#[derive(Debug)]
pub(super) struct View {
    pub(super) layer: Arc<Layer>,
    mount_point: PathBuf,
    pub(super) state: StateFile,
    /// Whether the layer file can be found by its name.
    layer_file: bool,
    brake: Limiter,
}

/// Everything that a request can end with but success.
pub(super) type Outcome<T> = Result<T, Errno>;

impl View {
    pub(super) fn new(layer: Arc<Layer>, mount_point: &Path, options: &FuseOptions) -> View {
        let state = StateFile::new(&layer);
        View {
            layer,
            mount_point: mount_point.to_owned(),
            state,
            layer_file: options.layer_file,
            brake: Limiter::new(options.brake),
        }
    }

    /// The one boundary that no panic passes. A reply that is dropped by one tells the kernel EIO.
    pub(super) fn guard(&self, what: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(what)).is_err() {
            self.log("a request ended in a panic", &"see the message above");
        }
    }

    pub(super) fn log(&self, message: &str, error: &dyn std::fmt::Display) {
        let Some(suppressed) = self.brake.pass() else { return };
        let (mount_point, key) = (self.mount_point.display(), self.layer.key());
        tracing::error!(layer = %key.layer, "mount-point" = %mount_point, suppressed, error = %error, "{message}");
    }

    pub(super) fn image(&self) -> &Image<Mapping> {
        self.layer.image()
    }

    /// Damage of the metadata is worth a line; questions that make no sense are not.
    pub(super) fn checked<T>(&self, result: Result<T, erofs_image::ReadError>) -> Outcome<T> {
        result.map_err(|error| {
            let errno = error.errno();
            if errno == Errno::EIO {
                self.log("the layer's metadata is damaged", &error);
            }
            errno
        })
    }

    pub(super) fn attributes(&self, node: Node) -> Outcome<(Duration, FileAttr)> {
        Ok(match node {
            Node::Layer(nid) => (FOREVER, attributes::attributes(&self.checked(self.image().inode(nid))?)),
            Node::StateDirectory => {
                (FOREVER, attributes::own(STATE_DIRECTORY, FileType::Directory, 0o500, 0, UNIX_EPOCH))
            }
            Node::StateFile => {
                let now = SystemTime::now();
                (NEVER, attributes::own(STATE_FILE, FileType::RegularFile, 0o400, self.state.size(), now))
            }
            Node::LayerFile => {
                let size = self.layer.file_size();
                (FOREVER, attributes::own(LAYER_FILE, FileType::RegularFile, 0o400, size, UNIX_EPOCH))
            }
        })
    }

    /// The node of a name, None if there is none.
    pub(super) fn lookup(&self, parent: Node, name: &OsStr) -> Outcome<Option<Node>> {
        match parent {
            Node::Layer(nid) => {
                let found = self.checked(self.image().lookup(nid, name.as_bytes()))?;
                let state =
                    || (nid == Nid::ROOT && name == state_file::DIRECTORY).then_some(Node::StateDirectory);
                Ok(found.map(Node::Layer).or_else(state))
            }
            Node::StateDirectory if name == state_file::LAYER => {
                // Not "nothing", which the kernel would believe for ever: a successor may have it.
                if self.layer_file { Ok(Some(Node::LayerFile)) } else { Err(Errno::ENOENT) }
            }
            Node::StateDirectory => Ok((name == self.state.name()).then_some(Node::StateFile)),
            Node::StateFile | Node::LayerFile => Err(Errno::ENOTDIR),
        }
    }

    /// Hands the entries behind a cookie to `add` until it says that there is no room.
    pub(super) fn list(
        &self,
        directory: Node,
        cookie: u64,
        mut add: impl FnMut(INodeNo, u64, FileType, &OsStr) -> Outcome<bool>,
    ) -> Outcome<()> {
        match directory {
            Node::Layer(nid) => {
                for entry in self.checked(self.image().read_dir(nid, cookie))? {
                    let entry = self.checked(entry)?;
                    let (number, kind) = (attributes::number(entry.nid), attributes::file_type(entry.kind));
                    if add(number, entry.next_cookie, kind, OsStr::from_bytes(entry.name))? {
                        break;
                    }
                }
            }
            Node::StateDirectory => {
                let entries = [
                    (STATE_DIRECTORY, FileType::Directory, OsStr::new(".")),
                    (INodeNo::ROOT, FileType::Directory, OsStr::new("..")),
                    (STATE_FILE, FileType::RegularFile, self.state.name().as_os_str()),
                ];
                for ((number, kind, name), next) in entries.into_iter().zip(1..) {
                    if next > cookie && add(number, next, kind, name)? {
                        break;
                    }
                }
            }
            Node::StateFile | Node::LayerFile => return Err(Errno::ENOTDIR),
        }
        Ok(())
    }

    pub(super) fn xattr(&self, node: Node, name: &[u8]) -> Outcome<&[u8]> {
        let Node::Layer(nid) = node else { return Err(Errno::ENODATA) };
        // Whether a directory is opaque is ours to say: what an image calls `user.overlay.opaque` does not count.
        let name = if name == USER_OPAQUE { OPAQUE } else { name };
        self.checked(self.image().xattr(nid, name))?.ok_or(Errno::ENODATA)
    }

    /// Names, each with its zero byte. Without the opaque attribute: overlayfs' copy-up would write it into the container's layer.
    pub(super) fn xattr_names(&self, node: Node) -> Outcome<Vec<u8>> {
        let mut names = Vec::new();
        let Node::Layer(nid) = node else { return Ok(names) };
        for xattr in self.checked(self.image().xattrs(nid))? {
            let xattr = self.checked(xattr)?;
            if !xattr.is(OPAQUE) && !xattr.is(USER_OPAQUE) {
                names.extend(xattr.prefix.as_bytes());
                names.extend(xattr.suffix);
                names.push(0);
            }
        }
        Ok(names)
    }
}

/// An error with its sources, for the log.
pub(super) struct Chain<'a>(pub(super) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
