//! One layer of a container image, readable before it is here.
//!
//! A [`LayerStore`] keeps a directory for every pair of layer and zTOC. The layer file in it is an EROFS image: metadata made from the
//! zTOC, then the layer's uncompressed tar bytes, which arrive span by span when somebody reads them. The crate knows neither FUSE nor gRPC.

mod buffers;
mod disk;
mod engine;
mod error;
mod fetch;
mod key;
mod layer;
mod mapping;
mod options;
mod pool;
mod source;
mod sources;
mod store;
mod toc;
mod waiting;

pub use error::{CreateError, FileError, OpenError, OpenLayerError, ReadError};
pub use key::{LayerKey, UnsupportedDigest};
pub use layer::{Attachment, Layer, LayerStatus, MAX_READ, Reply};
pub use mapping::Mapping;
pub use options::StoreOptions;
pub use source::{BlobSource, SourceError};
pub use store::LayerStore;
