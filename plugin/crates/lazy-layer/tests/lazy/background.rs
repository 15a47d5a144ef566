//! Whom the background asks, and what it does where nobody answers.

use std::sync::Arc;
use std::time::Duration;

use lazy_layer::{Attachment, BlobSource, Layer, StoreOptions};

use crate::bed::{Bed, Fault, Source, ask, nid, read, read_all, wait_until};
use crate::making::Made;
use crate::script::Script;

const SPAN: u64 = 64 << 10;
const FILES: u64 = 40;
const LONG: Duration = Duration::from_secs(3600);

/// A store whose background begins at once, with a span at a time.
fn eager(change: impl FnOnce(&mut StoreOptions)) -> Bed {
    Bed::with(|options| {
        options.fill.disable = false;
        options.fill.silence = Duration::ZERO;
        options.fill.retry = Duration::from_millis(5);
        options.max_range = SPAN;
        change(options);
    })
}

fn attach(layer: &Arc<Layer>, source: &Arc<Source>) -> Attachment {
    layer.attach(Arc::clone(source) as Arc<dyn BlobSource>)
}

fn wait_for_all(layer: &Layer) {
    wait_until("all is here", || layer.status().present == layer.status().size);
}

#[test]
fn a_source_that_refuses_does_not_stand_in_the_way_of_another() {
    let made = Made::file_per_span(51, FILES, SPAN);
    let bed = eager(|options| options.longest_rest = LONG);
    let layer = bed.create(&made);
    let (older, newer) = (Source::new(&made.blob), Source::with(&made.blob, Fault::Gone));
    older.set(Fault::Hang);
    let _older = attach(&layer, &older);
    let _newer = attach(&layer, &newer);
    older.set(Fault::None);
    wait_for_all(&layer);
    read_all(&layer, &made);
    // As many as were asked for together.
    assert!(newer.asked.lock().len() <= 4, "{:?}", newer.asked.lock());
}

#[test]
fn reading_ahead_does_not_ask_a_source_that_refuses() {
    let made = Made::file_per_span(52, FILES, SPAN);
    let bed = Bed::with(|options| (options.max_read_ahead, options.longest_rest) = (SPAN * 8, LONG));
    let layer = bed.create(&made);
    let (older, newer) = (Source::new(&made.blob), Source::with(&made.blob, Fault::Gone));
    let _older = attach(&layer, &older);
    let _newer = attach(&layer, &newer);
    read_all(&layer, &made);
    assert!(layer.status().fetched_by_read_ahead > 0);
    assert_eq!(newer.asked.lock().len(), 1);
}

#[test]
fn a_refusal_is_not_believed_for_ever() {
    let made = Made::file_per_span(53, FILES, SPAN);
    let bed = eager(|options| options.longest_rest = Duration::from_millis(100));
    let layer = bed.create(&made);
    let source = Source::with(&made.blob, Fault::Gone);
    let _attached = attach(&layer, &source);
    wait_until("it was asked", || !source.asked.lock().is_empty());
    source.set(Fault::None);
    wait_for_all(&layer);
}

#[test]
fn who_waits_asks_a_source_that_has_refused() {
    let made = Made::file_per_span(54, FILES, SPAN);
    let bed = eager(|options| options.longest_rest = LONG);
    let layer = bed.create(&made);
    let source = Source::with(&made.blob, Fault::Gone);
    let _attached = attach(&layer, &source);
    wait_until("it was asked", || !source.asked.lock().is_empty());
    source.set(Fault::None);
    assert_eq!(read(&layer, "30").unwrap(), made.files[30].1);
    wait_for_all(&layer);
}

#[test]
fn a_new_source_starts_without_the_others_failures() {
    let made = Made::file_per_span(55, FILES, SPAN);
    let bed = eager(|options| (options.longest_rest, options.fill.retry) = (LONG, LONG));
    let layer = bed.create(&made);
    let bad = Source::with(&made.blob, Fault::Gone);
    let _bad = attach(&layer, &bad);
    wait_until("it was asked", || !bad.asked.lock().is_empty());
    // Time enough for what it answered.
    let (other, _, _other) = bed.lazy(&Made::file_per_span(61, FILES, SPAN));
    wait_for_all(&other);
    let good = Source::new(&made.blob);
    let _good = attach(&layer, &good);
    wait_for_all(&layer);
}

#[test]
fn a_layer_whose_host_does_not_answer_holds_up_no_other() {
    for fault in [Fault::Busy(LONG), Fault::Hang] {
        let first = Made::file_per_span(56, FILES, SPAN);
        let second = Made::file_per_span(57, FILES, SPAN);
        let bed = eager(|options| options.longest_rest = LONG);
        let (stuck, goes_on) = (bed.create(&first), bed.create(&second));
        let bad = Source::on("bad", &first.blob, fault);
        let _bad = attach(&stuck, &bad);
        wait_until("it was asked", || !bad.asked.lock().is_empty());
        let good = Source::on("good", &second.blob, Fault::None);
        let _good = attach(&goes_on, &good);
        wait_for_all(&goes_on);
        assert_eq!(stuck.status().present, 0, "{fault:?}");
        bad.set(Fault::None);
    }
}

#[test]
fn a_source_that_fails_is_not_asked_for_each_span() {
    for fault in [Fault::Gone, Fault::Fail(u32::MAX)] {
        let first = Made::file_per_span(58, FILES, SPAN);
        let second = Made::file_per_span(59, FILES, SPAN);
        let bed = eager(|options| options.fill.retry = LONG);
        let (fails, delivers) = (bed.create(&first), bed.create(&second));
        let bad = Source::on("bad", &first.blob, fault);
        let _bad = attach(&fails, &bad);
        wait_until("it was asked", || !bad.asked.lock().is_empty());
        let good = Source::on("good", &second.blob, Fault::None);
        let _good = attach(&delivers, &good);
        wait_for_all(&delivers);
        // As many as were asked for together.
        assert!(bad.asked.lock().len() <= 4, "{fault:?}: {}", bad.asked.lock().len());
    }
}

#[test]
fn the_background_begins_small_again_after_somebody_waited() {
    let made = Made::file_per_span(60, 100, 256 << 10);
    let bed = eager(|options| options.max_range = 4 << 20);
    let layer = bed.create(&made);
    let script = Script::new(&made.blob);
    let _attached = layer.attach(Arc::clone(&script) as Arc<dyn BlobSource>);
    let len = |number: usize| script.nth(number).range.end - script.nth(number).range.start;
    // Which of those that are on their way together comes first at the source is nobody's promise.
    let mut first = [0, 1, 2, 3].map(|number| (script.nth(number).range.start, len(number)));
    first.sort_unstable();
    assert_eq!(first.map(|(_, len)| len), [1 << 20, 2 << 20, 4 << 20, 4 << 20]);
    let waits = ask(&layer, nid(&layer, "90"), 0, 100);
    script.nth(4).serve();
    waits.wait().unwrap();
    script.nth(0).serve();
    assert_eq!(len(5), 1 << 20);
}
