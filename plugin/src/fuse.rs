//! A layer as a FUSE file system.
//!
//! [`FuseMount`] mounts a [`lazy_layer::Layer`] and serves it until it is unmounted. The file system is stateless, so that a successor of
//! this process could go on with it: inode numbers are the nids of the layer file (`attributes`), there are no file handles and no lookup
//! counts, and nothing ever changes: all answers may be cached for ever. The one exception is the state file (`state_file`).
//!
//! What the kernel asks (`adapter`) is answered by `view` from the mapped metadata, and from the layer file where the data is here; a read of
//! data that is not gives its reply to the layer's engine, and the thread goes on. `errno` is the only place where errors become numbers.
//!
//! [`FuseMount::resume`] goes on with a mount of a process that has ended (`handshake`, and `unanswered` for older kernels), whose device the
//! keeper kept.

mod adapter;
mod attributes;
mod errno;
mod handshake;
mod mount;
mod session;
mod state_file;
mod unanswered;
mod view;

pub use mount::{FuseMount, FuseOptions, MountError, UnmountError, Unmounted};
