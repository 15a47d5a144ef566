//! A complete layer as a whole: whether it is what the image says.
//!
//! Span digests come from the zTOC, so a forged one could describe another tar than the layer's. The tar is scanned once more, in small
//! steps on the pool's threads behind everything else: its members must be those of the zTOC, all of them and no others, and its SHA-256 must
//! be the diff ID in the image's configuration. The scan goes from the beginning as far as everything is here, and goes on when what it stopped at
//! comes: whoever reads in the order of the tar has most of it behind him when the last span is here. What was found is written down and holds
//! for good: the bytes of a span can only be those of its digest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;
use ztoc::{Fingerprint, TarScanner, UncompressedOffset};

use super::{Completeness, Layer};
use crate::demand::Demand;
use crate::disk::checked::Checked;
use crate::disk::headers::HeaderId;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::pool::Scratch;

/// Bytes that are scanned at a time: some two milliseconds of a thread.
const STEP: u64 = 2 << 20;
/// So many blocks of zeros behind the archive are tried before the layer's end is fetched once more: tar programs fill up to 20 blocks.
const ZERO_BLOCKS: usize = 40;
const BLOCK: [u8; 512] = [0; 512];

/// SHA-256 of a layer's uncompressed tar, which the image's configuration names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiffId(pub(crate) [u8; 32]);

/// What is known of the layer as a whole.
#[derive(Debug)]
pub(crate) struct Whole {
    known: Mutex<Known>,
    /// Known without a lock: the layer is out of service.
    refused: AtomicBool,
}

#[derive(Debug)]
struct Known {
    /// What images say that it is, as long as nobody has looked.
    claims: Vec<DiffId>,
    /// There were more: what is not among them may be the truth all the same.
    forgot: bool,
    /// An image has said anything.
    claimed: bool,
    /// An image has said the truth, now or before a restart.
    confirmed: bool,
    found: Option<Checked>,
    /// How far the scan is that finds out.
    progress: Progress,
}

/// A scan of a layer's tar.
#[derive(Debug)]
enum Progress {
    /// It waits for the bytes that it would go on with.
    Waits(Box<Scanned>),
    /// It is at work, or what follows the archive is.
    Runs,
    /// It cannot come to an end.
    Over,
}

/// What a scan came to.
pub(crate) struct Scanned {
    /// So many bytes of the tar are behind it.
    at: u64,
    hash: Sha256,
    scan: Scan,
}

/// The tar's members compared with the zTOC's, in order.
struct Scan {
    scanner: TarScanner,
    /// Members that were as they should be.
    rows: usize,
    /// Where the first was that was not.
    wrong: Option<u64>,
}

impl Whole {
    pub(crate) fn new(found: Option<Checked>) -> Self {
        let confirmed = found.is_some_and(|found| found.confirmed);
        let progress = Progress::Waits(Box::default());
        let claims = Vec::new();
        let known = Known { claims, forgot: false, claimed: false, confirmed, found, progress };
        Self { known: Mutex::new(known), refused: AtomicBool::new(false) }
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Known {
    fn claim(&mut self, claim: DiffId, max: usize) {
        self.claimed = true;
        match self.found {
            Some(found) => self.confirmed |= DiffId(found.digest) == claim,
            None if self.claims.contains(&claim) => {}
            None if self.claims.len() < max => self.claims.push(claim),
            None => self.forgot = true,
        }
    }

    fn find(&mut self, found: Checked) {
        self.found = Some(found);
        for claim in std::mem::take(&mut self.claims) {
            self.claim(claim, 0);
        }
    }

    /// What is to be written down because an image has said the truth only after all was known.
    fn take_news(&mut self) -> Option<Checked> {
        let found = self.found.as_mut().filter(|found| self.confirmed && !found.confirmed)?;
        found.confirmed = true;
        Some(*found)
    }

    /// The scan, if anybody wants it, it is not at work, and what it would go on with is here.
    fn resume(&mut self, layer: &Layer) -> Option<Box<Scanned>> {
        let Progress::Waits(scanned) = &self.progress else { return None };
        let goes_on = scanned.at >= layer.tar_size || layer.here_from(scanned.at).is_some();
        if !self.claimed || !goes_on {
            return None;
        }
        match std::mem::replace(&mut self.progress, Progress::Runs) {
            Progress::Waits(scanned) => Some(scanned),
            Progress::Runs | Progress::Over => None,
        }
    }

    fn verdict(&self, found: Checked) -> Completeness {
        match (found.as_described, self.confirmed, self.claimed && !self.forgot) {
            (false, _, _) | (true, false, true) => Completeness::Refused,
            (true, true, _) => Completeness::Complete,
            (true, false, false) => Completeness::Incomplete,
        }
    }
}

impl Layer {
    /// Says what an image's configuration gives as the layer's diff ID. Layers are checked as a whole only when somebody has. With several that differ, one that is true
    /// will do: what another image says of this layer must not take it from the one that says the truth.
    ///
    /// Gives whether the layer is that, if it is known already. A digest that is not SHA-256 is ignored.
    pub fn expect(self: &Arc<Self>, diff_id: &oci_spec::image::Digest) -> Option<bool> {
        let claim = DiffId::of(diff_id)?;
        let (agrees, news) = {
            let mut known = self.whole.known.lock();
            known.claim(claim, self.options().max_claims);
            let agrees = |found: Checked| found.as_described && DiffId(found.digest) == claim;
            (known.found.filter(|_| self.is_all_here()).map(agrees), known.take_news())
        };
        self.judge();
        if let Some(found) = news {
            self.engine.keep(self, found);
        }
        agrees
    }

    /// Whether any image has said what the layer is, now or before a restart.
    pub fn is_expected(&self) -> bool {
        let known = self.whole.known.lock();
        known.claimed || known.confirmed
    }

    /// Whether everything is here and it is known what it is, so that [`Self::expect`] has an answer.
    pub fn is_checked(&self) -> bool {
        self.is_all_here() && self.whole.known.lock().found.is_some()
    }

    /// Says what is known by now, and has found out what can be of what is not.
    pub(crate) fn judge(self: &Arc<Self>) {
        let mut known = self.whole.known.lock();
        let Some(found) = known.found else {
            if let Some(scanned) = known.resume(self) {
                drop(known);
                step(&self.engine, Arc::downgrade(self), scanned);
            }
            return;
        };
        if !self.is_all_here() {
            return;
        }
        let verdict = known.verdict(found);
        let refused = verdict == Completeness::Refused;
        self.whole.refused.store(refused, Ordering::Relaxed);
        let changed = self.completeness.send_if_modified(|now| std::mem::replace(now, verdict) != verdict);
        if changed && refused {
            tracing::error!(layer = %self.key.layer, ztoc = %self.key.ztoc, as_described = found.as_described, "this layer is not what its image says, and is out of service: its index or the image's configuration was forged, or is damaged");
        }
    }

    /// The diff IDs that images have given.
    pub(crate) fn claims(&self) -> Vec<DiffId> {
        self.whole.known.lock().claims.clone()
    }

    /// The check is over.
    pub(crate) fn scanned(self: &Arc<Self>, found: Checked) {
        let news = {
            let mut known = self.whole.known.lock();
            known.progress = Progress::Over;
            known.find(found);
            known.take_news()
        };
        self.judge();
        if let Some(found) = news {
            self.engine.keep(self, found);
        }
    }

    /// The check can go on from here when there is a reason to: a source, or one more image that says what the layer is.
    pub(crate) fn waits_for_check(&self, scanned: Box<Scanned>) {
        self.whole.known.lock().progress = Progress::Waits(scanned);
    }

    /// What the check failed for may pass: it goes on from here then, or after a readers' deadline.
    pub(crate) fn checks_later(self: &Arc<Self>, scanned: Box<Scanned>) {
        self.waits_for_check(scanned);
        let (layer, pause) = (Arc::downgrade(self), self.options().read_deadline);
        self.engine.runtime.spawn(async move {
            sleep(pause).await;
            if let Some(layer) = layer.upgrade() {
                layer.judge();
            }
        });
    }

    /// The check cannot come to an end as long as the layer is open.
    pub(crate) fn is_never_checked(&self) {
        self.whole.known.lock().progress = Progress::Over;
    }

    /// Where the scan has to stop that is here: at the end of a span, of its step, or of the tar. Nothing if what comes there is not here.
    fn here_from(&self, at: u64) -> Option<u64> {
        let next = at..self.tar_size.min(at.saturating_add(1));
        let span = self.spans.covering(&next).next()?;
        let end = self.row(span).ok()?.tar.end.min(self.tar_size).min(at.saturating_add(STEP));
        (self.has(span) && end > at).then_some(end)
    }
}

/// Scans the next bytes, and has the following ones scanned when there is nothing more urgent, as far as they are here. A layer that is closed
/// meanwhile is left alone.
fn step(engine: &Arc<Engine>, layer: Weak<Layer>, mut scanned: Box<Scanned>) {
    let engine_again = Arc::clone(engine);
    engine.pool.run(Demand::Fill, move |scratch| {
        let Some(open) = layer.upgrade() else { return };
        if let Err(error) = scanned.take(&open, scratch) {
            tracing::warn!(layer = %open.key.layer, %error, "a layer could not be checked");
            return open.checks_later(scanned);
        }
        if scanned.at >= open.tar_size {
            return engine_again.conclude(&open, scanned);
        }
        let next = {
            let mut known = open.whole.known.lock();
            // Whatever comes from now on finds it waiting.
            known.progress = Progress::Waits(scanned);
            known.resume(&open)
        };
        if let Some(scanned) = next {
            step(&engine_again, layer, scanned);
        }
    });
}

impl Scanned {
    /// The next bytes, where they are here.
    fn take(&mut self, layer: &Layer, scratch: &mut Scratch) -> Result<(), ReadError> {
        let Some(end) = layer.here_from(self.at) else { return Ok(()) };
        let space = scratch.space(usize::try_from(end.saturating_sub(self.at)).unwrap_or(usize::MAX));
        layer.read_tar(space, self.at)?;
        self.add(layer, space);
        self.at = end;
        Ok(())
    }

    /// Further bytes of the tar, or of what follows the archive.
    pub(crate) fn add(&mut self, layer: &Layer, bytes: &[u8]) {
        self.hash.update(bytes);
        self.scan.add(layer, bytes);
    }

    /// The layer, if it ends in blocks of zeros (or none) and is then one of these.
    pub(crate) fn with_zeros(&self, layer: &Layer, claims: &[DiffId]) -> Option<Checked> {
        let mut hash = self.hash.clone();
        for _ in 0..=ZERO_BLOCKS {
            let digest = <[u8; 32]>::from(hash.clone().finalize());
            if claims.contains(&DiffId(digest)) {
                return Some(Checked { as_described: self.scan.is_right(layer), digest, confirmed: true });
            }
            hash.update(BLOCK);
        }
        None
    }

    /// The layer, as it ends here. Whether that is one of these, too.
    pub(crate) fn finish(self, layer: &Layer, claims: &[DiffId]) -> Checked {
        let digest = self.hash.finalize().into();
        Checked {
            as_described: self.scan.is_right(layer),
            digest,
            confirmed: claims.contains(&DiffId(digest)),
        }
    }
}

impl Default for Scanned {
    fn default() -> Self {
        let scan = Scan { scanner: TarScanner::new(), rows: 0, wrong: None };
        Self { at: 0, hash: Sha256::new(), scan }
    }
}

impl std::fmt::Debug for Scanned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanned").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Scan {
    fn add(&mut self, layer: &Layer, bytes: &[u8]) {
        if self.wrong.is_some() {
            return;
        }
        let (rows, wrong) = (&mut self.rows, &mut self.wrong);
        let pushed = self.scanner.push(bytes, &mut |scanned| {
            let UncompressedOffset(place) = scanned.entry.data_offset;
            let (start, fingerprint): (u64, Fingerprint) =
                (scanned.header_offset.0, scanned.entry.fingerprint());
            let row = layer.headers.get(HeaderId(*rows));
            if row.is_some_and(|row| row.range == (start..place) && row.fingerprint == fingerprint) {
                *rows = rows.saturating_add(1);
            } else {
                wrong.get_or_insert(place);
            }
        });
        if let Err(error) = pushed {
            tracing::warn!(layer = %layer.key.layer, %error, "the tar of a complete layer cannot be read");
            self.wrong.get_or_insert(0);
        }
    }

    fn is_right(&self, layer: &Layer) -> bool {
        self.wrong.is_none() && self.rows == layer.headers.len()
    }
}

impl DiffId {
    fn of(digest: &oci_spec::image::Digest) -> Option<Self> {
        let hex = digest.to_string();
        let hex = hex.strip_prefix("sha256:").filter(|hex| hex.len() == 64)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Debug for DiffId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
