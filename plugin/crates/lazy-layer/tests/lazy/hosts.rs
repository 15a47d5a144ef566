//! How much a host is asked for at the same time.

use std::sync::Arc;
use std::time::Duration;

use lazy_layer::{Attachment, BlobSource, Layer, SourceError};

use crate::bed::{Asked, Bed, ask, nid, wait_until};
use crate::making::Made;
use crate::script::Script;

const SPAN: u64 = 64 << 10;
const FILES: u64 = 64;

fn attach(layer: &Arc<Layer>, script: &Arc<Script>) -> Attachment {
    layer.attach(Arc::clone(script) as Arc<dyn BlobSource>)
}

fn ask_file(layer: &Arc<Layer>, number: u64) -> Asked {
    ask(layer, nid(layer, &format!("{number}")), 0, 100)
}

fn check(made: &Made, number: u64, asked: Asked) {
    assert_eq!(asked.wait().unwrap(), made.files[number as usize].1[..100]);
}

fn silent() -> SourceError {
    SourceError::busy("told to be silent", None)
}

#[test]
fn a_silent_host_gets_fewer_connections() {
    let made = Made::file_per_span(71, FILES, SPAN);
    let bed = Bed::with(|options| {
        options.fill.disable = false;
        options.fill.silence = Duration::ZERO;
        options.fill.retry = Duration::from_millis(5);
        options.max_range = SPAN;
    });
    let layer = bed.create(&made);
    let script = Script::new(&made.blob);
    let _attached = attach(&layer, &script);
    script.nth(3);
    (0..4).for_each(|number| script.nth(number).fail(silent()));
    let one = script.nth(4);
    // Somebody reads meanwhile: time enough for others to begin.
    let asked = ask_file(&layer, FILES - 1);
    script.nth(5).serve();
    check(&made, FILES - 1, asked);
    let next = |number: usize| script.requests().len() > number;
    assert!(!next(6), "{:?}", script.requests());
    one.serve();
    wait_until("the background goes on", || next(6));
    assert!(!next(7), "{:?}", script.requests());
}

#[test]
fn readers_spare_a_host_that_has_complained() {
    let made = Made::file_per_span(72, FILES, SPAN);
    let bed = Bed::new();
    let layer = bed.create(&made);
    let script = Script::new(&made.blob);
    let _attached = attach(&layer, &script);
    let first = ask_file(&layer, 1);
    script.nth(0).fail(silent());
    // It is known when the next try has begun. Two are left of four.
    let again = script.nth(1);
    let others: Vec<_> = (2..8).map(|number| (number * 5, ask_file(&layer, number * 5))).collect();
    script.nth(2);
    again.serve();
    check(&made, 1, first);
    script.nth(3);
    assert_eq!(script.requests().len(), 4);
    for (number, asked) in others {
        script.request(|request| request.range.start == number * SPAN).serve();
        check(&made, number, asked);
    }
}

#[test]
fn a_host_that_hangs_keeps_no_reader_of_another_waiting() {
    let (hung, well) = (Made::file_per_span(73, FILES, SPAN), Made::file_per_span(74, FILES, SPAN));
    let bed = Bed::with(|options| options.max_fetches = 2);
    let (first, second) = (bed.create(&hung), bed.create(&well));
    let (hangs, answers) = (Script::on("hangs", &hung.blob), Script::on("answers", &well.blob));
    let (_first, _second) = (attach(&first, &hangs), attach(&second, &answers));
    let waiting: Vec<_> = (0..6).map(|number| (number * 5, ask_file(&first, number * 5))).collect();
    hangs.nth(1);
    for number in [3, 30] {
        let asked = ask_file(&second, number);
        answers.request(|request| request.range.start == number * SPAN).serve();
        check(&well, number, asked);
    }
    assert_eq!(hangs.requests().len(), 2, "no more than it may have");
    for (number, asked) in waiting {
        hangs.request(|request| request.range.start == number * SPAN).serve();
        check(&hung, number, asked);
    }
}
