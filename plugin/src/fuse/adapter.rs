//! The kernel's requests on one layer. Thin: no state but what the mount was made with.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use lazy_layer::Layer;

use super::attributes::{self, Node, STATE_FILE};
use super::errno::ToErrno;
use super::mount::FuseOptions;
use super::unanswered::Asked;
use super::view::{Chain, FOREVER, Outcome, View};
use crate::failpoint;
use crate::keeper::{Agreed, Hold};

const GENERATION: Generation = Generation(0);

/// One layer as a file system.
#[derive(Debug)]
pub(super) struct LayerFs {
    view: Arc<View>,
    agreed: Arc<OnceLock<Agreed>>,
    asked: Arc<Asked>,
    max_background: u16,
    /// The kernel takes "not implemented" from open and opendir as "need not be asked".
    no_open: bool,
    no_opendir: bool,
}

impl LayerFs {
    pub(super) fn new(
        layer: Arc<Layer>,
        mount_point: &Path,
        options: &FuseOptions,
        hold: Arc<Hold>,
    ) -> LayerFs {
        LayerFs {
            view: Arc::new(View::new(layer, mount_point, options)),
            agreed: Arc::default(),
            asked: Arc::new(Asked::new(hold)),
            max_background: options.max_background,
            no_open: false,
            no_opendir: false,
        }
    }

    /// Where the kernel's and our flags are found after the hand-shake.
    pub(super) fn agreed(&self) -> Arc<OnceLock<Agreed>> {
        Arc::clone(&self.agreed)
    }

    /// What a successor has to know of the requests that come.
    pub(super) fn asked(&self) -> Arc<Asked> {
        Arc::clone(&self.asked)
    }

    /// Every request but those that a layer has no answer to comes by here.
    fn guard(&self, request: &Request, what: impl FnOnce()) {
        self.asked.note(request.unique().0);
        self.view.guard(what);
    }

    /// What answers a read, on whatever thread has the data.
    fn answer(&self, reply: ReplyData) -> lazy_layer::Reply {
        let view = Arc::clone(&self.view);
        Box::new(move |data| {
            view.guard(|| match data {
                Ok(data) => reply.data(data),
                Err(error) => {
                    reply.error(error.errno());
                    view.state.failed(&error);
                    view.log("unable to read a file of a layer", &Chain(&error));
                }
            });
        })
    }

    fn has_xattrs(&self) -> bool {
        self.view.image().has_xattrs()
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
        let mut offered = config.capabilities();
        if failpoint::never_resends() {
            offered.remove(InitFlags::FUSE_HAS_RESEND);
        }
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_HAS_RESEND
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_PARALLEL_DIROPS;
        let unsupported = |flags| io::Error::other(format!("the kernel withdrew {flags:?}"));
        config.add_capabilities(wanted & offered).map_err(unsupported)?;
        let max = self.max_background;
        let out_of_range = |limit| io::Error::other(format!("{max} requests, {limit} are possible"));
        config.set_max_background(max).map_err(out_of_range)?;
        let version = config.kernel_abi();
        let _ =
            self.agreed.set(Agreed { flags: (wanted & offered).bits(), major: version.0, minor: version.1 });
        self.no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard(request, || {
            let found = self.view.lookup(Node::of(parent), name);
            match found.and_then(|node| node.map(|node| self.view.attributes(node)).transpose()) {
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

    /// Nothing is counted, but the requests' numbers go on.
    fn forget(&self, request: &Request, _: INodeNo, _: u64) {
        self.asked.note(request.unique().0);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.guard(request, || match self.view.attributes(Node::of(number)) {
            Ok((ttl, attributes)) => reply.attr(&ttl, &attributes),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        self.guard(request, || {
            let target = match Node::of(number) {
                Node::Layer(nid) => self.view.checked(self.view.image().read_link(nid)),
                Node::StateDirectory | Node::StateFile | Node::LayerFile => Err(Errno::EINVAL),
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
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.guard(request, || match Node::of(number) {
            Node::Layer(nid) => self.view.layer.read(nid, offset, size, self.answer(reply)),
            Node::LayerFile => self.view.layer.read_file(offset, size, self.answer(reply)),
            Node::StateFile => {
                let content = self.view.state.content(&self.view.layer.status());
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

    fn readdir(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guard(request, || {
            let add = |number, next, kind, name: &OsStr| Ok(reply.add(number, next, kind, name));
            match self.view.list(Node::of(number), offset, add) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guard(request, || {
            let add = |number, next, _, name: &OsStr| {
                let (ttl, attributes) = self.view.attributes(Node::of(number))?;
                Ok(reply.add(number, next, name, &ttl, &attributes, GENERATION))
            };
            match self.view.list(Node::of(number), offset, add) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn getxattr(&self, request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.has_xattrs() {
            // The kernel does not ask this mount again.
            return reply.error(Errno::ENOSYS);
        }
        self.guard(request, || reply_xattr(reply, size, self.view.xattr(Node::of(number), name.as_bytes())));
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        self.guard(request, || match self.view.xattr_names(Node::of(number)) {
            Ok(names) => reply_xattr(reply, size, Ok(&names)),
            Err(errno) => reply.error(errno),
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        let image = self.view.image();
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

    // What fuser would answer with a log line of its own, which a container could repeat for ever.

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
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
