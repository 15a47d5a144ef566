//! A brake for log lines that outsiders can cause.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many events pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// At once.
    pub burst: u32,
    /// One more for every such interval that passes.
    pub pause: Duration,
}

/// Lets a burst of events through and then one for each interval; the next that passes says how many did not.
///
/// For events that an image, a container or a registry can cause at will: a disk full of log lines is an attack too.
#[derive(Debug)]
pub struct Limiter {
    brake: Brake,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    left: u32,
    refilled: Option<Instant>,
    dropped: u64,
}

// === impl Limiter ===

impl Limiter {
    /// With nothing passed yet.
    #[must_use]
    pub const fn new(brake: Brake) -> Limiter {
        Limiter { brake, state: Mutex::new(State { left: brake.burst, refilled: None, dropped: 0 }) }
    }

    /// `Some(number dropped since the last one)` if this event may be logged.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let since = *state.refilled.get_or_insert(now);
        let earned = now
            .saturating_duration_since(since)
            .as_nanos()
            .checked_div(self.brake.pause.as_nanos())
            .unwrap_or(u128::MAX);
        if earned > 0 {
            state.left =
                state.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(self.brake.burst);
            state.refilled = Some(now);
        }
        if state.left == 0 {
            state.dropped = state.dropped.saturating_add(1);
            return None;
        }
        state.left -= 1;
        Some(std::mem::take(&mut state.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_an_interval() {
        let limiter = Limiter::new(Brake { burst: 2, pause: Duration::from_secs(1) });
        let start = Instant::now();
        assert_eq!(limiter.pass_at(start), Some(0));
        assert_eq!(limiter.pass_at(start), Some(0));
        assert_eq!(limiter.pass_at(start), None);
        assert_eq!(limiter.pass_at(start + Duration::from_millis(900)), None);
        assert_eq!(limiter.pass_at(start + Duration::from_millis(1100)), Some(2));
        assert_eq!(limiter.pass_at(start + Duration::from_millis(1200)), None);
    }
}
