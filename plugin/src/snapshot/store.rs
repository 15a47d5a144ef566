//! The metadata store: which snapshots there are. One redb file that only the daemon opens.
//!
//! # Format 1
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format` | 1 |
//! | `meta` | `next-id` | number of the next snapshot |
//! | `snapshots` | key of a snapshot | its [`Record`] as JSON |
//! | `children` (multimap) | key of a parent | numbers of its children |
//!
//! Every transaction is short and touches nothing but this file, with one exception: a new snapshot's directory is renamed into its place
//! inside the transaction that makes its row, so that a row without a directory cannot be.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use redb::{
    Database, MultimapTableDefinition, ReadableDatabase as _, ReadableMultimapTable as _, ReadableTable,
    Table, TableDefinition,
};

use super::record::{Id, Kind, Labels, LazyRecord, Moment, Named, Record, Usage};
use crate::failpoint;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const CHILDREN: MultimapTableDefinition<'_, &str, u64> = MultimapTableDefinition::new("children");

/// The only format that this version reads and writes.
const FORMAT: u64 = 1;
/// Longest key, in bytes: containerd's own names are far shorter.
const MAX_KEY: usize = 4096;
/// Deepest chain of parents: overlayfs takes 500 layers, and a loop must end.
const MAX_DEPTH: usize = 1000;

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such snapshot.
    #[error("snapshot {key}: not found")]
    NotFound {
        /// What was asked for.
        key: String,
    },
    /// The name is taken.
    #[error("snapshot {key}: already exists")]
    AlreadyExists {
        /// The name.
        key: String,
    },
    /// Only a committed snapshot can be a parent.
    #[error("parent {key} is not a committed snapshot")]
    ParentNotCommitted {
        /// The would-be parent.
        key: String,
    },
    /// Only an active snapshot can be committed.
    #[error("snapshot {key} is not active")]
    NotActive {
        /// The snapshot.
        key: String,
    },
    /// Others are built on it.
    #[error("cannot remove snapshot {key} with child")]
    HasChildren {
        /// The snapshot.
        key: String,
    },
    /// A committed snapshot's parent cannot be replaced by another.
    #[error("snapshot {key} has another parent already: {parent}")]
    OtherParent {
        /// The snapshot.
        key: String,
        /// The one that it has.
        parent: String,
    },
    /// Empty or too long.
    #[error("not a usable snapshot key: {0:?}")]
    BadKey(String),
    /// Anything but labels.
    #[error("cannot update {0:?} of a snapshot: only labels can change")]
    Immutable(String),
    /// The chain of parents does not end.
    #[error("snapshot {key} has more than {MAX_DEPTH} ancestors")]
    TooDeep {
        /// Where the chain starts.
        key: String,
    },
    /// The new snapshot's directory could not be put into place.
    #[error("failed to place the snapshot's directory")]
    Place(#[source] io::Error),
    /// A row that is not what this version writes.
    #[error("the record of snapshot {key} is damaged")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Written by a version that came later.
    #[error("metadata store {} has format {found}, this version knows {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Open in another process, or broken.
    #[error("metadata store {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// Reading or writing failed.
    #[error("metadata store")]
    Database(#[source] Box<redb::Error>),
}

/// The store.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

/// What a commit changes.
#[derive(Debug, Default)]
pub struct Committing {
    /// Replace those that the snapshot had.
    pub labels: Labels,
    /// What it occupies.
    pub usage: Usage,
    /// Parent for a snapshot that was made without one ("rebase"); empty to leave it.
    pub parent: String,
    /// Of a lazily loaded layer.
    pub lazy: Option<LazyRecord>,
}

// === impl Store ===

impl Store {
    /// Opens or makes the file. Durable commits are redb's default and are kept.
    ///
    /// # Errors
    /// [`StoreError::Open`] where another process has it open, [`StoreError::Format`].
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let failed =
            |source: redb::Error| StoreError::Open { path: path.to_owned(), source: Box::new(source) };
        if !path.try_exists().map_err(|error| failed(error.into()))? {
            Store::make(path).map_err(failed)?;
        }
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        Store::of(database, path)
    }

    /// Makes an empty file under another name first: redb does not open again what is half made when the process or the machine ends.
    fn make(path: &Path) -> Result<(), redb::Error> {
        let new = path.with_extension("redb.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        drop(Database::create(&new)?);
        failpoint::pass("store.made");
        fs::rename(&new, path)?;
        if let Some(directory) = path.parent() {
            fs::File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    /// `path` is for messages.
    fn of(database: Database, path: &Path) -> Result<Store, StoreError> {
        let failed =
            |source: redb::Error| StoreError::Open { path: path.to_owned(), source: Box::new(source) };
        let store = Store { database };
        let transaction = store.database.begin_write().map_err(|error| failed(error.into()))?;
        let found = {
            let mut meta = transaction.open_table(META).map_err(|error| failed(error.into()))?;
            transaction.open_table(SNAPSHOTS).map_err(|error| failed(error.into()))?;
            transaction.open_multimap_table(CHILDREN).map_err(|error| failed(error.into()))?;
            let found = meta.get("format").map_err(|error| failed(error.into()))?.map(|value| value.value());
            if found.is_none() {
                meta.insert("format", FORMAT).map_err(|error| failed(error.into()))?;
            }
            found.unwrap_or(FORMAT)
        };
        if found != FORMAT {
            return Err(StoreError::Format { path: path.to_owned(), found });
        }
        transaction.commit().map_err(|error| failed(error.into()))?;
        Ok(store)
    }

    /// Makes an active snapshot or a view. `place` puts its directory where `Id` says; if it fails there is no snapshot.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`], [`StoreError::NotFound`] and [`StoreError::ParentNotCommitted`] for the parent, [`StoreError::Place`].
    pub fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: Labels,
        place: impl FnOnce(Id) -> io::Result<()>,
    ) -> Result<Record, StoreError> {
        usable(key)?;
        let transaction = self.database.begin_write()?;
        let record = {
            let mut snapshots = transaction.open_table(SNAPSHOTS)?;
            let mut meta = transaction.open_table(META)?;
            if snapshots.get(key)?.is_some() {
                return Err(StoreError::AlreadyExists { key: key.to_owned() });
            }
            let next = meta.get("next-id")?.map_or(1, |value| value.value());
            meta.insert("next-id", next.saturating_add(1))?;
            if !parent.is_empty() {
                parent_for(&snapshots, parent)?;
                transaction.open_multimap_table(CHILDREN)?.insert(parent, next)?;
            }
            let now = Moment::now();
            let record = Record {
                id: Id(next),
                parent: parent.to_owned(),
                kind,
                created: now,
                updated: now,
                labels,
                usage: Usage::default(),
                lazy: None,
                committed_from: String::new(),
            };
            write(&mut snapshots, key, &record)?;
            record
        };
        place(record.id).map_err(StoreError::Place)?;
        transaction.commit()?;
        Ok(record)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn get(&self, key: &str) -> Result<Record, StoreError> {
        let transaction = self.database.begin_read()?;
        let snapshots = transaction.open_table(SNAPSHOTS)?;
        read(&snapshots, key)
    }

    /// A snapshot and its ancestors, nearest first; of one moment.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for any of them.
    pub fn chain(&self, key: &str) -> Result<Vec<Named>, StoreError> {
        let transaction = self.database.begin_read()?;
        let snapshots = transaction.open_table(SNAPSHOTS)?;
        let mut chain = Vec::new();
        let mut next = key.to_owned();
        while !next.is_empty() {
            if chain.len() == MAX_DEPTH {
                return Err(StoreError::TooDeep { key: key.to_owned() });
            }
            let record = read(&snapshots, &next)?;
            let parent = record.parent.clone();
            chain.push(Named { key: next, record });
            next = parent;
        }
        Ok(chain)
    }

    /// All snapshots, by key; of one moment.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn list(&self) -> Result<Vec<Named>, StoreError> {
        let transaction = self.database.begin_read()?;
        let snapshots = transaction.open_table(SNAPSHOTS)?;
        let mut all = Vec::new();
        for row in snapshots.iter()? {
            let (key, value) = row?;
            let key = key.value().to_owned();
            let record = decode(&key, value.value())?;
            all.push(Named { key, record });
        }
        Ok(all)
    }

    /// Snapshots whose key begins with `start` and ends with `end`, by key; of one moment.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn between(&self, start: &str, end: &str) -> Result<Vec<Named>, StoreError> {
        let transaction = self.database.begin_read()?;
        let snapshots = transaction.open_table(SNAPSHOTS)?;
        let mut found = Vec::new();
        for row in snapshots.range(start..)? {
            let (key, value) = row?;
            let key = key.value();
            if !key.starts_with(start) {
                break;
            }
            if key.len() >= start.len().saturating_add(end.len()) && key.ends_with(end) {
                found.push(Named { key: key.to_owned(), record: decode(key, value.value())? });
            }
        }
        Ok(found)
    }

    /// Turns the active snapshot `key` into the committed one `name`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NotActive`], [`StoreError::AlreadyExists`] for the name, [`StoreError::OtherParent`].
    pub fn commit(&self, key: &str, name: &str, committing: Committing) -> Result<Record, StoreError> {
        usable(name)?;
        let transaction = self.database.begin_write()?;
        let record = {
            let mut snapshots = transaction.open_table(SNAPSHOTS)?;
            if snapshots.get(name)?.is_some() {
                return Err(StoreError::AlreadyExists { key: name.to_owned() });
            }
            let mut record = read(&snapshots, key)?;
            if record.kind != Kind::Active {
                return Err(StoreError::NotActive { key: key.to_owned() });
            }
            if !committing.parent.is_empty() && committing.parent != record.parent {
                if !record.parent.is_empty() {
                    return Err(StoreError::OtherParent { key: key.to_owned(), parent: record.parent });
                }
                parent_for(&snapshots, &committing.parent)?;
                transaction.open_multimap_table(CHILDREN)?.insert(committing.parent.as_str(), record.id.0)?;
                record.parent = committing.parent;
            }
            record.kind = Kind::Committed;
            // As containerd's own store: a committed snapshot is a new thing.
            record.created = Moment::now();
            record.updated = record.created;
            record.labels = committing.labels;
            record.usage = committing.usage;
            record.lazy = committing.lazy;
            record.committed_from = key.to_owned();
            snapshots.remove(key)?;
            write(&mut snapshots, name, &record)?;
            record
        };
        failpoint::pass("commit.written");
        transaction.commit()?;
        Ok(record)
    }

    /// Forgets a snapshot; its directory is somebody else's business.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::HasChildren`].
    pub fn remove(&self, key: &str) -> Result<Record, StoreError> {
        let transaction = self.database.begin_write()?;
        let record = {
            let mut snapshots = transaction.open_table(SNAPSHOTS)?;
            let mut children = transaction.open_multimap_table(CHILDREN)?;
            let record = read(&snapshots, key)?;
            if !children.get(key)?.is_empty() {
                return Err(StoreError::HasChildren { key: key.to_owned() });
            }
            if !record.parent.is_empty() {
                children.remove(record.parent.as_str(), record.id.0)?;
            }
            snapshots.remove(key)?;
            record
        };
        failpoint::pass("remove.written");
        transaction.commit()?;
        Ok(record)
    }

    /// Changes labels: all of them (`labels`), or those that the mask's `labels.<key>` name; one without a value goes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Immutable`].
    pub fn update(&self, key: &str, labels: &Labels, mask: Option<&[String]>) -> Result<Record, StoreError> {
        let transaction = self.database.begin_write()?;
        let record = {
            let mut snapshots = transaction.open_table(SNAPSHOTS)?;
            let mut record = read(&snapshots, key)?;
            match mask {
                None | Some([]) => record.labels.clone_from(labels),
                Some(paths) => {
                    for path in paths {
                        if path == "labels" {
                            record.labels.clone_from(labels);
                        } else if let Some(label) = path.strip_prefix("labels.") {
                            match labels.get(label).filter(|value| !value.is_empty()) {
                                Some(value) => record.labels.insert(label.to_owned(), value.clone()),
                                None => record.labels.remove(label),
                            };
                        } else {
                            return Err(StoreError::Immutable(path.clone()));
                        }
                    }
                }
            }
            record.updated = Moment::now();
            write(&mut snapshots, key, &record)?;
            record
        };
        transaction.commit()?;
        Ok(record)
    }

    /// Which of the ids that `present` finds on disk belong to no snapshot. No snapshot is made meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Place`] where `present` fails.
    pub fn orphans(&self, present: impl FnOnce() -> io::Result<Vec<Id>>) -> Result<Vec<Id>, StoreError> {
        // A write transaction, given up at the end, keeps `create` out.
        let transaction = self.database.begin_write()?;
        let mut ids = present().map_err(StoreError::Place)?;
        {
            let snapshots = transaction.open_table(SNAPSHOTS)?;
            let mut rows = std::collections::HashSet::new();
            for row in snapshots.iter()? {
                let (key, value) = row?;
                rows.insert(decode(key.value(), value.value())?.id);
            }
            ids.retain(|id| !rows.contains(id));
        }
        transaction.abort()?;
        Ok(ids)
    }
}

fn usable(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(StoreError::BadKey(key.chars().take(80).collect()));
    }
    Ok(())
}

fn parent_for(
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    parent: &str,
) -> Result<(), StoreError> {
    match read(snapshots, parent)?.kind {
        Kind::Committed => Ok(()),
        Kind::View | Kind::Active => Err(StoreError::ParentNotCommitted { key: parent.to_owned() }),
    }
}

fn read(
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Record, StoreError> {
    match snapshots.get(key)? {
        Some(value) => decode(key, value.value()),
        None => Err(StoreError::NotFound { key: key.to_owned() }),
    }
}

fn decode(key: &str, value: &[u8]) -> Result<Record, StoreError> {
    serde_json::from_slice(value).map_err(|source| StoreError::Damaged { key: key.to_owned(), source })
}

fn write(
    snapshots: &mut Table<'_, &'static str, &'static [u8]>,
    key: &str,
    record: &Record,
) -> Result<(), StoreError> {
    let value =
        serde_json::to_vec(record).map_err(|source| StoreError::Damaged { key: key.to_owned(), source })?;
    snapshots.insert(key, value.as_slice())?;
    Ok(())
}

macro_rules! database_errors {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> StoreError {
                StoreError::Database(Box::new(error.into()))
            }
        })*
    };
}

database_errors!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

#[cfg(test)]
mod power;
#[cfg(test)]
mod tests;
