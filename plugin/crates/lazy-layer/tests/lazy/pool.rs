//! What somebody waits for goes first in the pool, too, wherever it was queued before.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use lazy_layer::{BlobSource, Layer, StoreOptions};

use crate::bed::{Bed, PATIENCE, nid, read_all, wait_until};
use crate::making::Made;
use crate::script::Script;

const SPAN: u64 = 64 << 10;
const FILES: u64 = 40;

fn one_thread(options: &mut StoreOptions) {
    options.inflate_threads = 1;
    options.fill.disable = false;
    options.fill.silence = Duration::ZERO;
}

/// Reads a file, and has the thread of the pool that answers wait until what is given back is dropped. Tells whether it was one of those.
fn occupy(layer: &Arc<Layer>, path: &str) -> (mpsc::Receiver<bool>, mpsc::Sender<()>) {
    let (tell, told) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let reply = move |got: Result<&[u8], lazy_layer::ReadError>| {
        assert!(got.is_ok());
        let of_pool = std::thread::current().name().is_some_and(|name| name.starts_with("soci-inflate"));
        tell.send(of_pool).unwrap();
        if of_pool {
            let _ = wait.recv_timeout(PATIENCE);
        }
    };
    layer.read(nid(layer, path), 0, 100, Box::new(reply));
    (told, go_on)
}

/// Reads a file, and tells how many spans are here when that is answered.
fn spans_when_answered(layer: &Arc<Layer>, path: &str) -> mpsc::Receiver<u32> {
    let (tell, told) = mpsc::channel();
    let here = Arc::clone(layer);
    let reply = move |got: Result<&[u8], lazy_layer::ReadError>| {
        assert!(got.is_ok());
        tell.send(here.status().spans_present).unwrap();
    };
    layer.read(nid(layer, path), 0, 100, Box::new(reply));
    told
}

#[test]
fn a_span_of_the_background_that_is_waited_for_is_finished_first() {
    let made = Made::file_per_span(81, FILES, SPAN);
    let bed = Bed::with(one_thread);
    let layer = bed.create(&made);
    let script = Script::new(&made.blob);
    let _attached = layer.attach(Arc::clone(&script) as Arc<dyn BlobSource>);
    // The rest is asked for beside it.
    let background = script.request(|request| request.range.start == 0);
    script.nth(1);
    let (holds, go_on) = occupy(&layer, "39");
    script.request(|request| request.range == (39 * SPAN..40 * SPAN)).serve();
    assert!(holds.recv_timeout(PATIENCE).unwrap());
    // All of the first range has come, and the pool is to take it.
    background.send(background.range.clone());
    wait_until("the first range has come", || !background.is_wanted());
    assert!(background.range.end > 12 * SPAN);
    let told = spans_when_answered(&layer, "11");
    drop(go_on);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), 2);
    wait_until("all is here", || {
        script.requests().iter().filter(|request| request.is_wanted()).for_each(|request| request.serve());
        layer.status().present == layer.status().size
    });
    read_all(&layer, &made);
}

#[test]
fn a_span_that_is_compared_in_the_background_and_waited_for_is_compared_first() {
    let made = Made::file_per_span(82, FILES, SPAN);
    let bed = Bed::new();
    let (layer, _source, attached) = bed.lazy(&made);
    read_all(&layer, &made);
    drop((attached, layer));
    let bed = bed.reboot_with(|options| {
        one_thread(options);
        options.max_rechecks = 8;
    });
    let layer = bed.store.open_layer(&made.key()).unwrap().unwrap();
    // A read that is answered while it is being asked for leaves the pool alone.
    let tries = (20..FILES).map(|number| occupy(&layer, &number.to_string()));
    let (_, go_on) = tries.into_iter().find(|(told, _)| told.recv_timeout(PATIENCE).unwrap()).unwrap();
    let before = layer.status().spans_present;
    // The background has the first few compared.
    let script = Script::new(&made.blob);
    let _attached = layer.attach(Arc::clone(&script) as Arc<dyn BlobSource>);
    let told = spans_when_answered(&layer, "1");
    drop(go_on);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), before + 1);
    read_all(&layer, &made);
    // But for the end of the archive, which nobody had read.
    assert!(script.requests().iter().all(|request| request.range.start >= FILES * SPAN));
}
