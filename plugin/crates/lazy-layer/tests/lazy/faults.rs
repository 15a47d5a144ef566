//! Sources that do not deliver.

use std::sync::Arc;
use std::time::Duration;

use lazy_layer::{BlobSource, ReadError};

use crate::bed::{Bed, Fault, Source, ask, asked_for, nid, read, read_all};
use crate::making::{Made, Random, Shape};

fn made() -> Made {
    Made::random(11, Shape::Gzip, 20, 32_768)
}

/// A file with bytes.
fn some(made: &Made) -> (&str, &[u8]) {
    made.files
        .iter()
        .find(|(_, content)| content.len() > 1000)
        .map(|(path, content)| (path.as_str(), content.as_slice()))
        .unwrap()
}

#[test]
fn a_passing_failure_only_delays() {
    let made = made();
    let bed = Bed::new();
    let (layer, source, _attachment) = bed.lazy(&made);
    source.set(Fault::Fail(3));
    read_all(&layer, &made);
}

#[test]
fn wrong_bytes_are_never_served_and_never_remembered() {
    let made = made();
    let bed = Bed::new();
    let (layer, source, _attachment) = bed.lazy(&made);
    let (path, content) = some(&made);
    source.set(Fault::Flip(u32::MAX));
    for _ in 0..3 {
        assert!(matches!(read(&layer, path), Err(ReadError::Digest { .. })));
    }
    assert_eq!(layer.status().present, 0);
    source.set(Fault::None);
    assert_eq!(read(&layer, path).unwrap(), content);
    source.set(Fault::Flip(2));
    read_all(&layer, &made);
}

#[test]
fn a_source_that_is_short_is_an_error() {
    let made = made();
    let bed = Bed::new();
    let (layer, source, _attachment) = bed.lazy(&made);
    let (path, content) = some(&made);
    source.set(Fault::Short(u32::MAX));
    assert!(matches!(read(&layer, path), Err(ReadError::Source { .. })));
    source.set(Fault::Short(1));
    assert_eq!(read(&layer, path).unwrap(), content);
}

#[test]
fn bytes_behind_a_range_are_not_looked_at() {
    for shape in [Shape::Gzip, Shape::Plain] {
        let made = Made::random(12, shape, 20, 32_768);
        let bed = Bed::new();
        let (layer, source, _attachment) = bed.lazy(&made);
        source.set(Fault::Twice);
        read_all(&layer, &made);
        assert!(asked_for(&made, &source).iter().all(|times| *times <= 1), "nor is it a failure");
    }
}

#[test]
fn without_a_source_there_is_an_error_at_once() {
    let made = made();
    let bed = Bed::new();
    let (layer, source, attachment) = bed.lazy(&made);
    let (path, _) = some(&made);
    source.set(Fault::Gone);
    match read(&layer, path) {
        Err(ReadError::Source { source, .. }) => assert_eq!(source.to_string(), "told to be gone"),
        other => panic!("{other:?}"),
    }
    drop(attachment);
    assert!(matches!(read(&layer, path), Err(ReadError::NoSource { .. })));
    let _attachment = layer.attach(Source::new(&made.blob) as Arc<dyn BlobSource>);
    read_all(&layer, &made);
}

#[test]
fn detaching_stops_what_is_under_way() {
    let made = made();
    let bed = Bed::new();
    let (layer, source, attachment) = bed.lazy(&made);
    let (path, content) = some(&made);
    source.set(Fault::Hang);
    let first = ask(&layer, nid(&layer, path), 0, 10);
    let other = Source::new(&made.blob);
    let spare = layer.attach(Arc::clone(&other) as Arc<dyn BlobSource>);
    drop(attachment);
    assert_eq!(first.wait().unwrap(), &content[..10], "the other image's source goes on");
    drop(spare);

    let hung = Source::with(&made.blob, Fault::Hang);
    let attachment = layer.attach(Arc::clone(&hung) as Arc<dyn BlobSource>);
    let (path, content) =
        made.files.iter().rev().find(|(path, content)| content.len() > 50_000 && path != "hard").unwrap();
    let second = ask(&layer, nid(&layer, path), 0, content.len() as u32);
    drop(attachment);
    assert!(matches!(second.wait(), Err(ReadError::NoSource { .. })));
}

#[test]
fn a_deadline_ends_a_hung_read_and_the_next_one_tries_again() {
    let made = made();
    let bed = Bed::with(|options| options.read_deadline = Duration::from_millis(300));
    let (layer, source, _attachment) = bed.lazy(&made);
    let (path, content) = some(&made);
    source.set(Fault::Hang);
    let reads: Vec<_> = (0..5).map(|_| ask(&layer, nid(&layer, path), 0, 10)).collect();
    for asked in reads {
        assert!(matches!(asked.wait(), Err(ReadError::Deadline { .. })));
    }
    source.set(Fault::None);
    assert_eq!(read(&layer, path).unwrap(), content);
}

#[test]
fn a_reader_that_gave_up_does_not_hold_the_layer() {
    let made = made();
    let bed = Bed::with(|options| options.read_deadline = Duration::from_millis(100));
    let (layer, source, attachment) = bed.lazy(&made);
    let (path, _) = some(&made);
    source.set(Fault::Hang);
    assert!(matches!(ask(&layer, nid(&layer, path), 0, 10).wait(), Err(ReadError::Deadline { .. })));
    drop((layer, attachment));
    // Waits until nobody has the layer any more.
    drop(bed.restart());
}

#[test]
fn an_attempt_that_hangs_is_given_up_and_another_made() {
    let made = made();
    let bed = Bed::with(|options| options.attempt_timeout = Duration::from_millis(100));
    let (layer, source, _attachment) = bed.lazy(&made);
    let spare = Source::new(&made.blob);
    let _older_is_asked_later = &spare;
    source.set(Fault::Hang);
    let (path, _) = some(&made);
    let asked = ask(&layer, nid(&layer, path), 0, 10);
    // The first attempt hangs for ever; only a second one can see the switch.
    while source.asked.lock().len() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    source.set(Fault::None);
    asked.wait().unwrap();
}

#[test]
fn too_many_waiters_are_turned_away() {
    let made = made();
    let bed = Bed::with(|options| options.max_waiters = 3);
    let (layer, source, _attachment) = bed.lazy(&made);
    let (path, content) = some(&made);
    source.set(Fault::Hang);
    let mut reads: Vec<_> = (0..4).map(|_| ask(&layer, nid(&layer, path), 0, 10)).collect();
    assert!(matches!(reads.pop().unwrap().now(), Some(Err(ReadError::Busy { .. }))));
    source.set(Fault::None);
    for asked in reads {
        assert_eq!(asked.wait().unwrap(), &content[..10]);
    }
}

#[test]
fn a_runtime_that_is_gone_answers_its_readers() {
    let made = made();
    let bed = Bed::new();
    let (layer, source, _attachment) = bed.lazy(&made);
    let (path, _) = some(&made);
    source.set(Fault::Hang);
    let hung = ask(&layer, nid(&layer, path), 0, 10);
    let runtime = Arc::into_inner(bed.runtime).unwrap();
    runtime.shutdown_timeout(Duration::from_secs(5));
    assert!(matches!(hung.wait(), Err(ReadError::GivenUp { .. })));
    assert!(matches!(read(&layer, path), Err(ReadError::GivenUp { .. })));
}

#[test]
fn chaos_ends_with_the_right_bytes() {
    let mut random = Random::seeded("chaos_ends_with_the_right_bytes");
    let made = Made::random(random.next(), Shape::Members(200_000), 30, 16_384);
    let bed = Bed::with(|options| {
        options.max_backoff = Duration::from_millis(20);
        options.max_bytes_in_flight = 100_000;
        options.max_fetches = 2;
    });
    let (layer, source, _attachment) = bed.lazy(&made);
    for _ in 0..300 {
        source.set(match random.below(7) {
            6 => Fault::Twice,
            0 => Fault::Fail(2),
            1 => Fault::Flip(1 + random.below(4) as u32),
            2 => Fault::Short(1),
            3 => Fault::Delay(Duration::from_millis(random.below(5))),
            _ => Fault::None,
        });
        let (path, content) = &made.files[random.below(made.files.len() as u64) as usize];
        let reads: Vec<_> = (0..3).map(|_| ask(&layer, nid(&layer, path), 0, content.len() as u32)).collect();
        for asked in reads {
            match asked.wait() {
                Ok(got) => assert!(got == *content, "{path}"),
                Err(ReadError::Digest { .. } | ReadError::Source { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    source.set(Fault::None);
    read_all(&layer, &made);
    source.asked.lock().clear();
    read_all(&layer, &made);
    assert_eq!(asked_for(&made, &source).iter().sum::<usize>(), 0);
}
