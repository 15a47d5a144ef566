//! Layers to mount: golden bytes behind a source in memory.

use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use lazy_layer::{
    Attachment, BlobSource, ByteStream, CreateError, Layer, LayerKey, LayerStore, SourceError, StoreOptions,
};
use oci_spec::image::Digest;
use sha2::{Digest as _, Sha256};
use soci_snapshotter_grpc::fuse::{FuseMount, FuseOptions};
use soci_snapshotter_grpc::keeper::Hold;
use soci_snapshotter_grpc::kernel::errand::{ErrandOptions, Errands};
use soci_snapshotter_grpc::kernel::{Kernel, KernelError, KernelMount, KernelOptions};
use soci_snapshotter_grpc::snapshot::FrontEnd;
use tokio::runtime::{Handle, Runtime};
use ztoc::{BuildOptions, Builder, CompressedOffset, Compression};

use crate::made::Random;

pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
}

pub fn read_golden(path: &str) -> Vec<u8> {
    let path = golden(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn runtime() -> Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap()).handle().clone()
}

fn digest(bytes: &[u8]) -> Digest {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Digest::from_str(&format!("sha256:{hex}")).unwrap()
}

/// A blob in memory, with the faults of a registry.
pub struct Blob {
    bytes: Bytes,
    /// Requests wait as long as this is set.
    pub stuck: AtomicBool,
    /// Requests fail for good.
    pub gone: AtomicBool,
    /// Bytes come out wrong.
    pub damaged: AtomicBool,
    pub requests: AtomicU64,
    /// Requests come late, in pieces, and break off: by chance, with this seed. 0: not so.
    pub chance: AtomicU64,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob").finish_non_exhaustive()
    }
}

/// The source that the engine gets.
#[derive(Debug)]
struct Source(Arc<Blob>);

impl BlobSource for Source {
    fn host(&self) -> Arc<str> {
        "memory".into()
    }

    fn read(&self, range: Range<CompressedOffset>) -> ByteStream {
        let blob = Arc::clone(&self.0);
        let number = blob.requests.fetch_add(1, Ordering::Relaxed);
        let seed = blob.chance.load(Ordering::Relaxed);
        if seed != 0 {
            return by_chance(&blob, range, seed.wrapping_add(number), number);
        }
        let whole = async move {
            while blob.stuck.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if blob.gone.load(Ordering::Relaxed) {
                return Err(SourceError::permanent("the blob is gone"));
            }
            let bytes = blob.bytes.slice(range.start.0 as usize..range.end.0 as usize);
            if blob.damaged.load(Ordering::Relaxed) {
                return Ok(bytes.iter().map(|byte| !byte).collect());
            }
            Ok(bytes)
        };
        stream::once(whole).boxed()
    }
}

/// Pieces with pauses between them, and every other request breaks off in its first half.
fn by_chance(blob: &Blob, range: Range<CompressedOffset>, seed: u64, number: u64) -> ByteStream {
    let bytes = blob.bytes.slice(range.start.0 as usize..range.end.0 as usize);
    let mut random = Random::seeded(seed);
    let breaks_off = number.is_multiple_of(2).then(|| random.below(bytes.len() as u64 / 2 + 1) as usize);
    stream::unfold((random, 0), move |(mut random, at)| {
        let left = bytes.get(at..).map_or_else(Bytes::new, |_| bytes.slice(at..));
        async move {
            tokio::time::sleep(Duration::from_millis(random.below(8))).await;
            // Nothing comes behind an error.
            if at != usize::MAX && breaks_off.is_some_and(|end| at >= end) {
                return Some((Err(SourceError::transient("it breaks off")), (random, usize::MAX)));
            }
            if left.is_empty() {
                return None;
            }
            let length = (1 + random.below(50_000) as usize).min(left.len());
            Some((Ok(left.slice(..length)), (random, at + length)))
        }
    })
    .boxed()
}

/// A layer file in a directory of its own.
pub struct Fixture {
    pub layer: Arc<Layer>,
    pub blob: Arc<Blob>,
    attachment: Mutex<Option<Attachment>>,
    _store: LayerStore,
    directory: tempfile::TempDir,
}

impl Fixture {
    pub fn new(layer: &[u8], ztoc: &[u8]) -> Result<Fixture, CreateError> {
        let directory = tempfile::tempdir().unwrap();
        let mut options = StoreOptions::new(directory.path());
        options.read_deadline = Duration::from_secs(20);
        // What is here and what is not is what these tests are about.
        options.max_read_ahead = 0;
        options.fill.disable = true;
        let store = LayerStore::open(options, runtime()).unwrap();
        let key = LayerKey { layer: digest(layer), ztoc: digest(ztoc) };
        let blob = Arc::new(Blob {
            bytes: Bytes::copy_from_slice(layer),
            stuck: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            chance: AtomicU64::new(0),
        });
        let layer = store.create_layer(&key, ztoc)?;
        let attachment = layer.attach(Arc::new(Source(Arc::clone(&blob))));
        Ok(Fixture { layer, blob, attachment: Mutex::new(Some(attachment)), _store: store, directory })
    }

    pub fn golden(name: &str) -> Fixture {
        let layer = read_golden(&format!("layers/{name}"));
        let stem = Path::new(name).file_stem().unwrap().to_str().unwrap();
        Fixture::new(&layer, &read_golden(&format!("ztoc/head/{stem}.s65536.ztoc"))).unwrap()
    }

    /// A layer of these tar bytes, and the blob.
    pub fn made(tar: &[u8]) -> (Fixture, Vec<u8>) {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(tar).unwrap();
        let blob = gzip.finish().unwrap();
        let options = BuildOptions { span_size: 1 << 16, ..BuildOptions::default() };
        let mut builder = Builder::new(Compression::Gzip, options).unwrap();
        builder.write(&blob).unwrap();
        let ztoc = builder.finish().unwrap().ztoc.encode();
        (Fixture::new(&blob, &ztoc).unwrap(), blob)
    }

    pub fn mount(&self) -> Mounted {
        let at = self.directory.path().join("snapshots/7/fs");
        std::fs::create_dir_all(&at).unwrap();
        let options = FuseOptions { layer_file: true, ..FuseOptions::default() };
        let mount = FuseMount::mount(Arc::clone(&self.layer), &at, options, |_| Hold::none()).unwrap();
        Mounted { at, mount: Some(mount) }
    }

    /// As containers get it.
    pub fn show(&self, front_end: FrontEnd) -> Shown {
        let fuse = self.mount();
        let kernel = match front_end {
            FrontEnd::Fuse => None,
            FrontEnd::KernelOverFuse | FrontEnd::Local => {
                Some(attach(&kernel(&self.scratch("probe")), &self.layer, &fuse.at).unwrap())
            }
        };
        let at = kernel.as_ref().map_or(fuse.at.as_path(), |kernel| kernel.mount_point()).to_owned();
        Shown { at, kernel, fuse }
    }

    /// Takes the layer's source away.
    pub fn detach(&self) {
        *self.attachment.lock().unwrap() = None;
    }

    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

/// The front end above FUSE, which this machine has to have.
pub fn kernel(scratch: &Path) -> Kernel {
    kernel_by(scratch, ErrandOptions::default(), Path::new(env!("CARGO_BIN_EXE_soci-snapshotter-grpc")))
}

/// Whose errands this program does.
pub fn kernel_by(scratch: &Path, options: ErrandOptions, program: &Path) -> Kernel {
    let errands = Errands::new(options, runtime()).with_program(program.to_owned());
    Kernel::probe(scratch, KernelOptions::default(), errands).unwrap()
}

pub fn attach(kernel: &Kernel, layer: &Arc<Layer>, fuse_at: &Path) -> Result<KernelMount, KernelError> {
    attach_within(kernel, layer, fuse_at, Duration::from_secs(60))
}

pub fn attach_within(
    kernel: &Kernel,
    layer: &Arc<Layer>,
    fuse_at: &Path,
    deadline: Duration,
) -> Result<KernelMount, KernelError> {
    runtime().block_on(kernel.attach(layer, fuse_at, deadline))
}

/// A layer as a container's lower directory. It does not outlive its test.
pub struct Shown {
    pub at: PathBuf,
    pub kernel: Option<KernelMount>,
    pub fuse: Mounted,
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.take() {
            let _ = kernel.unmount();
        }
    }
}

/// A mount that does not outlive its test.
pub struct Mounted {
    pub at: PathBuf,
    pub mount: Option<FuseMount>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            let _ = mount.unmount();
        }
    }
}
