//! What a decision leads to, done when the board's lock is released.

use std::sync::Arc;

use crate::demand::Demand;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::landing::Landing;
use crate::layer::Layer;
use crate::transfer::Transfer;

/// See the module.
#[derive(Default)]
pub(super) struct Outbox {
    launches: Vec<Transfer>,
    failures: Vec<(Arc<Layer>, usize, ReadError)>,
    rechecks: Vec<(Arc<Layer>, usize, Demand)>,
    hurries: Vec<(Arc<Landing>, Demand)>,
    complete: Vec<Arc<Layer>>,
    /// Transfers that wait may be allowed to go on.
    pub(super) open_gate: bool,
    /// The next moment to look again is earlier than it was.
    pub(super) set_timer: bool,
}

impl Outbox {
    pub(super) fn launch(&mut self, transfer: Transfer) {
        self.launches.push(transfer);
    }

    pub(super) fn fail(&mut self, layer: &Arc<Layer>, span: usize, error: ReadError) {
        self.failures.push((Arc::clone(layer), span, error));
    }

    pub(super) fn recheck(&mut self, layer: &Arc<Layer>, span: usize, demand: Demand) {
        self.rechecks.push((Arc::clone(layer), span, demand));
    }

    pub(super) fn hurry(&mut self, landing: Option<Arc<Landing>>, demand: Demand) {
        self.hurries.extend(landing.map(|landing| (landing, demand)));
    }

    pub(super) fn complete(&mut self, layer: Arc<Layer>) {
        self.complete.push(layer);
    }

    /// Does it all.
    pub(super) fn deliver(self, engine: &Arc<Engine>) {
        if self.open_gate {
            engine.board.gate.send_modify(|generation| *generation = generation.wrapping_add(1));
        }
        if self.set_timer {
            engine.board.timer.notify_one();
        }
        for (layer, span, error) in self.failures {
            if let Some(slot) = layer.slot(span) {
                slot.fail(&error, &engine.options);
            }
        }
        for (layer, span, demand) in self.rechecks {
            let engine_again = Arc::clone(engine);
            engine.pool.run(demand, move |scratch| engine_again.recheck(&layer, span, scratch));
        }
        for (landing, demand) in self.hurries {
            landing.hurry(demand);
        }
        for layer in self.complete {
            layer.judge();
        }
        for transfer in self.launches {
            // If the runtime is gone, the transfer ends as it is dropped.
            engine.runtime.spawn(transfer.run());
        }
    }
}
