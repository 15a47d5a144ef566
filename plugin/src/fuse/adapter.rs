//! The kernel's requests on one layer. Thin: no state but what the mount was made with.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use erofs_image::{Image, Nid};
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use lazy_layer::{Layer, Mapping};

use super::attributes::{self, Node, STATE_DIRECTORY, STATE_FILE};
use super::errno::ToErrno;
use super::state_file::{self, StateFile};
use super::throttle::Throttle;

/// How long the kernel may believe an answer: for ever, nothing changes.
const FOREVER: Duration = Duration::from_secs(1 << 30);
const NEVER: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
/// Reads that the kernel may have in flight ahead of their readers.
const MAX_BACKGROUND: u16 = 64;
/// What overlayfs asks for on an opaque directory: without and with the option `userxattr`. The image stores the first.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const USER_OPAQUE: &[u8] = b"user.overlay.opaque";

/// One layer as a file system.
#[derive(Debug)]
pub(super) struct LayerFs {
    shared: Arc<Shared>,
    /// The kernel takes "not implemented" from open and opendir as "need not be asked".
    no_open: bool,
    no_opendir: bool,
}

/// What replies on other threads need.
#[derive(Debug)]
struct Shared {
    layer: Arc<Layer>,
    mount_point: PathBuf,
    state: StateFile,
    throttle: Throttle,
}

/// Everything that a request can end with but success.
type Outcome<T> = Result<T, Errno>;

impl Shared {
    /// The one boundary that no panic passes. A reply that is dropped by one tells the kernel EIO.
    fn guard(&self, what: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(what)).is_err() {
            self.log("a request ended in a panic", &"see the message above");
        }
    }

    fn log(&self, message: &str, error: &dyn std::fmt::Display) {
        let Some(suppressed) = self.throttle.pass() else { return };
        let (mount_point, key) = (self.mount_point.display(), self.layer.key());
        tracing::error!(layer = %key.layer, "mount-point" = %mount_point, suppressed, error = %error, "{message}");
    }

    fn image(&self) -> &Image<Mapping> {
        self.layer.image()
    }

    /// Damage of the metadata is worth a line; questions that make no sense are not.
    fn checked<T>(&self, result: Result<T, erofs_image::ReadError>) -> Outcome<T> {
        result.map_err(|error| {
            let errno = error.errno();
            if errno == Errno::EIO {
                self.log("the layer's metadata is damaged", &error);
            }
            errno
        })
    }

    fn attributes(&self, node: Node) -> Outcome<(Duration, FileAttr)> {
        Ok(match node {
            Node::Layer(nid) => (FOREVER, attributes::attributes(&self.checked(self.image().inode(nid))?)),
            Node::StateDirectory => {
                (FOREVER, attributes::own(STATE_DIRECTORY, FileType::Directory, 0o500, 0, UNIX_EPOCH))
            }
            Node::StateFile => {
                let now = SystemTime::now();
                (NEVER, attributes::own(STATE_FILE, FileType::RegularFile, 0o400, self.state.size(), now))
            }
        })
    }

    /// The node of a name, None if there is none.
    fn lookup(&self, parent: Node, name: &OsStr) -> Outcome<Option<Node>> {
        match parent {
            Node::Layer(nid) => {
                let found = self.checked(self.image().lookup(nid, name.as_bytes()))?;
                let state =
                    || (nid == Nid::ROOT && name == state_file::DIRECTORY).then_some(Node::StateDirectory);
                Ok(found.map(Node::Layer).or_else(state))
            }
            Node::StateDirectory => Ok((name == self.state.name()).then_some(Node::StateFile)),
            Node::StateFile => Err(Errno::ENOTDIR),
        }
    }

    /// Hands the entries behind a cookie to `add` until it says that there is no room.
    fn list(
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
            Node::StateFile => return Err(Errno::ENOTDIR),
        }
        Ok(())
    }

    fn xattr(&self, node: Node, name: &[u8]) -> Outcome<&[u8]> {
        let Node::Layer(nid) = node else { return Err(Errno::ENODATA) };
        // Whether a directory is opaque is ours to say: what an image calls `user.overlay.opaque` does not count.
        let name = if name == USER_OPAQUE { OPAQUE } else { name };
        self.checked(self.image().xattr(nid, name))?.ok_or(Errno::ENODATA)
    }

    /// Names, each with its zero byte. Without the opaque attribute: overlayfs' copy-up would write it into the container's layer.
    fn xattr_names(&self, node: Node) -> Outcome<Vec<u8>> {
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

impl LayerFs {
    pub(super) fn new(layer: Arc<Layer>, mount_point: &Path) -> LayerFs {
        let state = StateFile::new(&layer);
        let shared = Shared { layer, mount_point: mount_point.to_owned(), state, throttle: Throttle::new() };
        LayerFs { shared: Arc::new(shared), no_open: false, no_opendir: false }
    }

    fn has_xattrs(&self) -> bool {
        self.shared.image().has_xattrs()
    }
}

/// A value or its size, as the caller's buffer wants it.
fn reply_xattr(reply: ReplyXattr, size: u32, value: Outcome<&[u8]>) {
    match value {
        Err(errno) => reply.error(errno),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(length) if size == 0 => reply.size(length),
            Ok(length) if length <= size => reply.data(value),
            _ => reply.error(Errno::ERANGE),
        },
    }
}

impl Filesystem for LayerFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_PARALLEL_DIROPS;
        let unsupported = |flags| io::Error::other(format!("the kernel withdrew {flags:?}"));
        config.add_capabilities(wanted & offered).map_err(unsupported)?;
        let out_of_range =
            |limit| io::Error::other(format!("{MAX_BACKGROUND} requests, {limit} are possible"));
        config.set_max_background(MAX_BACKGROUND).map_err(out_of_range)?;
        self.no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.shared.guard(|| {
            let found = self.shared.lookup(Node::of(parent), name);
            match found.and_then(|node| node.map(|node| self.shared.attributes(node)).transpose()) {
                Ok(Some((ttl, attributes))) => reply.entry_with_ttls(&ttl, &FOREVER, &attributes, GENERATION),
                // Number 0: the kernel remembers that there is nothing.
                Ok(None) => {
                    let nothing = attributes::own(INodeNo(0), FileType::RegularFile, 0, 0, UNIX_EPOCH);
                    reply.entry(&FOREVER, &nothing, GENERATION);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.shared.guard(|| match self.shared.attributes(Node::of(number)) {
            Ok((ttl, attributes)) => reply.attr(&ttl, &attributes),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        self.shared.guard(|| {
            let target = match Node::of(number) {
                Node::Layer(nid) => self.shared.checked(self.shared.image().read_link(nid)),
                Node::StateDirectory | Node::StateFile => Err(Errno::EINVAL),
            };
            match target {
                Ok(target) => reply.data(target),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let handle = FileHandle(number.0);
        if self.no_open {
            reply.error(Errno::ENOSYS);
        } else if flags.acc_mode() != OpenAccMode::O_RDONLY {
            reply.error(Errno::EROFS);
        } else if number == STATE_FILE {
            reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO);
        } else {
            reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.shared.guard(|| match Node::of(number) {
            Node::Layer(nid) => {
                let shared = Arc::clone(&self.shared);
                let answer = move |data: Result<&[u8], lazy_layer::ReadError>| {
                    shared.guard(|| match data {
                        Ok(data) => reply.data(data),
                        Err(error) => {
                            reply.error(error.errno());
                            shared.state.failed(&error);
                            shared.log("unable to read a file of a layer", &Chain(&error));
                        }
                    });
                };
                self.shared.layer.read(nid, offset, size, Box::new(answer));
            }
            Node::StateFile => {
                let content = self.shared.state.content(&self.shared.layer.status());
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let end =
                    start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(content.len());
                reply.data(content.get(start..end).unwrap_or_default());
            }
            Node::StateDirectory => reply.error(Errno::EISDIR),
        });
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(number.0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.shared.guard(|| {
            let add = |number, next, kind, name: &OsStr| Ok(reply.add(number, next, kind, name));
            match self.shared.list(Node::of(number), offset, add) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.shared.guard(|| {
            let add = |number, next, _, name: &OsStr| {
                let (ttl, attributes) = self.shared.attributes(Node::of(number))?;
                Ok(reply.add(number, next, name, &ttl, &attributes, GENERATION))
            };
            match self.shared.list(Node::of(number), offset, add) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.has_xattrs() {
            // The kernel does not ask this mount again.
            return reply.error(Errno::ENOSYS);
        }
        self.shared.guard(|| reply_xattr(reply, size, self.shared.xattr(Node::of(number), name.as_bytes())));
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        self.shared.guard(|| match self.shared.xattr_names(Node::of(number)) {
            Ok(names) => reply_xattr(reply, size, Ok(&names)),
            Err(errno) => reply.error(errno),
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        let image = self.shared.image();
        let blocks = image.tar_start().saturating_add(image.tar_size()).div_ceil(u64::from(BLOCK));
        reply.statfs(blocks, 0, 0, image.inodes(), 0, BLOCK, 255, BLOCK);
    }

    // "Not implemented" where the kernel then does without asking.

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    // A layer is read-only; the mount is not marked so, because upstream's is not.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}

/// An error with its sources, for the log.
struct Chain<'a>(&'a dyn std::error::Error);

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
