//! Events as lines of JSON.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PIPE_BUF;
use serde_json::Value;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::{Brake, Limiter};

/// Crates whose lines a registry or an image can cause at will.
const BRAKED: [&str; 2] = ["lazy_layer", "oci_registry"];

/// Nanoseconds for a reader of the log to make room.
const PATIENCE: i64 = 100_000_000;

/// Writes each event as one flat JSON object with sorted keys: its fields, `level`, `msg` and `time`.
///
/// What outsiders can cause at will is braked, each kind of line for itself; the next that passes has the number of the others in
/// `suppressed`. Debug lines are not braked: whoever asks for them wants them all.
pub struct JsonLines<W> {
    out: Mutex<Out<W>>,
    brake: Brake,
    /// As many as the crates have places that log.
    brakes: Mutex<HashMap<Identifier, Limiter>>,
}

/// Where lines go.
struct Out<W> {
    writer: W,
    /// Lines since the last one that could be written.
    dropped: u64,
    /// The last one was cut off.
    cut: bool,
}

/// A file that others read, or do not: nobody waits for long until they do, and not at all as long as they do not.
#[derive(Debug)]
pub struct Patient<F> {
    file: F,
    /// The last one waited in vain.
    stuck: bool,
}

struct Fields(BTreeMap<&'static str, Value>);

// === impl JsonLines ===

impl JsonLines<Patient<io::Stdout>> {
    /// To the standard output. A reader that went away, or does not read, is no reason to stop: what cannot be written is dropped, and the next line has the number
    /// of those in `dropped`.
    #[must_use]
    pub fn stdout(brake: Brake) -> Self {
        JsonLines::new(Patient::new(io::stdout()), brake)
    }
}

impl<W: Write> JsonLines<W> {
    /// To any writer, one line after the other, so that lines of several threads stay whole.
    pub fn new(out: W, brake: Brake) -> Self {
        let out = Mutex::new(Out { writer: out, dropped: 0, cut: false });
        JsonLines { out, brake, brakes: Mutex::default() }
    }
}

impl<W> JsonLines<W> {
    /// None for one line too many, otherwise how many were.
    fn pass(&self, kind: &'static Metadata<'static>) -> Option<u64> {
        let krate = kind.target().split("::").next().unwrap_or_default();
        if *kind.level() > Level::INFO || !BRAKED.contains(&krate) {
            return Some(0);
        }
        let mut brakes = self.brakes.lock();
        brakes.entry(kind.callsite()).or_insert_with(|| Limiter::new(self.brake)).pass()
    }
}

impl<W> fmt::Debug for JsonLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").finish_non_exhaustive()
    }
}

impl<S: Subscriber, W: Write + 'static> Layer<S> for JsonLines<W> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(suppressed) = self.pass(event.metadata()) else { return };
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        if suppressed > 0 {
            fields.0.insert("suppressed", Value::from(suppressed));
        }
        self.out.lock().line(fields, *event.metadata().level());
    }
}

// === impl Out ===

impl<W: Write> Out<W> {
    fn line(&mut self, mut fields: Fields, level: Level) {
        if self.dropped > 0 {
            fields.0.insert("dropped", Value::from(self.dropped));
        }
        let line = fields.finish(level, jiff::Timestamp::now());
        let line = if self.cut { format!("\n{line}") } else { line };
        let mut rest = line.as_bytes();
        // A full disk, a closed pipe or one that nobody reads must not end the daemon, nor stop it, and there is nobody left to tell.
        while !rest.is_empty() {
            match self.writer.write(rest) {
                Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        let _ = self.writer.flush();
        if rest.is_empty() {
            (self.dropped, self.cut) = (0, false);
        } else {
            self.dropped = self.dropped.saturating_add(1);
            self.cut |= rest.len() < line.len();
        }
    }
}

// === impl Patient ===

impl<F> Patient<F> {
    fn new(file: F) -> Patient<F> {
        Patient { file, stuck: false }
    }
}

impl<F: AsFd> Write for Patient<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut polled = [PollFd::new(&self.file, PollFlags::OUT)];
        let patience = Timespec { tv_sec: 0, tv_nsec: if self.stuck { 0 } else { PATIENCE } };
        self.stuck = rustix::event::poll(&mut polled, Some(&patience))? == 0;
        if self.stuck {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // A pipe that has room has room for so much.
        let piece = bytes.get(..PIPE_BUF).unwrap_or(bytes);
        Ok(rustix::io::write(&self.file, piece)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Fields ===

impl Fields {
    fn finish(mut self, level: Level, now: jiff::Timestamp) -> String {
        self.0.insert("level", Value::from(name(level)));
        self.0.insert("time", Value::from(format!("{now:.9}")));
        self.0.entry("msg").or_insert_with(|| Value::from(""));
        // Strings, numbers and booleans always serialise.
        let mut line = serde_json::to_string(&self.0).unwrap_or_default();
        line.push('\n');
        line
    }

    fn insert(&mut self, field: &Field, value: Value) {
        // A field with one of the three fixed names would hide it; logrus renames it the same way.
        let name = match field.name() {
            "message" => "msg",
            "level" => "fields.level",
            "msg" => "fields.msg",
            "time" => "fields.time",
            name => name,
        };
        self.0.insert(name, value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, Value::from(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.insert(field, Value::from(super::chain(value)));
    }
}

/// logrus' names.
fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    const BRAKE: Brake = Brake { burst: 20, pause: Duration::from_secs(2) };

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn said(events: impl FnOnce()) -> String {
        let sink = Sink::default();
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(JsonLines::new(sink.clone(), BRAKE)),
            events,
        );
        String::from_utf8(sink.0.lock().clone()).unwrap()
    }

    #[test]
    fn the_lines_that_upstream_documents() {
        let text = said(|| {
            tracing::debug!("mount-point" = %"/r/snapshotter/snapshots/18/fs", key = "sha256:5e98", "checking mount point");
        });
        let (line, time) = text.split_once(r#","time":""#).unwrap();
        assert_eq!(
            line,
            r#"{"key":"sha256:5e98","level":"debug","mount-point":"/r/snapshotter/snapshots/18/fs","msg":"checking mount point""#
        );
        // 2022-08-16T18:06:48.628108043Z
        assert_eq!(time.len(), "2022-08-16T18:06:48.628108043Z\"}\n".len());
        assert!(time.ends_with("Z\"}\n"));
    }

    #[test]
    fn what_outsiders_can_cause_is_braked_and_counted() {
        let text = said(|| {
            for n in 0..100 {
                tracing::warn!(target: "lazy_layer::fetch", n, "a source sent wrong bytes");
                tracing::debug!(target: "lazy_layer::fetch", n, "detail");
                tracing::warn!(n, "our own");
            }
            tracing::warn!(target: "lazy_layer::fetch", "another kind");
        });
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        // The clock may let one more through.
        assert!((20..=21).contains(&count("wrong bytes")), "{text}");
        assert_eq!((count("detail"), count("our own"), count("another kind")), (100, 100, 1));
    }

    #[test]
    fn a_reader_that_does_not_read_stops_nobody() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let lines = JsonLines::new(Patient::new(writer), BRAKE);
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));
        let long = "x".repeat(5000);
        for n in 0..200 {
            tracing::info!(n, long, "more than a pipe holds");
        }
        let mut read = Vec::new();
        let mut take = || {
            let mut buffer = [0; 1 << 17];
            let length = rustix::io::read(&reader, &mut buffer).unwrap();
            read.extend_from_slice(&buffer[..length]);
        };
        take();
        tracing::info!("somebody reads again");
        tracing::info!("and again");
        take();
        let text = String::from_utf8(read).unwrap();
        let parsed: Vec<Option<Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
        let kept = parsed.iter().flatten().filter(|line| line["msg"] == "more than a pipe holds").count();
        assert!((1..30).contains(&kept), "{kept}");
        // One was cut off at most, and the next line begins a line.
        assert!(parsed.iter().filter(|line| line.is_none()).count() <= 1, "{text}");
        let [.., Some(first), Some(second)] = parsed.as_slice() else { panic!("{text}") };
        assert_eq!(
            (first["msg"].as_str(), first["dropped"].as_u64()),
            (Some("somebody reads again"), Some(200 - kept as u64))
        );
        assert_eq!((second["msg"].as_str(), second.get("dropped")), (Some("and again"), None));
    }

    #[test]
    fn error_sorts_first_and_levels_are_logrus_names() {
        let text = said(|| {
            tracing::warn!(
                key = "k",
                error = "failed to resolve layer \"sha256:1\"",
                n = 3_u64,
                "failed to prepare remote snapshot"
            )
        });
        assert!(text.starts_with(r#"{"error":"failed to resolve layer \"sha256:1\"","key":"k","level":"warning","msg":"failed to prepare remote snapshot","n":3,"time":""#));
    }

    #[test]
    fn one_event_is_one_line_whatever_is_in_it() {
        let text = said(|| tracing::info!(path = "a\nb\u{0}\u{1b}[31m", time = "mine", "hello"));
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains(r#""fields.time":"mine""#));
        assert!(!text.contains('\u{1b}'));
    }
}
