//! `states`: which spans are here.
//!
//! 64 bytes of head, then one record of 32 bytes for each span.
//!
//! | head at | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4, 4 | version, number of spans |
//! | 16 | 16 | the boot in which the records were written |
//! | 32 | 1 | 1: everything had reached the disk when the daemon ended |
//! | 56 | 8 | XXH3-64 of the 56 bytes before |
//!
//! | record at | bytes | |
//! |---|---|---|
//! | 0 | 1 | 0 missing, 1 suspect, 2 present |
//! | 8 | 16 | checksum of the span's bytes of the tar |
//! | 24 | 8 | XXH3-64 of the span's number (8 bytes) and the 24 bytes before |
//!
//! A record is written after its data. Within one boot that order is what a later process sees, however this one ended. After another boot,
//! and without the mark of an orderly end, every present span becomes suspect: it is compared with its checksum before use.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::boot::BootId;
use super::bytes::{array, u32_at, u64_at};
use super::checksum::{Checksum, check};
use super::{name, sync};
use crate::error::FileError;

const MAGIC: [u8; 8] = *b"SOCISTAT";
const VERSION: u32 = 1;
const HEAD: usize = 64;
const RECORD: usize = 32;

/// What is known of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Not here.
    Missing = 0,
    /// Written before an unclean boot: compare with the checksum first.
    Suspect = 1,
    /// Here; the bytes can be used.
    Present = 2,
}

impl State {
    pub(crate) fn from_u8(byte: u8) -> Self {
        match byte {
            2 => Self::Present,
            1 => Self::Suspect,
            _ => Self::Missing,
        }
    }
}

/// The open file.
#[derive(Debug)]
pub(crate) struct States {
    file: File,
    count: usize,
    boot: BootId,
    mark: Mutex<Mark>,
}

/// What the head says, and whether it may.
#[derive(Debug)]
struct Mark {
    /// The head on disk may say that everything has been synced.
    clean: bool,
    /// Records that this process has written.
    records: Records,
}

/// How many records were written at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Records(u64);

impl States {
    /// Reads the file, or makes it anew from whatever of it is intact. Gives the state of each span.
    pub(crate) fn open(
        directory: &Path,
        count: usize,
        boot: BootId,
    ) -> Result<(Self, Vec<State>), FileError> {
        let path = directory.join(name::STATES);
        let old = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(FileError::of("read", &path)(error)),
        };
        let head = Head::decode(&old, count);
        let trusted = head.is_some_and(|head| head.boot == boot || head.clean);
        let mut states = Vec::with_capacity(count);
        let mut table = Head { boot, clean: false }.encode(count).to_vec();
        for span in 0..count {
            let (state, checksum) =
                record_of(&old, span).unwrap_or((State::Missing, Checksum::from_bytes([0; 16])));
            let state = if state == State::Present && !trusted { State::Suspect } else { state };
            states.push(state);
            table.extend_from_slice(&encode_record(span, state, checksum));
        }
        let whole = old.len() == table.len();
        if !(whole && trusted) {
            replace(directory, &path, &table)?;
        }
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(FileError::of("open", &path))?;
        // When a layer was opened last decides whether it goes first if room is needed. Not knowing that is no harm.
        let _ = file.set_modified(SystemTime::now());
        let clean = whole && head.is_some_and(|head| head.clean);
        let mark = Mutex::new(Mark { clean, records: Records(0) });
        Ok((Self { file, count, boot, mark }, states))
    }

    /// Records a span's state. Its bytes must have been written before.
    pub(crate) fn record(&self, span: usize, state: State, checksum: Checksum) -> io::Result<()> {
        let mut mark = self.mark.lock();
        if mark.clean {
            // It must be gone from the disk before anything new is on it.
            self.file.write_all_at(&Head { boot: self.boot, clean: false }.encode(self.count), 0)?;
            sync::data(&self.file)?;
            mark.clean = false;
        }
        mark.records = Records(mark.records.0.saturating_add(1));
        self.file.write_all_at(&encode_record(span, state, checksum), record_at(span))
    }

    /// How many records there are by now: the data of each was written before.
    pub(crate) fn records(&self) -> Records {
        self.mark.lock().records
    }

    /// The checksum that was recorded with a span, `None` if the record is not intact.
    pub(crate) fn checksum(&self, span: usize) -> io::Result<Option<Checksum>> {
        let mut record = [0; RECORD];
        self.file.read_exact_at(&mut record, record_at(span))?;
        Ok(decode_record(&record, span)
            .filter(|(state, _)| *state != State::Missing)
            .map(|(_, checksum)| checksum))
    }

    /// Says on disk that everything is there, unless there are more records than `synced`: those that there were when the layer file began to
    /// be synced. The bytes of a later one may not be on the disk. Whether it was said.
    pub(crate) fn mark_clean(&self, synced: Records) -> io::Result<bool> {
        let mut mark = self.mark.lock();
        if mark.records != synced {
            return Ok(false);
        }
        sync::data(&self.file)?;
        mark.clean = true;
        self.file.write_all_at(&Head { boot: self.boot, clean: true }.encode(self.count), 0)?;
        sync::data(&self.file)?;
        Ok(true)
    }
}

/// The table of a layer of which nothing is here.
pub(crate) fn fresh(count: usize, boot: BootId) -> Vec<u8> {
    let mut table = Head { boot, clean: false }.encode(count).to_vec();
    for span in 0..count {
        table.extend_from_slice(&encode_record(span, State::Missing, Checksum::from_bytes([0; 16])));
    }
    table
}

/// Puts a new table in the place of the old one, whole or not at all.
fn replace(directory: &Path, path: &Path, table: &[u8]) -> Result<(), FileError> {
    let temporary = directory.join("states.new");
    let write = || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all_at(table, 0)?;
        sync::data(&file)?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(FileError::of("replace", path))
}

#[derive(Clone, Copy, Debug)]
struct Head {
    boot: BootId,
    clean: bool,
}

impl Head {
    fn encode(self, count: usize) -> [u8; HEAD] {
        let mut body = Vec::with_capacity(HEAD);
        body.extend_from_slice(&MAGIC);
        body.extend_from_slice(&VERSION.to_le_bytes());
        body.extend_from_slice(&(count as u32).to_le_bytes());
        body.extend_from_slice(&self.boot.0);
        body.push(u8::from(self.clean));
        body.resize(HEAD - 8, 0);
        body.extend_from_slice(&check(&body).to_le_bytes());
        array(&body, 0).unwrap_or([0; HEAD])
    }

    fn decode(bytes: &[u8], count: usize) -> Option<Self> {
        let intact = u64_at(bytes, HEAD - 8)? == check(bytes.get(..HEAD - 8)?);
        let ours = array(bytes, 0)? == MAGIC
            && u32_at(bytes, 8)? == VERSION
            && usize::try_from(u32_at(bytes, 12)?).ok()? == count;
        (intact && ours).then_some(Self { boot: BootId(array(bytes, 16)?), clean: *bytes.get(32)? == 1 })
    }
}

fn record_at(span: usize) -> u64 {
    (span as u64).saturating_mul(RECORD as u64).saturating_add(HEAD as u64)
}

fn record_of(table: &[u8], span: usize) -> Option<(State, Checksum)> {
    let start = span.checked_mul(RECORD)?.checked_add(HEAD)?;
    decode_record(table.get(start..start.checked_add(RECORD)?)?, span)
}

fn record_check(span: usize, body: &[u8]) -> u64 {
    let mut input = (span as u64).to_le_bytes().to_vec();
    input.extend_from_slice(body);
    check(&input)
}

fn encode_record(span: usize, state: State, checksum: Checksum) -> [u8; RECORD] {
    let mut body = vec![state as u8, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&checksum.to_bytes());
    body.extend_from_slice(&record_check(span, &body).to_le_bytes());
    array(&body, 0).unwrap_or([0; RECORD])
}

fn decode_record(record: &[u8], span: usize) -> Option<(State, Checksum)> {
    let (body, stored) = record.split_at_checked(RECORD - 8)?;
    if u64_at(stored, 0)? != record_check(span, body) {
        return None;
    }
    Some((State::from_u8(*body.first()?), Checksum::from_bytes(array(body, 8)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: BootId = BootId([1; 16]);
    const NEW: BootId = BootId([2; 16]);

    fn sum(n: u8) -> Checksum {
        Checksum::of(&[n])
    }

    fn written(directory: &Path) -> States {
        let (states, all) = States::open(directory, 3, OLD).unwrap();
        assert_eq!(all, [State::Missing; 3]);
        states.record(1, State::Present, sum(1)).unwrap();
        states
    }

    #[test]
    fn the_same_boot_trusts_what_was_recorded() {
        let directory = tempfile::tempdir().unwrap();
        drop(written(directory.path()));
        let (states, all) = States::open(directory.path(), 3, OLD).unwrap();
        assert_eq!(all, [State::Missing, State::Present, State::Missing]);
        assert_eq!(states.checksum(1).unwrap(), Some(sum(1)));
        assert_eq!(states.checksum(0).unwrap(), None);
    }

    #[test]
    fn another_boot_suspects_it_and_goes_on_suspecting() {
        let directory = tempfile::tempdir().unwrap();
        drop(written(directory.path()));
        let suspect = [State::Missing, State::Suspect, State::Missing];
        assert_eq!(States::open(directory.path(), 3, NEW).unwrap().1, suspect);
        let (states, all) = States::open(directory.path(), 3, NEW).unwrap();
        assert_eq!(all, suspect, "a daemon killed before it re-checked changes nothing");
        assert_eq!(states.checksum(1).unwrap(), Some(sum(1)));
    }

    #[test]
    fn an_orderly_end_is_trusted_until_the_next_record() {
        let directory = tempfile::tempdir().unwrap();
        let states = written(directory.path());
        assert!(states.mark_clean(states.records()).unwrap());
        drop(states);
        let (states, all) = States::open(directory.path(), 3, NEW).unwrap();
        assert_eq!(all[1], State::Present);
        states.record(0, State::Present, sum(0)).unwrap();
        drop(states);
        let all = States::open(directory.path(), 3, OLD).unwrap().1;
        assert_eq!(all, [State::Suspect, State::Suspect, State::Missing]);
    }

    /// A span came while the layer file was being synced: its bytes may be after that.
    #[test]
    fn an_end_that_was_overtaken_is_not_orderly() {
        let directory = tempfile::tempdir().unwrap();
        let states = written(directory.path());
        let synced = states.records();
        states.record(0, State::Present, sum(0)).unwrap();
        assert!(!states.mark_clean(synced).unwrap());
        drop(states);
        let all = States::open(directory.path(), 3, NEW).unwrap().1;
        assert_eq!(all, [State::Suspect, State::Suspect, State::Missing]);
    }

    #[test]
    fn damage_costs_only_what_it_hit() {
        let directory = tempfile::tempdir().unwrap();
        let states = written(directory.path());
        states.record(2, State::Present, sum(2)).unwrap();
        drop(states);
        let path = directory.path().join(name::STATES);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD + RECORD + 9] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(
            States::open(directory.path(), 3, OLD).unwrap().1,
            [State::Missing, State::Missing, State::Present]
        );
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(
            States::open(directory.path(), 3, OLD).unwrap().1,
            [State::Missing, State::Missing, State::Suspect]
        );
        for len in [0, 1, HEAD, HEAD + RECORD + 3, bytes.len() - 1, bytes.len() + 5] {
            let mut cut = bytes.clone();
            cut.resize(len, 0xff);
            std::fs::write(&path, &cut).unwrap();
            let (_, all) = States::open(directory.path(), 3, OLD).unwrap();
            assert!(all.iter().all(|state| *state != State::Present), "{len}: {all:?}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), record_at(3));
        }
    }
}
