//! A store in a scratch folder, a source with switches, and reads that can be waited for.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use erofs_image::Nid;
use futures_util::{StreamExt, TryStreamExt, stream};
use lazy_layer::{
    Attachment, BlobSource, ByteStream, Layer, LayerStore, ReadError, SourceError, StoreOptions,
};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use ztoc::{CompressedOffset, SpanId};

use crate::making::Made;

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that a source sends at a time.
const PIECE: usize = 7000;

/// What a source does with its next reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Delay(Duration),
    /// So many reads fail for a passing reason.
    Fail(u32),
    /// So many reads have a flipped bit.
    Flip(u32),
    /// So many reads are a byte short.
    Short(u32),
    /// All bytes come, and then all of them again.
    Twice,
    Gone,
    /// The host wants no request for so long.
    Busy(Duration),
    /// Until the fault is changed.
    Hang,
    None,
}

/// A blob in memory.
#[derive(Debug)]
pub struct Source {
    blob: Bytes,
    host: &'static str,
    fault: watch::Sender<Fault>,
    pub asked: Mutex<Vec<Range<u64>>>,
}

impl Source {
    pub fn new(blob: &Bytes) -> Arc<Self> {
        Self::with(blob, Fault::None)
    }

    pub fn with(blob: &Bytes, fault: Fault) -> Arc<Self> {
        Self::on("memory", blob, fault)
    }

    /// On a host of this name.
    pub fn on(host: &'static str, blob: &Bytes, fault: Fault) -> Arc<Self> {
        let fault = watch::Sender::new(fault);
        Arc::new(Self { blob: blob.clone(), host, fault, asked: Mutex::default() })
    }

    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Takes one use off a counted fault; the fault as it was.
    fn take(&self) -> Fault {
        let mut now = Fault::None;
        self.fault.send_modify(|fault| {
            now = *fault;
            *fault = match now {
                Fault::Fail(1) | Fault::Flip(1) | Fault::Short(1) => Fault::None,
                Fault::Fail(n) => Fault::Fail(n - 1),
                Fault::Flip(n) => Fault::Flip(n - 1),
                Fault::Short(n) => Fault::Short(n - 1),
                other => other,
            };
        });
        now
    }
}

impl BlobSource for Source {
    fn host(&self) -> Arc<str> {
        self.host.into()
    }

    fn read(&self, range: Range<CompressedOffset>) -> ByteStream {
        let range = range.start.0..range.end.0;
        self.asked.lock().push(range.clone());
        let bytes = self.blob.slice(range.start as usize..range.end as usize);
        let fault = self.take();
        let mut changes = self.fault.subscribe();
        let whole = async move {
            match fault {
                Fault::None => Ok(bytes),
                Fault::Twice => Ok([&bytes[..], &bytes[..]].concat().into()),
                Fault::Delay(time) => {
                    tokio::time::sleep(time).await;
                    Ok(bytes)
                }
                Fault::Fail(_) => Err(SourceError::transient("told to fail")),
                Fault::Busy(rest) => Err(SourceError::busy("told to be busy", Some(rest))),
                Fault::Gone => Err(SourceError::permanent("told to be gone")),
                Fault::Flip(_) => {
                    let mut wrong = bytes.to_vec();
                    let middle = wrong.len() / 2;
                    wrong[middle] ^= 4;
                    Ok(wrong.into())
                }
                Fault::Short(_) => Ok(bytes.slice(..bytes.len() - 1)),
                Fault::Hang => {
                    let _ = changes.wait_for(|fault| *fault != Fault::Hang).await;
                    Ok(bytes)
                }
            }
        };
        // In pieces, as a network would.
        let pieces = |bytes: Bytes| {
            let cuts = (0..bytes.len()).step_by(PIECE);
            stream::iter(cuts.map(move |at| Ok(bytes.slice(at..bytes.len().min(at + PIECE)))))
        };
        stream::once(whole).map_ok(pieces).try_flatten().boxed()
    }
}

/// A store and what it stands on.
pub struct Bed {
    pub store: LayerStore,
    pub root: Arc<tempfile::TempDir>,
    pub runtime: Arc<Runtime>,
}

impl Bed {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut StoreOptions)) -> Self {
        let root = Arc::new(tempfile::Builder::new().prefix("lazy-").tempdir().unwrap());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        std::fs::write(root.path().join("boot"), "first").unwrap();
        Self::on(root, Arc::new(runtime), change)
    }

    fn on(
        root: Arc<tempfile::TempDir>,
        runtime: Arc<Runtime>,
        change: impl FnOnce(&mut StoreOptions),
    ) -> Self {
        let mut options = StoreOptions::new(root.path());
        options.boot_id = root.path().join("boot");
        options.max_backoff = Duration::from_millis(200);
        // Tests of these turn them on.
        options.max_read_ahead = 0;
        options.max_guesses = 0;
        options.fill.disable = true;
        change(&mut options);
        let store = LayerStore::open(options, runtime.handle().clone()).unwrap();
        Self { store, root, runtime }
    }

    /// Another daemon on the same root, this one gone without a word.
    pub fn restart(self) -> Self {
        self.restart_with(|_| {})
    }

    pub fn restart_with(self, change: impl FnOnce(&mut StoreOptions)) -> Self {
        let Self { store, root, runtime } = self;
        // The engine lets go of a layer just after it has answered the last read.
        let start = std::time::Instant::now();
        while !store.open_layers().is_empty() {
            assert!(start.elapsed() < PATIENCE, "a test must drop its layers before it restarts the store");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(store);
        Self::on(root, runtime, change)
    }

    /// The same after a reboot.
    pub fn reboot(self) -> Self {
        self.reboot_with(|_| {})
    }

    pub fn reboot_with(self, change: impl FnOnce(&mut StoreOptions)) -> Self {
        let boot = self.root.path().join("boot");
        let text = std::fs::read_to_string(&boot).unwrap() + "+";
        std::fs::write(boot, text).unwrap();
        self.restart_with(change)
    }

    pub fn create(&self, made: &Made) -> Arc<Layer> {
        self.store.create_layer(&made.key(), &made.ztoc_bytes).unwrap()
    }

    /// A layer with a source of its own.
    pub fn lazy(&self, made: &Made) -> (Arc<Layer>, Arc<Source>, Attachment) {
        let layer = self.create(made);
        let source = Source::new(&made.blob);
        let attachment = layer.attach(Arc::clone(&source) as Arc<dyn BlobSource>);
        (layer, source, attachment)
    }

    /// The layer's directory.
    pub fn directory(&self, made: &Made) -> PathBuf {
        let key = made.key();
        self.root.path().join("layers").join(format!("{}-{}", key.layer.digest(), key.ztoc.digest()))
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn nid(layer: &Layer, path: &str) -> Nid {
    let image = layer.image();
    path.split('/').fold(image.root(), |directory, name| {
        image.lookup(directory, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("{path} is not there"))
    })
}

/// A read that has been asked for.
pub struct Asked(mpsc::Receiver<Result<Vec<u8>, ReadError>>);

impl Asked {
    pub fn wait(self) -> Result<Vec<u8>, ReadError> {
        self.0.recv_timeout(PATIENCE).expect("a read was never answered")
    }

    /// The answer, if it has come already.
    pub fn now(&self) -> Option<Result<Vec<u8>, ReadError>> {
        self.0.try_recv().ok()
    }
}

pub fn ask(layer: &Arc<Layer>, nid: Nid, offset: u64, len: u32) -> Asked {
    let (tell, told) = mpsc::channel();
    let reply = move |result: Result<&[u8], ReadError>| {
        let _ = tell.send(result.map(<[u8]>::to_vec));
    };
    layer.read(nid, offset, len, Box::new(reply));
    Asked(told)
}

pub fn read(layer: &Arc<Layer>, path: &str) -> Result<Vec<u8>, ReadError> {
    let nid = nid(layer, path);
    let size = layer.image().inode(nid).unwrap().size;
    ask(layer, nid, 0, u32::try_from(size).unwrap()).wait()
}

/// Reads every file and compares it.
pub fn read_all(layer: &Arc<Layer>, made: &Made) {
    for (path, content) in &made.files {
        let got = read(layer, path).unwrap_or_else(|error| panic!("{path}: {error:?}"));
        assert!(got == *content, "{path} differs");
    }
}

/// How often each span was asked for.
pub fn asked_for(made: &Made, source: &Source) -> Vec<usize> {
    let asked = source.asked.lock();
    (0..made.ztoc.spans.count())
        .map(|id| {
            let span = made.ztoc.spans.span(SpanId(id)).unwrap();
            let whole = |range: &&Range<u64>| {
                range.start <= span.compressed.start.0 && range.end >= span.compressed.end.0
            };
            asked.iter().filter(whole).count()
        })
        .collect()
}

/// The spans that a file's bytes lie in.
pub fn spans_of(made: &Made, path: &str) -> std::ops::RangeInclusive<u32> {
    let entry = made.ztoc.entries.iter().find(|entry| entry.name == path.as_bytes()).unwrap();
    let start = entry.data_offset;
    let covering = made.ztoc.spans.covering(start..ztoc::UncompressedOffset(start.0 + entry.size));
    covering.start().0..=covering.end().0
}
