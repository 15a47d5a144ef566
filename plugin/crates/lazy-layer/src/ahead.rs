//! Which spans will be read next.
//!
//! A container start is mostly one thread that opens file after file, here a few, there a few: it needs a third of its layers, and what lies next to what it
//! reads is needed in half the cases. To fetch that as soon as something is read would cost more than it saves: it shares the link with what is waited
//! for (measured with four images: twice the bytes, and no start was faster). So only what has been followed for a while is preceded: a stream of reads that
//! has gone on from span to span [`CONFIRMED`] times, each time into the beginning of one ([`ENTRANCE`]), is preceded by a part of what it has read: a
//! quarter, so that its end wastes no more than that. A file that is small is fetched to its end.
//!
//! Between two misses, however, the link has a round trip's time for nothing. That is spent on a guess: the span that follows, wherever a read is. It comes
//! behind what is waited for, on the same line (see `board`), and so costs the reader next to nothing. Half of the guesses are right (measured with four
//! images; for the span before it is less): Python started a seventh sooner and PostgreSQL a tenth, Node and Erlang not later, for a tenth more bytes. As
//! long as a third of them is read, more are made: [`Guesses`]. None is made where a program ends that was followed (see [`crate::start`]): what it needs is asked for, and
//! of what lies behind it, one in four was needed.
//!
//! There is no open: the first read of a file is all that is seen of it.

use std::ops::{Range, RangeInclusive};

/// How often a stream goes on to another span before anything is fetched ahead of it.
const CONFIRMED: u32 = 2;
/// The part of what a stream has read that is fetched ahead of it; at least one span.
const PART: u64 = 4;
/// So many spans may lie between the end of a stream and a read that continues it.
const GAP: usize = 1;
/// Who goes on from one span to the next begins in this part of it. A loader that opens libraries in the order in which they were packed goes from span to span, too, and
/// begins anywhere.
const ENTRANCE: u64 = 8;
/// The rest of a file that is fetched at its first read, in bytes of the tar.
const SMALL_REST: u64 = 4 << 20;

/// As many guesses are made for each that was right.
const GUESSES: u64 = 3;

/// What is known of one layer's readers. A few hundred bytes.
#[derive(Debug)]
pub(crate) struct Ahead {
    streams: Vec<Stream>,
    /// Streams that are followed at the same time.
    max_streams: usize,
    clock: u64,
    guesses: Guesses,
}

/// How good what is fetched ahead turns out to be, in spans.
#[derive(Clone, Copy, Debug, Default)]
struct Guesses {
    made: u64,
    read: u64,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The furthest span that was read.
    last: usize,
    /// One past the furthest that was asked for.
    next: usize,
    /// Compressed bytes of the spans that it went on to.
    read: u64,
    /// How often it did.
    advances: u32,
    /// When it was last continued.
    clock: u64,
}

/// Whether a read that begins at `start` came into the span with these bytes of the tar at its beginning.
pub(crate) fn enters(span: &Range<u64>, start: u64) -> bool {
    let len = span.end.saturating_sub(span.start);
    start < span.start.saturating_add(len / ENTRANCE)
}

/// A read, as far as it matters here.
#[derive(Clone, Debug)]
pub(crate) struct Touch {
    /// The spans that it needs.
    pub(crate) spans: RangeInclusive<usize>,
    /// Whether it had to wait.
    pub(crate) missed: bool,
    /// Whether it came into the last of them at its beginning: [`enters`].
    pub(crate) enters: bool,
    /// The file whose bytes it ends in, in bytes of the tar, and the spans of that.
    pub(crate) file: Option<(Range<u64>, RangeInclusive<usize>)>,
}

impl Ahead {
    pub(crate) fn new(max_streams: usize) -> Self {
        Self { streams: Vec::new(), max_streams, clock: 0, guesses: Guesses::default() }
    }

    /// The spans that should be fetched after a read, the most likely first; they may be here, or asked for, already. `len` gives a span's compressed bytes, `None` behind the last. A stream
    /// gets up to `max` of them.
    pub(crate) fn after(
        &mut self,
        touch: &Touch,
        max: u64,
        len: impl Fn(usize) -> Option<u64>,
    ) -> Vec<Range<usize>> {
        self.clock = self.clock.wrapping_add(1);
        let (first, last) = (*touch.spans.start(), *touch.spans.end());
        let goes_on = |stream: &&mut Stream| {
            first.saturating_add(1) >= stream.last && first <= stream.next.saturating_add(GAP)
        };
        let known = self.streams.iter_mut().filter(goes_on).min_by_key(|stream| stream.next.abs_diff(first));
        let mut stream = match known {
            Some(stream) => {
                if last > stream.last && touch.enters {
                    stream.advances = stream.advances.saturating_add(1);
                    let entered = stream.last.saturating_add(1)..last.saturating_add(1);
                    let bytes: u64 = entered.filter_map(&len).sum();
                    stream.read = stream.read.saturating_add(bytes);
                }
                stream.last = stream.last.max(last);
                stream.clock = self.clock;
                *stream
            }
            None => Stream { last, next: first, read: 0, advances: 0, clock: self.clock },
        };
        let window = if stream.advances < CONFIRMED { 0 } else { (stream.read / PART).max(1).min(max) };
        // Those that were asked for before come first again: what is further on must not overtake them.
        let start = stream.last.saturating_add(1);
        let mut end = start;
        let mut bytes = 0u64;
        while bytes < window
            && let Some(len) = len(end)
        {
            bytes = bytes.saturating_add(len);
            end = end.saturating_add(1);
        }
        let mut ask = Vec::new();
        if start < end {
            ask.push(start..end);
        }
        stream.next = stream.next.max(end);
        self.keep(stream);
        if let Some(rest) = Self::rest_of_file(touch)
            && max > 0
        {
            ask.push(rest);
        }
        ask
    }

    /// The span that follows what was read, if it should be fetched too because guesses have been good: `tries` may be wrong before any was right, 0 for none at all. `is_missing` tells whether a
    /// span is not here.
    pub(crate) fn guess(
        &self,
        touch: &Touch,
        tries: u64,
        is_missing: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if tries == 0 || self.guesses.made >= self.guesses.read.saturating_mul(GUESSES).saturating_add(tries)
        {
            return None;
        }
        touch.spans.end().checked_add(1).filter(|span| is_missing(*span))
    }

    /// Whether somebody who goes on from span to span is at this one.
    pub(crate) fn is_passed(&self, span: usize) -> bool {
        let confirmed = |stream: &&Stream| stream.advances >= CONFIRMED;
        self.streams.iter().filter(confirmed).any(|stream| stream.last.abs_diff(span) <= GAP)
    }

    /// So many spans are fetched ahead.
    pub(crate) fn made(&mut self, spans: usize) {
        self.guesses.made = self.guesses.made.saturating_add(spans as u64);
    }

    /// A span that was fetched ahead is read for the first time.
    pub(crate) fn was_read(&mut self) {
        self.guesses.read = self.guesses.read.saturating_add(1);
    }

    /// What of the file a read is in should be fetched too.
    fn rest_of_file(touch: &Touch) -> Option<Range<usize>> {
        let (bytes, spans) = touch.file.as_ref().filter(|_| touch.missed)?;
        let behind = touch.spans.end().saturating_add(1)..spans.end().saturating_add(1);
        let size = bytes.end.saturating_sub(bytes.start);
        (size <= SMALL_REST && !behind.is_empty()).then_some(behind)
    }

    /// Puts a stream into its place, or into that of the one that was continued longest ago.
    fn keep(&mut self, stream: Stream) {
        if let Some(same) = self.streams.iter_mut().find(|known| known.clock == stream.clock) {
            *same = stream;
        } else if self.streams.len() < self.max_streams {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|known| known.clock) {
            *oldest = stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPANS: usize = 200;
    const MAX: u64 = 16 << 20;

    fn len(span: usize) -> Option<u64> {
        (span < SPANS).then_some(1 << 20)
    }

    fn touch(span: usize) -> Touch {
        Touch { spans: span..=span, missed: true, enters: true, file: None }
    }

    #[test]
    fn a_reader_from_the_beginning_is_led_to_the_end() {
        let mut ahead = Ahead::new(8);
        let mut asked = std::collections::BTreeSet::new();
        for span in 0..SPANS {
            assert!(span <= CONFIRMED as usize || asked.contains(&span), "span {span} was not expected");
            for range in ahead.after(&Touch { missed: !asked.contains(&span), ..touch(span) }, MAX, len) {
                assert_eq!(range.start, span + 1, "what is next comes first, asked for before or not");
                asked.extend(range);
            }
        }
        assert_eq!(asked.len(), SPANS - 1 - CONFIRMED as usize);
    }

    #[test]
    fn windows_grow_up_to_their_bound() {
        let mut ahead = Ahead::new(8);
        let mut end = 0;
        for span in 0..40 {
            for range in ahead.after(&touch(span), MAX, len) {
                end = end.max(range.end);
            }
            assert!(end <= span + 1 + span.div_ceil(4).clamp(1, 16), "{end} after {span}");
        }
        assert_eq!(end, 40 + 10);
        let mut off = Ahead::new(8);
        assert!((0..40).all(|span| off.after(&touch(span), 0, len).is_empty()), "turned off");
    }

    #[test]
    fn who_reads_at_random_gets_nothing() {
        let mut ahead = Ahead::new(8);
        for step in 0..500_usize {
            assert!(ahead.after(&touch(step * 7919 % SPANS), MAX, len).is_empty());
        }
    }

    #[test]
    fn who_opens_libraries_in_packed_order_gets_nothing() {
        let mut ahead = Ahead::new(8);
        for span in [7, 8, 9, 10, 12, 13] {
            assert!(ahead.after(&Touch { enters: false, ..touch(span) }, MAX, len).is_empty());
        }
        // He may turn out to be a reader all the same.
        let asked: Vec<_> = (14..17).flat_map(|span| ahead.after(&touch(span), MAX, len)).collect();
        assert_eq!(asked, [16..17, 17..18]);
        assert!([15, 16, 17].into_iter().all(|span| ahead.is_passed(span)));
        assert!(![7, 14, 18].into_iter().any(|span| ahead.is_passed(span)));
    }

    #[test]
    fn spans_are_entered_at_their_beginning() {
        let span = 8000..8000 + 800;
        assert!([0, 7999, 8000, 8099].into_iter().all(|start| enters(&span, start)));
        assert!([8100, 8799].into_iter().all(|start| !enters(&span, start)));
    }

    #[test]
    fn several_readers_are_told_apart() {
        let mut ahead = Ahead::new(8);
        for step in 0..20 {
            for reader in [0, 60, 120] {
                ahead.after(&touch(reader + step), MAX, len);
            }
        }
        let ahead_by: Vec<usize> = ahead.streams.iter().map(|stream| stream.next - stream.last - 1).collect();
        assert_eq!(ahead_by, [5; 3]);
    }

    const TRIES: u64 = 4;

    /// What is fetched by guess for a reader of these spans, in order.
    fn guessed(reads: impl Iterator<Item = usize>) -> (usize, usize) {
        let (mut ahead, mut here) = (Ahead::new(8), std::collections::BTreeSet::new());
        let (mut made, mut of_use) = (std::collections::BTreeSet::new(), 0);
        for span in reads {
            here.insert(span);
            if made.remove(&span) {
                of_use += 1;
                ahead.was_read();
            }
            if let Some(guess) =
                ahead.guess(&touch(span), TRIES, |span| span < SPANS && !here.contains(&span))
            {
                assert!(guess.abs_diff(span) == 1 && here.insert(guess));
                made.insert(guess);
                ahead.made(1);
            }
        }
        (made.len(), of_use)
    }

    #[test]
    fn guesses_go_on_only_while_they_are_good() {
        // Everything is read, in no order.
        let (wrong, right) = guessed((0..SPANS).map(|step| step * 77 % SPANS));
        assert!(right >= SPANS / 3 && wrong == 0, "{right} right, {wrong} wrong");
        // Nothing that is next to anything that is read.
        let (wrong, right) = guessed((0..SPANS / 4).map(|step| step * 4));
        assert_eq!((wrong, right), (TRIES as usize, 0));
    }

    #[test]
    fn files_are_fetched_to_their_end() {
        let mut ahead = Ahead::new(8);
        let small = Some((0..3 << 20, 50..=52));
        let ask = ahead.after(&Touch { file: small, ..touch(50) }, MAX, len);
        assert!(ask.iter().eq(std::iter::once(&(51..53))), "{ask:?}");
        let large = Some((100 << 20..120 << 20, 100..=120));
        assert!(ahead.after(&Touch { file: large, ..touch(100) }, MAX, len).is_empty());
    }
}
