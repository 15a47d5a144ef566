//! A reader with a clock: one page of each span of a file, in no order, by any number of threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::files::Noise;

/// Distance of the pages: no two in one span of `soci create`'s default size.
pub const STRIDE: u64 = 4 << 20;
/// Bytes of a read.
const PAGE: usize = 4096;

/// Reads `readers` threads wide; how long each read took, shortest first.
///
/// # Errors
/// The file cannot be read.
pub fn latencies(file: &Path, readers: usize) -> io::Result<Vec<Duration>> {
    let file = File::open(file)?;
    let mut places: Vec<u64> =
        (0..file.metadata()?.len() / STRIDE).map(|span| span * STRIDE + STRIDE / 2).collect();
    shuffle(&mut places);
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        let shares = places.chunks(places.len().div_ceil(readers).max(1));
        let threads: Vec<_> = shares.map(|share| scope.spawn(|| read_each(&file, share))).collect();
        threads.into_iter().try_for_each(|thread| {
            all.extend(thread.join().unwrap()?);
            io::Result::Ok(())
        })
    })?;
    all.sort_unstable();
    Ok(all)
}

fn read_each(file: &File, places: &[u64]) -> io::Result<Vec<Duration>> {
    let mut page = [0; PAGE];
    places
        .iter()
        .map(|place| {
            let began = Instant::now();
            file.read_exact_at(&mut page, *place)?;
            Ok(began.elapsed())
        })
        .collect()
}

/// The same order each time.
fn shuffle(places: &mut [u64]) {
    let mut noise = Noise::new(1);
    for last in (1..places.len()).rev() {
        places.swap(last, (noise.next_word() % (last as u64 + 1)) as usize);
    }
}

/// The smallest value that `percent` of all are not above.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_span_is_read_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(21 * STRIDE + 5).unwrap();
        for readers in [1, 4, 50] {
            assert_eq!(latencies(file.path(), readers).unwrap().len(), 21);
        }
    }

    #[test]
    fn an_order_that_is_none() {
        let mut places: Vec<u64> = (0..100).collect();
        shuffle(&mut places);
        assert!(places.windows(2).filter(|pair| pair[1] == pair[0] + 1).count() < 10, "{places:?}");
        places.sort_unstable();
        assert!(places.into_iter().eq(0..100));
    }

    #[test]
    fn percentiles() {
        let sorted: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), Duration::from_millis(100));
        assert_eq!(percentile(&sorted, 99), Duration::from_millis(198));
        assert_eq!(percentile(&sorted[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
