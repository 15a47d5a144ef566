//! What all layers of a store share.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::backlog::Backlog;
use crate::board::{self, Board};
use crate::budget::Budget;
use crate::buffers::Buffers;
use crate::layer::{Layer, LayerId};
use crate::options::StoreOptions;
use crate::pool::{Pool, Scratch};
use crate::stack::Stack;
use crate::start::{Command, Step, Steps, steps};

/// The fetch engine: one for each store, that is one for each daemon.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) options: StoreOptions,
    pub(crate) runtime: Handle,
    pub(crate) pool: Pool,
    pub(crate) buffers: Buffers,
    pub(crate) budget: Arc<Budget>,
    pub(crate) board: Board,
    pub(crate) backlog: Backlog,
    /// One layer at a time has its end fetched and checked: that is in memory as a whole.
    pub(crate) tails: Arc<Semaphore>,
    hints: Sender<Hint>,
    steps: Steps<(Box<Step>, Arc<Engine>)>,
    layers: AtomicU64,
    walks: AtomicU16,
    said_full: Mutex<Option<Instant>>,
}

/// What the thread that reads ahead is told: bytes of a layer's tar were read, and had been fetched ahead.
type Hint = (Arc<Layer>, Range<u64>);

impl Engine {
    pub(crate) fn start(
        options: StoreOptions,
        budget: Arc<Budget>,
        runtime: Handle,
    ) -> io::Result<Arc<Self>> {
        let (hints, given) = crossbeam_channel::bounded::<Hint>(options.max_ahead_queue);
        let (steps, taken) = steps::bounded::<(Box<Step>, Arc<Self>)>(options.max_start_files);
        // Both end with the engine. Who reads on goes before what is yet to be found out.
        std::thread::Builder::new().name("soci-read-ahead".to_owned()).spawn(move || {
            steps::take_all(
                &given,
                &taken,
                |(layer, tar)| layer.read_ahead(&tar),
                |(step, engine)| step.take(&engine),
            );
        })?;
        let engine = Arc::new(Self {
            pool: Pool::start(options.inflate_threads, options.largest_kept_buffer)?,
            buffers: Buffers::new(options.pooled_buffers, options.largest_kept_buffer),
            budget,
            board: Board::new(),
            backlog: Backlog::default(),
            tails: Arc::new(Semaphore::new(1)),
            hints,
            steps,
            layers: AtomicU64::new(0),
            walks: AtomicU16::new(0),
            said_full: Mutex::new(None),
            options,
            runtime,
        });
        engine.runtime.spawn(board::keep_time(Arc::downgrade(&engine)));
        Ok(engine)
    }

    /// Tells of a read that was answered from what had been fetched ahead. Never waits; should too many come at once, some are not seen.
    pub(crate) fn hint(&self, layer: &Arc<Layer>, tar: Range<u64>) {
        let _ = self.hints.try_send((Arc::clone(layer), tar));
    }

    /// Goes on following a program. Never waits; should too many be followed at once, some are lost.
    pub(crate) fn step(self: &Arc<Self>, step: Step) {
        let size = step.size();
        self.steps.push((Box::new(step), Arc::clone(self)), size);
    }

    /// Bytes that begin at this place of the layer file were read, and look like the beginning of a program.
    pub(crate) fn program_is_read(self: &Arc<Self>, layer: &Arc<Layer>, place: u64) {
        if self.options.max_start_files > 0 {
            self.step(Step::Program(Arc::clone(layer), place));
        }
    }

    /// A container is about to start on these layers.
    pub(crate) fn starts(self: &Arc<Self>, from_above: &[Arc<Layer>]) {
        if let Some(stack) = self.stack_of(from_above) {
            self.step(Step::Image(stack));
        }
    }

    /// A container on these layers is about to run this.
    pub(crate) fn runs(self: &Arc<Self>, from_above: &[Arc<Layer>], command: Command) {
        if let Some(stack) = self.stack_of(from_above) {
            self.step(Step::Command(stack, Box::new(command)));
        }
    }

    /// These layers as an image, which they belong to from now on; none where no program is followed.
    fn stack_of(&self, from_above: &[Arc<Layer>]) -> Option<Arc<Stack>> {
        if self.options.max_start_files == 0 || from_above.is_empty() {
            return None;
        }
        let known = from_above.first().and_then(|layer| layer.stack());
        let stack =
            known.filter(|stack| stack.is_of(from_above)).unwrap_or_else(|| Arc::new(Stack::new(from_above)));
        for layer in from_above {
            layer.join(&stack);
        }
        Some(stack)
    }

    /// The number of one more beginning that programs are followed from. They are counted round.
    pub(crate) fn next_walk(&self) -> u16 {
        self.walks.fetch_add(1, Ordering::Relaxed)
    }

    /// An identity for a layer that is opened.
    pub(crate) fn next_layer(&self) -> LayerId {
        LayerId(self.layers.fetch_add(1, Ordering::Relaxed))
    }

    /// Compares a span with its checksum, on a thread of the pool.
    pub(crate) fn recheck(self: &Arc<Self>, layer: &Arc<Layer>, span: usize, scratch: &mut Scratch) {
        if !self.begins_recheck(layer, span) {
            return;
        }
        let intact = layer.recheck(span, scratch).unwrap_or_else(|error| {
            // The file cannot be read: perhaps it can be written. The fetch will tell.
            tracing::warn!(layer = %layer.key().layer, span, %error, "a span could not be re-checked");
            false
        });
        if !intact && let Some(slot) = layer.slot(span) {
            slot.lost();
        }
        self.rechecked(layer, span, intact);
    }

    /// A span could not be written for want of room.
    pub(crate) fn disk_is_full(self: &Arc<Self>, layer: &Layer) {
        let now = Instant::now();
        self.postpone_fill(now);
        let mut said = self.said_full.lock();
        if said.is_none_or(|at| now.saturating_duration_since(at) >= self.options.full_pause) {
            *said = Some(now);
            tracing::warn!(layer = %layer.key().layer, "the disk is full: what is read is fetched each time, and not kept");
        }
    }
}
