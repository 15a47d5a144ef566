//! The power is cut at any moment once there is a file: the store opens again, with everything that was answered for, and nothing half done.
//!
//! Everything that is written to the file is noted. For each moment between two notes there are files as a cut then may leave them: what was synced is there,
//! of what came after it nothing, everything, or any part, down to single sectors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use redb::StorageBackend;

use super::*;

/// A disk writes this much whole or not at all.
const SECTOR: usize = 512;
/// Files looked at for each moment, besides those with nothing and everything.
const PARTIAL: usize = 4;

#[derive(Clone, Debug)]
enum Note {
    Write(usize, Vec<u8>),
    Length(usize),
    Synced,
    /// What the store is to have from here on, and may have had a little before.
    Answered(BTreeMap<String, Kind>),
}

/// A file in memory that notes what is done to it.
#[derive(Clone, Debug, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    notes: Arc<Mutex<Vec<Note>>>,
}

impl Disk {
    fn with(bytes: Vec<u8>) -> Disk {
        Disk { bytes: Arc::new(Mutex::new(bytes)), ..Disk::default() }
    }

    fn open(&self) -> Result<Store, StoreError> {
        let database = Database::builder().create_with_backend(self.clone());
        let failed = |error: redb::DatabaseError| StoreError::Database(Box::new(error.into()));
        Store::of(database.map_err(failed)?, Path::new("memory"))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        let bytes = self.bytes.lock();
        out.copy_from_slice(bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().resize(len as usize, 0);
        self.notes.lock().push(Note::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.notes.lock().push(Note::Synced);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        apply(&mut self.bytes.lock(), offset as usize, data);
        self.notes.lock().push(Note::Write(offset as usize, data.to_vec()));
        Ok(())
    }
}

fn apply(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 & 0x100 == 0
    }
}

/// The file after a cut: what was synced, and of the rest what `kept` says.
fn left(synced: &[u8], rest: &[&Note], mut kept: impl FnMut() -> bool) -> Vec<u8> {
    let mut bytes = synced.to_vec();
    for note in rest {
        match note {
            Note::Write(at, data) => {
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    if kept() {
                        apply(&mut bytes, at + number * SECTOR, sector);
                    }
                }
            }
            // A file system that lost a longer length lost what was written behind the old one, too; a lost cut leaves what was there.
            Note::Length(len) => {
                if *len > bytes.len() || kept() {
                    bytes.resize(*len, 0);
                }
            }
            Note::Synced | Note::Answered(_) => {}
        }
    }
    bytes
}

fn all_of(store: &Store) -> BTreeMap<String, Kind> {
    store.list().unwrap().into_iter().map(|named| (named.key, named.record.kind)).collect()
}

/// What a daemon does in its life.
fn life(store: &Store, mut answered: impl FnMut(&Store)) {
    let labels = || Labels::from([("a label".to_owned(), "x".repeat(300))]);
    let create = |kind, key: &str, parent: &str| {
        store.create(kind, key, parent, labels(), |_| Ok(())).unwrap();
    };
    let mut parent = String::new();
    for number in 0..4 {
        create(Kind::Active, "n/1/extract", &parent);
        answered(store);
        let name = format!("n/{number}/layer");
        store.commit("n/1/extract", &name, Committing { labels: labels(), ..Committing::default() }).unwrap();
        answered(store);
        parent = name;
    }
    create(Kind::Active, "n/9/container", &parent);
    answered(store);
    store.update("n/9/container", &Labels::new(), None).unwrap();
    answered(store);
    store.remove("n/9/container").unwrap();
    answered(store);
    store.remove(&parent).unwrap();
    answered(store);
}

#[test]
fn whatever_a_cut_leaves_can_be_opened_and_is_as_it_was_answered_for() {
    let seed = std::env::var("SOCI_TEST_SEED").map_or_else(
        |_| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        |text| text.parse().unwrap(),
    );
    println!("SOCI_TEST_SEED={seed}");
    let mut dice = Dice(seed | 1);
    let disk = Disk::default();
    // As `Store::make` does it, under another name.
    drop(Database::builder().create_with_backend(disk.clone()).unwrap());
    let made = disk.bytes.lock().clone();
    disk.notes.lock().clear();
    {
        let store = disk.open().unwrap();
        let note = |store: &Store| disk.notes.lock().push(Note::Answered(all_of(store)));
        note(&store);
        life(&store, note);
    }
    // Closed in order, and opened again.
    let again = disk.open().unwrap();
    drop(again);

    let notes = disk.notes.lock().clone();
    let (mut synced, mut rest) = (made, Vec::new());
    let mut current = BTreeMap::new();
    let mut files = 0;
    for (at, note) in notes.iter().enumerate() {
        match note {
            Note::Synced => {
                synced = left(&synced, &rest, || true);
                rest.clear();
            }
            Note::Answered(rows) => current = rows.clone(),
            Note::Write(..) | Note::Length(_) => rest.push(note),
        }
        let next = notes[at..].iter().skip(1).find_map(|note| match note {
            Note::Answered(rows) => Some(rows),
            _ => None,
        });
        let mut ways = vec![left(&synced, &rest, || false), left(&synced, &rest, || true)];
        ways.extend((0..PARTIAL).map(|_| left(&synced, &rest, || dice.throw())));
        for bytes in ways {
            files += 1;
            let store = match Disk::with(bytes).open() {
                Ok(store) => store,
                Err(error) => panic!("cut after note {at}: {error}: {error:?}"),
            };
            let found = all_of(&store);
            assert!(
                found == current || Some(&found) == next,
                "cut after note {at}: {found:?}, not {current:?} or {next:?}"
            );
            // And it goes on.
            store.create(Kind::Active, "n/10/more", "", Labels::new(), |_| Ok(())).unwrap();
        }
    }
    println!("{} moments, {files} files", notes.len());
}
