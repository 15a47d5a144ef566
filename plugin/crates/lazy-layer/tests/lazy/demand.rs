//! What is fetched first, what gives way, and that nothing is fetched twice.

use std::sync::Arc;
use std::time::Duration;

use lazy_layer::{Attachment, BlobSource, Layer, SourceError, StoreOptions};

use crate::bed::{Asked, Bed, Fault, Source, ask, asked_for, nid, read_all, wait_until};
use crate::making::{Made, Random, Shape};
use crate::script::{Request, Script};

const SPAN: u64 = 128 << 10;
const SPANS: u64 = 48;

fn large() -> Made {
    plain(SPAN)
}

fn plain(span: u64) -> Made {
    Made::file_per_span(31, SPANS, span)
}

fn scripted(
    made: &Made,
    change: impl FnOnce(&mut StoreOptions),
) -> (Bed, Arc<Layer>, Arc<Script>, Attachment) {
    let bed = Bed::with(change);
    let layer = bed.create(made);
    let script = Script::new(&made.blob);
    let attachment = layer.attach(Arc::clone(&script) as Arc<dyn BlobSource>);
    (bed, layer, script, attachment)
}

/// Asks for a few bytes in the middle of a span.
fn ask_span(layer: &Arc<Layer>, span: u64) -> Asked {
    ask(layer, nid(layer, &format!("{span}")), SPAN / 2, 100)
}

/// Asks for a few bytes where a span begins, as one who goes on from span to span does.
fn enter_span(layer: &Arc<Layer>, span: u64) -> Asked {
    ask(layer, nid(layer, &format!("{span}")), 0, 100)
}

fn bytes_of(span: u64) -> std::ops::Range<u64> {
    span * SPAN..(span + 1) * SPAN
}

fn check(made: &Made, span: u64, asked: Asked) {
    let start = (SPAN / 2) as usize;
    assert_eq!(asked.wait().unwrap(), made.files[span as usize].1[start..start + 100]);
}

#[test]
fn a_reader_is_answered_when_its_span_has_come() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |options| options.max_read_ahead = 4 << 20);
    let check = |span: u64, asked: Asked| {
        assert_eq!(asked.wait().unwrap(), made.files[span as usize].1[..100]);
    };
    // A reader that goes from span to span.
    for span in [3, 4] {
        let asked = enter_span(&layer, span);
        script.request(|request| request.range == bytes_of(span)).serve();
        check(span, asked);
    }
    let first = enter_span(&layer, 5);
    let request = script.nth(2);
    assert_eq!(request.range.start, bytes_of(5).start, "its own span comes first");
    assert!(request.range.end > bytes_of(5).end, "and what is expected next behind it: {:?}", request.range);
    assert!(first.now().is_none());
    request.send(bytes_of(5));
    check(5, first);
    assert!(layer.status().fetched_on_demand == 3 * SPAN && layer.status().fetched_by_read_ahead == 0);

    // The next one is on its way already.
    let second = enter_span(&layer, 6);
    request.send(bytes_of(6));
    check(6, second);
    let of_six =
        script.requests().iter().filter(|request| request.range.contains(&bytes_of(6).start)).count();
    assert_eq!(of_six, 1, "a span that is on its way is not asked for again");
}

#[test]
fn what_is_next_is_not_overtaken_by_what_comes_later() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |options| {
        options.max_read_ahead = 4 << 20;
        options.max_guesses = 0;
        options.max_ahead_while_waiting = 0;
    });
    // As long as this one is not answered nothing is fetched ahead.
    let other = ask_span(&layer, 40);
    let unanswered = script.nth(0);
    for span in 3..10 {
        let asked = enter_span(&layer, span);
        script.request(|request| request.range == bytes_of(span)).serve();
        asked.wait().unwrap();
    }
    unanswered.serve();
    check(&made, 40, other);
    let next = script.nth(8);
    assert_eq!(next.range.start, bytes_of(10).start, "{:?}", next.range);
}

#[test]
fn who_begins_in_the_middle_of_each_span_is_not_preceded() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |options| {
        options.max_read_ahead = 4 << 20;
        options.max_guesses = 0;
    });
    for span in 3..9 {
        let asked = ask_span(&layer, span);
        script.request(|request| request.range == bytes_of(span)).serve();
        check(&made, span, asked);
    }
    assert_eq!(script.requests().len(), 6);
}

#[test]
fn a_neighbour_is_guessed_behind_a_read() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |options| {
        options.max_read_ahead = 4 << 20;
        options.max_guesses = 1;
    });
    let asked = ask_span(&layer, 10);
    let request = script.nth(0);
    assert_eq!(request.range, bytes_of(10).start..bytes_of(11).end);
    request.serve();
    check(&made, 10, asked);
    // It was not of use so far.
    let asked = ask_span(&layer, 20);
    let request = script.nth(1);
    assert_eq!(request.range, bytes_of(20));
    request.serve();
    check(&made, 20, asked);
}

#[test]
fn what_is_expected_is_asked_for_when_the_answer_to_a_read_has_begun() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |options| {
        options.max_read_ahead = 4 << 20;
        options.max_guesses = 2;
    });
    let asked = ask_span(&layer, 10);
    script.request(|request| request.range == (bytes_of(10).start..bytes_of(11).end)).serve();
    check(&made, 10, asked);
    let waiting = ask_span(&layer, 30);
    let request = script.request(|request| request.range.start == bytes_of(30).start);
    // It was guessed, so what follows it is expected.
    check(&made, 11, ask_span(&layer, 11));
    let follows = |request: &Request| request.range == bytes_of(12);
    // Another reader comes and goes: time enough for the engine to ask.
    let other = ask_span(&layer, 40);
    let both = script.request(|request| request.range.start == bytes_of(40).start);
    assert!(!script.requests().iter().any(|request| follows(request)), "nobody was answered");
    both.serve();
    check(&made, 40, other);
    request.send(request.range.start..request.range.start + 1000);
    script.request(follows).serve();
    request.send(request.range.start + 1000..request.range.end);
    check(&made, 30, waiting);
}

#[test]
fn what_somebody_waits_for_comes_alone_and_everything_else_stands_still() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |options| {
        options.fill.disable = false;
        options.fill.silence = Duration::ZERO;
    });
    // The background begins at once where nobody reads.
    let fill = script.request(|request| request.range.start == 0);
    fill.send(0..1000);
    wait_until("the background goes on", || fill.taken() == 1);

    let far = SPANS - 3;
    let urgent = ask_span(&layer, far);
    let request = script.request(|request| request.range == bytes_of(far));
    let before = fill.taken();
    (1..60).for_each(|piece| fill.send(piece * 1000..(piece + 1) * 1000));
    // Another reader comes and goes: time enough for the engine to take what it would take.
    let other = ask_span(&layer, far - 2);
    script.request(|request| request.range == bytes_of(far - 2)).serve();
    check(&made, far - 2, other);
    assert!(fill.taken() <= before + 1, "{} pieces while somebody waits", fill.taken() - before);

    request.serve();
    check(&made, far, urgent);
    wait_until("the background goes on when nobody waits", || fill.taken() == 60);
    assert!(layer.status().fetched_by_fill > 0);
}

#[test]
fn a_span_far_behind_in_the_background_is_not_waited_for() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |options| {
        options.fill.disable = false;
        options.fill.silence = Duration::ZERO;
    });
    // Ranges grow with every one that is begun.
    let wide = script.request(|request| request.range.end - request.range.start >= 14 * SPAN);
    let last = wide.range.end / SPAN - 1;
    let urgent = ask_span(&layer, last);
    let own = script.request(|request| request.range == bytes_of(last));
    // One piece of it comes before the wide one's bytes, which are not taken for the rest.
    own.send(own.range.start..own.range.start + 1000);
    wait_until("a piece has come", || own.taken() == 1);
    wide.send(wide.range.clone());
    own.send(own.range.start + 1000..own.range.end);
    check(&made, last, urgent);
    // What is left of the wide one ends before that span.
    wait_until("the wide range is cut", || !wide.is_wanted());
    for request in script.requests() {
        if request.is_wanted() {
            request.serve();
        }
    }
    wait_until("all is here", || {
        script.requests().iter().filter(|request| request.is_wanted()).for_each(|request| request.serve());
        layer.status().present == layer.status().size
    });
    read_all(&layer, &made);
    assert_eq!(layer.status().fetched_on_demand, SPAN);
}

#[test]
fn what_the_background_is_bringing_is_left_to_it() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |options| {
        options.max_read_ahead = 4 << 20;
        options.fill.disable = false;
        options.fill.silence = Duration::ZERO;
    });
    let request = script.request(|request| request.range.start == 0);
    assert!(request.range.end >= bytes_of(5).end, "{:?}", request.range);
    // A reader that goes from span to span, behind it.
    for span in 0..4 {
        let asked = enter_span(&layer, span);
        request.send(bytes_of(span));
        asked.wait().unwrap();
    }
    request.send(bytes_of(4));
    wait_until("it is here", || layer.status().present >= 5 * SPAN);
    assert_eq!(layer.status().fetched_by_read_ahead, 0);
}

#[test]
fn a_host_that_asks_for_it_is_left_alone() {
    let made = large();
    let (_bed, layer, script, _attachment) = scripted(&made, |_| {});
    let first = ask_span(&layer, 1);
    script.nth(0).fail(SourceError::busy("too many", Some(Duration::from_millis(400))));
    // The board has heard of it when the second reader's request is not made at once.
    wait_until("the failure is known", || script.requests().len() == 1);
    std::thread::sleep(Duration::from_millis(50));
    let second = ask_span(&layer, 9);
    assert_eq!(script.requests().len(), 1, "no request before the host wants one");
    script.request(|request| request.range == bytes_of(9)).serve();
    let again = |request: &crate::script::Request| request.range == bytes_of(1) && request.is_wanted();
    script.request(again).serve();
    check(&made, 1, first);
    check(&made, 9, second);
}

#[test]
fn the_background_completes_a_layer_and_goes_on_after_a_restart() {
    let made = Made::random(41, Shape::Gzip, 60, 32_768);
    let mut bed = Bed::with(|options| {
        options.fill.disable = false;
        options.fill.silence = Duration::from_millis(5);
        options.max_range = 40_000;
    });
    let mut asked = vec![0; made.ztoc.spans.count() as usize];
    let mut rounds = 0;
    loop {
        let layer = match bed.store.open_layer(&made.key()).unwrap() {
            Some(layer) => layer,
            None => bed.create(&made),
        };
        let source = Source::with(&made.blob, Fault::Delay(Duration::from_millis(2)));
        let attachment = layer.attach(Arc::clone(&source) as Arc<dyn BlobSource>);
        let before = layer.status().present;
        wait_until("the background goes on", || {
            layer.status().present > before || layer.status().present == layer.status().size
        });
        let status = layer.status();
        assert_eq!(status.fetched_on_demand, 0);
        let complete = status.present == status.size;
        if complete {
            read_all(&layer, &made);
        }
        drop(attachment);
        // What was on its way when the source went may be asked for again.
        wait_until("nothing moves any more", || Arc::strong_count(&layer) == 1);
        for (sum, times) in asked.iter_mut().zip(asked_for(&made, &source)) {
            *sum += times;
        }
        drop(layer);
        rounds += 1;
        if complete {
            break;
        }
        bed = bed.restart_with(|options| {
            options.fill.disable = false;
            options.fill.silence = Duration::from_millis(5);
            options.max_range = 40_000;
        });
    }
    assert!(rounds > 1, "one life was enough");
    assert!(asked.iter().all(|times| *times <= rounds), "{asked:?}");
}

#[test]
fn the_background_goes_ahead_of_who_reads_everything() {
    const MIB: u64 = 1 << 20;
    let made = plain(MIB);
    let read = |len: u64| {
        let bed = Bed::with(|options| {
            options.max_read_ahead = 0;
            options.fill.disable = false;
            options.fill.silence = Duration::from_secs(3600);
        });
        let (layer, source, attachment) = bed.lazy(&made);
        for number in 10..10 + 26 {
            let nid = nid(&layer, &format!("{number}"));
            ask(&layer, nid, 0, u32::try_from(len).unwrap()).wait().unwrap();
        }
        (bed, layer, source, attachment)
    };
    let (_bed, layer, source, _attachment) = read(MIB / 2);
    assert_eq!(layer.status().fetched_by_fill, 0);
    assert_eq!(source.asked.lock().len(), 26);

    let (_bed, layer, source, _attachment) = read(MIB);
    wait_until("all of it comes", || layer.status().present == layer.status().size);
    let asked = source.asked.lock();
    // Several of its ranges begin at the same time.
    let own = |span: u64| span * MIB..(span + 1) * MIB;
    let first = asked.iter().zip(10..).find(|(range, span)| **range != own(*span));
    let (first, reader) = first.expect("the background never came");
    assert!(first.start / MIB >= reader, "{first:?} where the reader is at {reader}");
}

#[test]
fn reading_everything_in_order_is_expected() {
    let made = Made::random(42, Shape::Gzip, 200, 32_768);
    let bed = Bed::with(|options| options.max_read_ahead = 400_000);
    let (layer, source, _attachment) = bed.lazy(&made);
    read_all(&layer, &made);
    assert!(asked_for(&made, &source).iter().all(|times| *times <= 1), "{:?}", asked_for(&made, &source));
    let status = layer.status();
    assert!(status.fetched_by_read_ahead > status.fetched_on_demand, "{status:?}");
}

#[test]
fn everything_at_once_ends_with_the_right_bytes() {
    let mut random = Random::seeded("everything_at_once_ends_with_the_right_bytes");
    for round in 0..3 {
        let made = Arc::new(Made::random(random.next(), Shape::Members(150_000), 40, 16_384));
        let bed = Bed::with(|options| {
            options.max_backoff = Duration::from_millis(10);
            options.max_read_ahead = [0, 50_000, 1 << 20][round];
            options.fill.disable = false;
            options.fill.silence = Duration::from_millis(1);
            options.max_range = 100_000;
            options.max_bytes_in_flight = 30_000;
            options.max_ahead_while_waiting = 60_000;
            options.span_attempts = 50;
        });
        let (layer, source, _attachment) = bed.lazy(&made);
        let readers: Vec<_> = (0..6)
            .map(|_| {
                let (layer, made) = (Arc::clone(&layer), Arc::clone(&made));
                let mut random = Random::new(random.next());
                std::thread::spawn(move || {
                    for _ in 0..100 {
                        let (path, content) = &made.files[random.below(made.files.len() as u64) as usize];
                        let offset = random.below(content.len() as u64 + 1);
                        let len = random.below(60_000) as u32;
                        let got = ask(&layer, nid(&layer, path), offset, len).wait().unwrap();
                        let start = (offset as usize).min(content.len());
                        let end = (start + len as usize).min(content.len());
                        assert!(got == content[start..end], "{path} at {offset}, {len} bytes");
                    }
                })
            })
            .collect();
        while !readers.iter().all(|reader| reader.is_finished()) {
            source.set(match random.below(7) {
                6 => Fault::Twice,
                0 => Fault::Fail(1),
                1 => Fault::Flip(1),
                2 => Fault::Short(1),
                3 => Fault::Delay(Duration::from_millis(random.below(4))),
                _ => Fault::None,
            });
            std::thread::sleep(Duration::from_millis(1));
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        source.set(Fault::None);
        wait_until("all is here", || layer.status().present == layer.status().size);
        read_all(&layer, &made);
        let tar = std::fs::read(layer.path()).unwrap();
        let size = made.ztoc.uncompressed_size as usize;
        let start = layer.file_size() as usize - size.next_multiple_of(512);
        assert!(tar[start..start + size] == made.tar[..size], "the layer file is the tar");
    }
}
