//! What is asked for while somebody waits, on one thread: what may begin has begun when everybody has had his turn.

use std::ops::Range;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use ztoc::CompressedOffset;

use super::*;
use crate::budget::Budget;
use crate::engine::Engine;
use crate::options::StoreOptions;
use crate::source::{BlobSource, ByteStream};
use crate::{Attachment, LayerKey, LayerStore};

const SPAN: u64 = 64 << 10;

/// Remembers where the ranges begin that it is asked for, and sends what it is told to.
#[derive(Debug, Default)]
struct Source(Mutex<Vec<(u64, mpsc::UnboundedSender<Bytes>)>>);

impl BlobSource for Source {
    fn host(&self) -> Arc<str> {
        "host".into()
    }

    fn read(&self, range: Range<CompressedOffset>) -> ByteStream {
        let (send, receive) = mpsc::unbounded_channel();
        self.0.lock().push((range.start.0, send));
        stream::unfold(receive, |mut receive| async move { Some((Ok(receive.recv().await?), receive)) })
            .boxed()
    }
}

struct Bed {
    engine: Arc<Engine>,
    layer: Arc<Layer>,
    source: Arc<Source>,
    blob: Bytes,
    _attached: Attachment,
    _root: tempfile::TempDir,
}

impl Bed {
    /// Must be made on a runtime.
    fn new(change: impl FnOnce(&mut StoreOptions)) -> Self {
        let golden = |name: &str| {
            std::fs::read(format!("{}/../../../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
        };
        let (blob, ztoc) = (golden("layers/plain.tar"), golden("ztoc/head/plain.s65536.ztoc"));
        let digest = |bytes: &[u8]| {
            let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha256:{hex}").parse().unwrap()
        };
        let root = tempfile::tempdir().unwrap();
        let mut options = StoreOptions::new(root.path());
        options.fill.disable = true;
        let store = LayerStore::open(options.clone(), Handle::current()).unwrap();
        let key = LayerKey { layer: digest(&blob), ztoc: digest(&ztoc) };
        let layer = store.create_layer(&key, &ztoc).unwrap();
        change(&mut options);
        let budget = Arc::new(Budget::open(root.path(), &options, 0).unwrap());
        let engine = Engine::start(options, budget, Handle::current()).unwrap();
        let source = Arc::new(Source::default());
        let _attached = layer.attach(Arc::clone(&source) as Arc<dyn BlobSource>);
        Self { engine, layer, source, blob: blob.into(), _attached, _root: root }
    }

    fn want(&self, demand: Demand, spans: &[usize]) {
        let wanted: Vec<_> = spans.iter().map(|span| (*span, demand)).collect();
        self.engine.want(&self.layer, &wanted);
    }

    /// Sends bytes of the blob to a request.
    fn send(&self, request: usize, bytes: Range<usize>) {
        self.source.0.lock()[request].1.send(self.blob.slice(bytes)).unwrap();
    }

    /// The spans that ranges were asked for from, in order, when all have had their turn.
    async fn asked(&self) -> Vec<u64> {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        self.source.0.lock().iter().map(|(start, _)| start / SPAN).collect()
    }
}

#[tokio::test]
async fn what_a_program_needs_goes_before_what_is_expected() {
    let bed = Bed::new(|_| {});
    bed.want(Demand::Read, &[0]);
    bed.want(Demand::ReadAhead, &[2]);
    bed.want(Demand::ReadAhead, &[6]);
    bed.want(Demand::Trace, &[9]);
    assert_eq!(bed.asked().await, [0], "nothing of what somebody waits for has come");
    bed.send(0, 0..1);
    // What is expected last is expected with the best reason.
    assert_eq!(bed.asked().await, [0, 9, 6, 2]);
}

#[tokio::test]
async fn little_is_on_its_way_ahead_while_somebody_waits() {
    for (bound, at_once) in [(0, 0), (1, 1), (SPAN, 1), (2 * SPAN, 2)] {
        let bed = Bed::new(|options| options.max_ahead_while_waiting = bound);
        bed.want(Demand::Read, &[0]);
        bed.want(Demand::ReadAhead, &[2, 4, 6, 8]);
        assert_eq!(bed.asked().await, [0]);
        bed.send(0, 0..1);
        assert_eq!(bed.asked().await.len(), 1 + at_once, "{bound}");
        bed.send(0, 1..SPAN as usize);
        assert_eq!(bed.asked().await.len(), 5, "nobody waits any more");
    }
}
