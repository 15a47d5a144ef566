//! What came of preparing image layers, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// How one layer came here, or why it did not come lazily.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    /// Mounted before it was downloaded.
    Remote,
    /// Unpacked by the daemon.
    Local,
    /// containerd's to unpack: the client knows nothing of lazy loading.
    Unlabelled,
    /// The same: what the client says of the layer makes no sense.
    BadLabels,
    /// The same: the layer is smaller than `min_layer_size`.
    TooSmall,
    /// The same: the image has no index.
    NoIndex,
    /// The same: whether it has one could not be found out in time.
    NoAnswer,
    /// The daemon was to unpack the layer, and failed; containerd unpacks it.
    LocalFailed,
}

/// Why a layer that has an index was not mounted, on its way to another [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Setback {
    /// The index has no zTOC for it.
    NoZtoc,
    /// It could not be mounted.
    MountFailed,
    /// The kernel did not answer.
    Stuck,
}

/// Counts since the daemon started.
#[derive(Debug, Default)]
pub struct Outcomes {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    setbacks: [AtomicU64; Setback::ALL.len()],
}

// === impl Outcome ===

impl Outcome {
    /// Every one, in the order of their numbers.
    pub const ALL: [Outcome; 8] = [
        Outcome::Remote,
        Outcome::Local,
        Outcome::Unlabelled,
        Outcome::BadLabels,
        Outcome::TooSmall,
        Outcome::NoIndex,
        Outcome::NoAnswer,
        Outcome::LocalFailed,
    ];

    /// As metrics show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Remote => "remote",
            Outcome::Local => "local",
            Outcome::Unlabelled => "unlabelled",
            Outcome::BadLabels => "bad_labels",
            Outcome::TooSmall => "too_small",
            Outcome::NoIndex => "no_index",
            Outcome::NoAnswer => "no_answer",
            Outcome::LocalFailed => "local_failed",
        }
    }
}

// === impl Setback ===

impl Setback {
    /// Every one, in the order of their numbers.
    pub const ALL: [Setback; 3] = [Setback::NoZtoc, Setback::MountFailed, Setback::Stuck];

    /// As metrics show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Setback::NoZtoc => "no_ztoc",
            Setback::MountFailed => "mount_failed",
            Setback::Stuck => "stuck",
        }
    }
}

// === impl Outcomes ===

impl Outcomes {
    /// How often a layer ended so.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How often a layer met this.
    #[must_use]
    pub fn setbacks(&self, setback: Setback) -> u64 {
        self.setbacks.get(setback as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(super) fn add(&self, outcome: Outcome) {
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn meet(&self, setback: Setback) {
        if let Some(count) = self.setbacks.get(setback as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
