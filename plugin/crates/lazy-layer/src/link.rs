//! How fast bytes come, and how many connections a host bears.

use std::time::Duration;

use tokio::time::Instant;

use crate::options::StoreOptions;

/// Bytes that fill a link of unknown speed.
const UNKNOWN: u64 = 1 << 20;
/// What a measured link is taken to hold, at least and at most.
const BOUNDS: (u64, u64) = (512 << 10, 64 << 20);
/// The rate is measured over at least so long.
const SAMPLE: Duration = Duration::from_millis(50);
/// The best of this time and of the one before count.
const EPOCH: Duration = Duration::from_secs(5);

/// What all sources together deliver: the highest rate and the shortest way lately. Their product is what has to be under way to keep the link busy.
#[derive(Debug)]
pub(crate) struct Link {
    epoch: Instant,
    sample: Option<(Instant, u64)>,
    /// Bytes a second, in this epoch and in the one before.
    rate: [u64; 2],
    /// From a request to its first byte, in the same two.
    way: [Option<Duration>; 2],
}

impl Link {
    pub(crate) fn new(now: Instant) -> Self {
        Self { epoch: now, sample: None, rate: [0; 2], way: [None; 2] }
    }

    /// Bytes came.
    pub(crate) fn received(&mut self, bytes: u64, now: Instant) {
        self.turn(now);
        let (since, sum) = self.sample.get_or_insert((now, 0));
        let taken = now.saturating_duration_since(*since);
        // The bytes of the first piece came before the time that is measured.
        *sum = sum.saturating_add(if taken.is_zero() { 0 } else { bytes });
        if taken >= SAMPLE {
            let rate = u128::from(*sum).saturating_mul(1000) / taken.as_millis().max(1);
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            if let Some(best) = self.rate.first_mut() {
                *best = rate.max(*best);
            }
            self.sample = None;
        }
    }

    /// The first byte of an answer came.
    pub(crate) fn answered(&mut self, after: Duration, now: Instant) {
        self.turn(now);
        if let Some(shortest) = self.way.first_mut() {
            *shortest = Some(shortest.map_or(after, |known| known.min(after)));
        }
    }

    /// Bytes a second; 0 if not known.
    pub(crate) fn rate(&self) -> u64 {
        self.rate.iter().copied().max().unwrap_or(0)
    }

    /// Bytes that have to be under way so that the link is never idle.
    pub(crate) fn holds(&self) -> u64 {
        let (Some(way), rate @ 1..) = (self.way.iter().flatten().min(), self.rate()) else { return UNKNOWN };
        let bytes = u128::from(rate).saturating_mul(way.as_micros()) / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).clamp(BOUNDS.0, BOUNDS.1)
    }

    fn turn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.epoch);
        if elapsed < EPOCH {
            return;
        }
        let keep = elapsed < EPOCH.saturating_mul(2);
        let [rate, _] = self.rate;
        let [way, _] = self.way;
        self.rate = [0, if keep { rate } else { 0 }];
        self.way = [None, way.filter(|_| keep)];
        self.sample = None;
        self.epoch = now;
    }
}

/// Connections to start with.
const FIRST: usize = 4;
/// How long a number of connections is tried.
const TRIAL: Duration = Duration::from_millis(300);
/// How long it stays when a larger one was of no use, and what somebody waits for keeps to it, too, when the host has complained.
const HOLD: Duration = Duration::from_secs(10);

/// One host, and how many requests at the same time it is asked for what nobody waits for.
#[derive(Debug)]
pub(crate) struct Host {
    max: usize,
    longest_rest: Duration,
    limit: usize,
    /// Under way, of any kind.
    pub(crate) busy: usize,
    /// Those of them that somebody waits for.
    pub(crate) reads: usize,
    /// It wants no request before.
    pub(crate) not_before: Option<Instant>,
    /// It has complained lately.
    spared_until: Option<Instant>,
    trial: Option<Trial>,
    hold_until: Option<Instant>,
}

#[derive(Debug)]
struct Trial {
    since: Instant,
    bytes: u64,
    /// The limit before this one and what it brought, bytes a second.
    before: Option<(usize, u64)>,
}

impl Host {
    pub(crate) fn new(options: &StoreOptions) -> Self {
        let max = options.max_connections_per_host.max(1);
        Self {
            max,
            longest_rest: options.longest_rest,
            limit: FIRST.min(max),
            busy: 0,
            reads: 0,
            not_before: None,
            spared_until: None,
            trial: None,
            hold_until: None,
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Until when no more may be under way at it that somebody waits for: after a complaint it is as many as the limit has.
    pub(crate) fn spared_until(&self, now: Instant) -> Option<Instant> {
        self.spared_until.filter(|until| *until > now && self.reads >= self.limit)
    }

    /// Whether it would be another one if it were forgotten.
    pub(crate) fn is_remembered(&self, now: Instant) -> bool {
        self.busy > 0 || self.not_before.max(self.spared_until).is_some_and(|until| until > now)
    }

    /// More would be under way if the limit let it: sees whether more bring more.
    pub(crate) fn wants_more(&mut self, now: Instant) {
        if self.trial.is_none() && self.hold_until.is_none_or(|until| until <= now) {
            self.trial = Some(Trial { since: now, bytes: 0, before: None });
        }
    }

    /// Bytes came from it.
    pub(crate) fn received(&mut self, bytes: u64, now: Instant) {
        let Some(trial) = &mut self.trial else { return };
        trial.bytes = trial.bytes.saturating_add(bytes);
        let taken = now.saturating_duration_since(trial.since);
        if taken < TRIAL {
            return;
        }
        let rate = u64::try_from(u128::from(trial.bytes).saturating_mul(1000) / taken.as_millis().max(1));
        let rate = rate.unwrap_or(u64::MAX);
        // An eighth more is an improvement.
        match trial.before {
            Some((limit, before)) if rate < before.saturating_add(before / 8) => {
                self.limit = limit;
                self.hold_until = Some(now + HOLD);
                self.trial = None;
            }
            _ if self.limit >= self.max => {
                self.hold_until = Some(now + HOLD);
                self.trial = None;
            }
            _ => {
                let before = Some((self.limit, rate));
                self.limit = self.limit.saturating_add(self.limit.div_ceil(4)).min(self.max);
                self.trial = Some(Trial { since: now, bytes: 0, before });
            }
        }
    }

    /// It asked for fewer requests, or did not answer in time.
    pub(crate) fn overloaded(&mut self, rest: Option<Duration>, now: Instant) {
        self.limit = (self.limit / 2).max(1);
        self.trial = None;
        self.hold_until = Some(now + HOLD);
        self.spared_until = self.hold_until;
        if let Some(rest) = rest {
            self.not_before = self.not_before.max(Some(now + rest.min(self.longest_rest)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_link_holds_its_rate_times_its_way() {
        let start = Instant::now();
        let mut link = Link::new(start);
        assert_eq!(link.holds(), UNKNOWN);
        link.answered(Duration::from_millis(40), at(start, 40));
        link.answered(Duration::from_millis(20), at(start, 60));
        // 50 kB each millisecond.
        (60..400).for_each(|millis| link.received(50_000, at(start, millis)));
        assert!((45_000_000..=51_000_000).contains(&link.rate()), "{}", link.rate());
        assert!((900_000..=1_020_000).contains(&link.holds()), "{}", link.holds());
        link.received(1, at(start, 20_000));
        assert_eq!(link.rate(), 0, "what was long ago does not count");
    }

    fn host(max_connections_per_host: usize) -> Host {
        Host::new(&StoreOptions { max_connections_per_host, ..StoreOptions::new("/") })
    }

    /// A host that gives 10 MB/s to each of so many connections, asked for more all the time.
    fn settled(connections: u64) -> usize {
        let start = Instant::now();
        let mut host = host(64);
        for millis in 0..5_000 {
            host.wants_more(at(start, millis));
            host.received(10_000 * (host.limit() as u64).min(connections), at(start, millis));
        }
        host.limit()
    }

    #[test]
    fn connections_grow_while_they_bring_more() {
        assert_eq!(settled(2), FIRST);
        assert!((10..=16).contains(&settled(12)), "{}", settled(12));
        assert!(settled(1000) >= 40);
    }

    #[test]
    fn a_host_that_asks_for_less_gets_less() {
        let start = Instant::now();
        let mut host = host(32);
        host.overloaded(Some(Duration::from_secs(2)), start);
        assert_eq!((host.limit(), host.not_before), (2, Some(at(start, 2_000))));
        host.overloaded(Some(Duration::from_secs(7_000)), start);
        assert_eq!((host.limit(), host.not_before), (1, Some(at(start, 60_000))));
    }

    #[test]
    fn a_host_that_has_complained_is_spared_for_a_while() {
        let start = Instant::now();
        let mut host = host(32);
        host.reads = 20;
        assert_eq!(host.spared_until(start), None);
        // It did not answer in time.
        host.overloaded(None, start);
        assert_eq!((host.limit(), host.not_before), (2, None));
        let until = at(start, 10_000);
        assert_eq!(host.spared_until(start), Some(until));
        host.reads = 1;
        assert_eq!(host.spared_until(start), None, "one more is within the limit");
        host.reads = 2;
        assert_eq!((host.spared_until(start), host.spared_until(until)), (Some(until), None));
        assert!(host.is_remembered(start) && !host.is_remembered(until));
        host.overloaded(Some(Duration::from_secs(30)), start);
        assert!(host.is_remembered(until), "it wants to be left alone");
    }
}
