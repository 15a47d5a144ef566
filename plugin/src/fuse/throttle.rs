//! A container must not be able to fill the disk with our log lines.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines in one period.
const LINES: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);

/// Lets a few events through in each period and counts the others.
#[derive(Debug)]
pub(super) struct Throttle(Mutex<Window>);

#[derive(Debug)]
struct Window {
    began: Instant,
    passed: u32,
    suppressed: u64,
}

impl Throttle {
    pub(super) fn new() -> Throttle {
        Throttle(Mutex::new(Window { began: Instant::now(), passed: 0, suppressed: 0 }))
    }

    /// None if this event is one too many, otherwise how many were since the last that was not.
    pub(super) fn pass(&self) -> Option<u64> {
        let mut window = self.0.lock();
        if window.began.elapsed() >= PERIOD {
            window.began = Instant::now();
            window.passed = 0;
        }
        if window.passed >= LINES {
            window.suppressed = window.suppressed.saturating_add(1);
            return None;
        }
        window.passed += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_pass_and_the_rest_is_counted() {
        let throttle = Throttle::new();
        let passed = (0..1000).filter(|_| throttle.pass().is_some()).count();
        assert_eq!(passed, LINES as usize);
        throttle.0.lock().began -= PERIOD;
        assert_eq!(throttle.pass(), Some(1000 - u64::from(LINES)));
        assert_eq!(throttle.pass(), Some(0));
    }
}
