//! EROFS metadata over a layer's own tar bytes: written from a file table, read back.
//!
//! A layer file is an [EROFS] image whose metadata comes first and whose data is the layer's
//! uncompressed tar, byte for byte. Tar data starts on 512-byte borders and the image has 512-byte
//! blocks, so an inode simply points into the tar. [`TreeBuilder`] applies the rules of OCI layers,
//! [`NewImage`] makes the metadata, [`Image`] reads it; [`layout`] describes the bytes.
//!
//! The crate is pure: bytes in, bytes out.
//!
//! [EROFS]: https://docs.kernel.org/filesystems/erofs.html

pub mod image;
pub mod layout;
pub mod tree;
pub mod write;

pub use image::{DirEntry, Directory, Image, Inode, Kind, ReadError, XattrRef, Xattrs};
pub use layout::{BLOCK_SIZE, Nid};
pub use tree::{Attributes, Content, NodeId, Tree, TreeBuilder, TreeError, Xattr};
pub use write::{NewImage, WriteError};
