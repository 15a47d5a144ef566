//! How well the engine uses a link: a made-up one of 20 ms and 50 MB/s, and a layer of about 100 MB gzip.
//!
//! `cargo run --release -p lazy-layer --example link`
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a measurement")]

use std::io::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use lazy_layer::{BlobSource, ByteStream, Layer, LayerKey, LayerStore, ReadError, StoreOptions};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use ztoc::{BuildOptions, Builder, CompressedOffset, Compression};

const WAY: Duration = Duration::from_millis(20);
const RATE: u64 = 50_000_000;
/// Timers wake so much too late, at most; that is made up for.
const LATE: Duration = Duration::from_millis(5);
const PIECE: u64 = 32 << 10;
const FILES: usize = 4000;
const FILE: usize = 50_000;

/// All streams share its rate; one that is not read takes nothing.
#[derive(Debug)]
struct Link {
    blob: Bytes,
    free: Mutex<Instant>,
    sent: AtomicU64,
    requests: AtomicU64,
}

#[derive(Debug)]
struct Source(Arc<Link>);

impl BlobSource for Source {
    fn host(&self) -> Arc<str> {
        "link".into()
    }

    fn read(&self, range: Range<CompressedOffset>) -> ByteStream {
        let link = Arc::clone(&self.0);
        link.requests.fetch_add(1, Ordering::Relaxed);
        let start = (link, range.start.0, range.end.0, true);
        stream::unfold(start, |(link, at, end, first)| async move {
            if at >= end {
                return None;
            }
            if first {
                tokio::time::sleep(WAY).await;
            }
            let len = PIECE.min(end - at);
            let due = {
                let mut free = link.free.lock();
                *free = (*free).max(Instant::now() - LATE) + Duration::from_nanos(len * 1_000_000_000 / RATE);
                *free
            };
            // A timer is too coarse for a single piece.
            if due > Instant::now() + Duration::from_millis(3) {
                tokio::time::sleep_until(due.into()).await;
            }
            link.sent.fetch_add(len, Ordering::Relaxed);
            let piece = link.blob.slice(at as usize..(at + len) as usize);
            Some((Ok(piece), (link, at + len, end, false)))
        })
        .boxed()
    }
}

struct Bed {
    _folder: tempfile::TempDir,
    _store: LayerStore,
    layer: Arc<Layer>,
    link: Arc<Link>,
    attachment: Option<lazy_layer::Attachment>,
}

impl Bed {
    fn new(made: &Made, handle: &tokio::runtime::Handle, change: impl FnOnce(&mut StoreOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = StoreOptions::new(folder.path());
        change(&mut options);
        let store = LayerStore::open(options, handle.clone()).unwrap();
        let layer = store.create_layer(&made.key, &made.ztoc).unwrap();
        let link = Arc::new(Link {
            blob: made.blob.clone(),
            free: Mutex::new(Instant::now()),
            sent: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let attachment = Some(layer.attach(Arc::new(Source(Arc::clone(&link)))));
        Self { _folder: folder, _store: store, layer, link, attachment }
    }

    fn read(&self, offset: u64, len: u32) -> Duration {
        let started = Instant::now();
        let (tell, told) = mpsc::channel();
        let reply = move |result: Result<&[u8], ReadError>| tell.send(result.map(<[u8]>::len)).unwrap();
        self.layer.read_file(offset, len, Box::new(reply));
        told.recv().unwrap().unwrap();
        started.elapsed()
    }
}

struct Made {
    blob: Bytes,
    ztoc: Vec<u8>,
    key: LayerKey,
}

fn digest(bytes: &[u8]) -> oci_spec::image::Digest {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().unwrap()
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn make() -> Made {
    let mut state = 7;
    // Level 1 makes one block of everything, which has no place to begin at.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(3));
    {
        let mut tar = tar::Builder::new(&mut gzip);
        for number in 0..FILES {
            let content: Vec<u8> = (0..FILE).map(|_| b'a' + (random(&mut state) % 16) as u8).collect();
            let mut header = tar::Header::new_gnu();
            header.set_size(FILE as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("d{}/f{number}", number / 100), content.as_slice()).unwrap();
        }
        tar.finish().unwrap();
    }
    gzip.flush().unwrap();
    let blob: Bytes = gzip.finish().unwrap().into();
    let mut builder = Builder::new(Compression::Gzip, BuildOptions::default()).unwrap();
    builder.write(&blob).unwrap();
    let ztoc = builder.finish().unwrap().ztoc.encode();
    let key = LayerKey { layer: digest(&blob), ztoc: digest(&ztoc) };
    Made { blob, ztoc, key }
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let made = make();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!("layer: {:.0} MB gzip, {} files", mb(made.blob.len() as u64), FILES);

    for size in [128 << 10, 1 << 20] {
        let bed = Bed::new(&made, runtime.handle(), |_| {});
        let started = Instant::now();
        let mut offset = 0;
        while offset < bed.layer.file_size() {
            bed.read(offset, size);
            offset += u64::from(size);
        }
        let taken = started.elapsed().as_secs_f64();
        let status = bed.layer.status();
        println!(
            "all of it in reads of {} KiB: {taken:.2} s, {} of the link, {} requests, waits p50 {:?} p99 {:?}",
            size >> 10,
            percent(made.blob.len() as f64 / RATE as f64 / taken),
            bed.link.requests.load(Ordering::Relaxed),
            status.waits.p50,
            status.waits.p99,
        );
    }

    let bed = Bed::new(&made, runtime.handle(), |options| options.fill.silence = Duration::from_millis(20));
    let mut state = 3;
    let mut waits = Vec::new();
    while waits.len() < 12 {
        std::thread::sleep(Duration::from_millis(100));
        let before = bed.layer.status().reads_that_waited;
        let wait = bed.read((random(&mut state) % bed.layer.file_size()) & !4095, 4096);
        if bed.layer.status().reads_that_waited > before {
            waits.push(wait);
        }
        if bed.layer.status().present == bed.layer.status().size {
            break;
        }
    }
    let span = made.blob.len() as f64 / bed.layer.status().spans as f64;
    waits.sort();
    println!(
        "blocked random reads while the background fills: {waits:?}; way and span alone: {:.1} ms",
        WAY.as_secs_f64() * 1e3 + span / RATE as f64 * 1e3
    );

    for readers in [40, 160] {
        let bed = Bed::new(&made, runtime.handle(), |options| options.fill.disable = true);
        let mut state = 5;
        for _ in 0..readers {
            bed.read((random(&mut state) % bed.layer.file_size()) & !4095, 4096);
        }
        std::thread::sleep(Duration::from_millis(300));
        let status = bed.layer.status();
        println!(
            "{readers} random reads: {:.1} MB on demand, {:.1} MB ahead",
            mb(status.fetched_on_demand),
            mb(status.fetched_by_read_ahead)
        );
    }

    let mut bed = Bed::new(&made, runtime.handle(), |_| {});
    let started = Instant::now();
    while bed.layer.status().present < bed.layer.status().size {
        std::thread::sleep(Duration::from_millis(5));
    }
    let taken = started.elapsed().as_secs_f64();
    println!(
        "background alone: {taken:.2} s, {} of the link, {} requests",
        percent(made.blob.len() as f64 / RATE as f64 / taken),
        bed.link.requests.load(Ordering::Relaxed)
    );
    drop(bed.attachment.take());
}
