//! Which spans will be read next.
//!
//! A container start is mostly one thread that opens file after file, and files that belong together lie together in the tar. So what is read is seen
//! as a few streams through the layer's spans: a read at the end of a stream, or a little behind it, makes it longer, and what is fetched ahead of it
//! twice as much; any other read begins a new one. How much a new one gets depends on how much of what was fetched ahead has been read
//! at all, lately: who reads at random soon gets nothing more. A file that is small is fetched to its end, one of middling size is fetched whole at
//! the second read that does not follow the first.
//!
//! There is no open: the first read of a file is all that is seen of it.

use std::ops::{Range, RangeInclusive};

/// Streams that are followed at the same time.
const STREAMS: usize = 8;
/// Files whose reads are counted.
const FILES: usize = 16;
/// What a new stream gets, in compressed bytes; at least one span.
const FIRST_WINDOW: u64 = 2 << 20;
/// So many spans may lie between the end of a stream and a read that continues it.
const GAP: usize = 2;
/// The rest of a file that is fetched at its first read, in bytes of the tar.
const SMALL_REST: u64 = 8 << 20;
/// The largest file that is fetched whole at the second read.
const MIDDLING_FILE: u64 = 32 << 20;
/// Of so many spans fetched ahead it is counted how many were read.
const MEMORY: u32 = 64;
/// New streams of a reader at random, of which one is given a chance.
const CHANCE: u32 = 8;

/// What is known of one layer's readers. A few hundred bytes.
#[derive(Debug)]
pub(crate) struct Ahead {
    streams: Vec<Stream>,
    files: Vec<(u64, u64)>,
    clock: u64,
    /// Spans fetched ahead, and those of them that were read.
    asked: u32,
    used: u32,
    refused: u32,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The furthest span that was read.
    last: usize,
    /// One past the furthest that was asked for.
    next: usize,
    window: u64,
    /// When it was last continued.
    clock: u64,
}

/// A read, as far as it matters here.
#[derive(Clone, Debug)]
pub(crate) struct Touch {
    /// The spans that it needs.
    pub(crate) spans: RangeInclusive<usize>,
    /// Whether it had to wait.
    pub(crate) missed: bool,
    /// How many of these were fetched ahead, and had not been read before.
    pub(crate) used: u32,
    /// The file whose bytes it ends in, in bytes of the tar, and the spans of that.
    pub(crate) file: Option<(Range<u64>, RangeInclusive<usize>)>,
}

impl Ahead {
    pub(crate) fn new() -> Self {
        Self { streams: Vec::new(), files: Vec::new(), clock: 0, asked: 0, used: 0, refused: 0 }
    }

    /// The spans that should be fetched after a read, the most likely first; they may be here already. `len` gives a span's compressed bytes, `None` behind the last. A stream
    /// gets up to `max` of them.
    pub(crate) fn after(
        &mut self,
        touch: &Touch,
        max: u64,
        len: impl Fn(usize) -> Option<u64>,
    ) -> Vec<Range<usize>> {
        self.clock = self.clock.wrapping_add(1);
        self.used = self.used.saturating_add(touch.used).min(self.asked);
        let (first, last) = (*touch.spans.start(), *touch.spans.end());
        let goes_on = |stream: &&mut Stream| {
            first.saturating_add(1) >= stream.last && first <= stream.next.saturating_add(GAP)
        };
        let known = self.streams.iter_mut().filter(goes_on).min_by_key(|stream| stream.next.abs_diff(first));
        let mut stream = match known {
            Some(stream) => {
                if first > stream.last || last > stream.last {
                    stream.window = stream.window.saturating_mul(2).max(FIRST_WINDOW);
                }
                stream.last = stream.last.max(last);
                stream.clock = self.clock;
                *stream
            }
            None => Stream { last, next: first, window: self.first_window(), clock: self.clock },
        };
        stream.window = stream.window.min(max);
        let start = stream.next.max(stream.last.saturating_add(1));
        let mut end = stream.last.saturating_add(1);
        let mut bytes = 0u64;
        while bytes < stream.window
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
        if let Some(rest) = self.rest_of_file(touch)
            && max > 0
        {
            ask.push(rest);
        }
        let count: usize = ask.iter().map(ExactSizeIterator::len).sum();
        self.count(u32::try_from(count).unwrap_or(u32::MAX));
        ask
    }

    /// What of the file a read is in should be fetched too.
    fn rest_of_file(&mut self, touch: &Touch) -> Option<Range<usize>> {
        let (bytes, spans) = touch.file.as_ref().filter(|_| touch.missed)?;
        let size = bytes.end.saturating_sub(bytes.start);
        let behind = touch.spans.end().saturating_add(1)..spans.end().saturating_add(1);
        if size <= SMALL_REST {
            return (!behind.is_empty()).then_some(behind);
        }
        let known = self.files.iter().any(|(start, _)| *start == bytes.start);
        if known {
            return (size <= MIDDLING_FILE).then(|| *spans.start()..spans.end().saturating_add(1));
        }
        if self.files.len() >= FILES {
            let oldest = self.files.iter().enumerate().min_by_key(|(_, (_, clock))| *clock);
            if let Some((at, _)) = oldest {
                self.files.swap_remove(at);
            }
        }
        self.files.push((bytes.start, self.clock));
        None
    }

    fn first_window(&mut self) -> u64 {
        if self.asked < MEMORY / 4 || self.used.saturating_mul(5) >= self.asked.saturating_mul(2) {
            return FIRST_WINDOW;
        }
        self.refused = self.refused.wrapping_add(1);
        if self.refused.is_multiple_of(CHANCE) { FIRST_WINDOW } else { 0 }
    }

    fn count(&mut self, asked: u32) {
        self.asked = self.asked.saturating_add(asked);
        while self.asked > MEMORY {
            self.asked /= 2;
            self.used /= 2;
        }
    }

    /// Puts a stream into its place, or into that of the one that was continued longest ago.
    fn keep(&mut self, stream: Stream) {
        if let Some(same) = self.streams.iter_mut().find(|known| known.clock == stream.clock) {
            *same = stream;
        } else if self.streams.len() < STREAMS {
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
        Touch { spans: span..=span, missed: true, used: 0, file: None }
    }

    #[test]
    fn a_reader_from_the_beginning_is_led_to_the_end() {
        let mut ahead = Ahead::new();
        let mut asked = std::collections::BTreeSet::new();
        for span in 0..SPANS {
            assert!(span == 0 || asked.contains(&span), "span {span} was not expected");
            let used = u32::from(asked.contains(&span));
            for range in ahead.after(&Touch { used, missed: used == 0, ..touch(span) }, MAX, len) {
                for span in range {
                    assert!(asked.insert(span), "span {span} was asked for twice");
                }
            }
        }
        assert_eq!(asked.len(), SPANS - 1);
    }

    #[test]
    fn windows_grow_up_to_their_bound() {
        let mut ahead = Ahead::new();
        let mut end = 0;
        for span in 0..40 {
            for range in ahead.after(&touch(span), MAX, len) {
                end = end.max(range.end);
            }
            assert!(end <= span + 1 + 16, "{end} after {span}");
        }
        assert_eq!(end, 40 + 16);
        assert!(Ahead::new().after(&touch(3), 0, len).is_empty(), "turned off");
    }

    #[test]
    fn who_reads_at_random_soon_gets_nothing() {
        let mut ahead = Ahead::new();
        let mut asked = 0;
        for step in 0..500_usize {
            asked += ahead
                .after(&touch(step * 7919 % SPANS), MAX, len)
                .iter()
                .map(|range| range.len())
                .sum::<usize>();
        }
        assert!(asked < 250, "{asked} spans for 500 reads");
    }

    #[test]
    fn several_readers_are_told_apart() {
        let mut ahead = Ahead::new();
        for step in 0..20 {
            for reader in [0, 60, 120] {
                ahead.after(&Touch { used: 1, ..touch(reader + step) }, MAX, len);
            }
        }
        let windows: Vec<u64> = ahead.streams.iter().map(|stream| stream.window).collect();
        assert_eq!(windows, [MAX; 3]);
    }

    #[test]
    fn files_are_fetched_to_their_end() {
        let mut ahead = Ahead::new();
        let small = Some((0..7 << 20, 50..=52));
        let ask = ahead.after(&Touch { file: small, ..touch(50) }, MAX, len);
        assert!(ask.contains(&(51..53)), "{ask:?}");
        let middling = Some((100 << 20..120 << 20, 100..=106));
        let ask = ahead.after(&Touch { file: middling.clone(), ..touch(100) }, MAX, len);
        assert!(!ask.contains(&(100..107)), "{ask:?}");
        let ask = ahead.after(&Touch { file: middling, ..touch(105) }, MAX, len);
        assert!(ask.contains(&(100..107)), "{ask:?}");
    }
}
