//! The store on a disk of its own.

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("metadata.redb")).unwrap();
    (dir, store)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn make(store: &Store, key: &str, parent: &str) -> Record {
    store.create(Kind::Active, key, parent, Labels::new(), |_| Ok(())).unwrap()
}

fn done(store: &Store, name: &str, parent: &str) -> Record {
    make(store, "tmp", parent);
    store.commit("tmp", name, Committing::default()).unwrap()
}

#[test]
fn a_life() {
    let (_dir, store) = store();
    let base = done(&store, "base", "");
    let top = done(&store, "top", "base");
    let active = make(&store, "c", "top");
    assert!(base.id < top.id && top.id < active.id);
    let keys: Vec<String> = store.chain("c").unwrap().into_iter().map(|named| named.key).collect();
    assert_eq!(keys, ["c", "top", "base"]);
    assert!(matches!(store.remove("top"), Err(StoreError::HasChildren { .. })));
    store.remove("c").unwrap();
    store.remove("top").unwrap();
    store.remove("base").unwrap();
    assert!(store.list().unwrap().is_empty());
    assert!(matches!(store.get("top"), Err(StoreError::NotFound { .. })));
    // Numbers are not used again.
    assert!(make(&store, "again", "").id > active.id);
}

#[test]
fn what_is_refused() {
    let (_dir, store) = store();
    make(&store, "a", "");
    let create = |kind, key, parent| store.create(kind, key, parent, Labels::new(), |_| Ok(())).unwrap_err();
    assert!(matches!(create(Kind::Active, "a", ""), StoreError::AlreadyExists { .. }));
    assert!(matches!(create(Kind::View, "v", "nothing"), StoreError::NotFound { .. }));
    assert!(matches!(create(Kind::View, "v", "a"), StoreError::ParentNotCommitted { .. }));
    assert!(matches!(create(Kind::View, "", ""), StoreError::BadKey(_)));
    store.commit("a", "b", Committing::default()).unwrap();
    assert!(matches!(store.commit("a", "b2", Committing::default()), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.commit("b", "b2", Committing::default()), Err(StoreError::NotActive { .. })));
    make(&store, "a", "");
    assert!(matches!(store.commit("a", "b", Committing::default()), Err(StoreError::AlreadyExists { .. })));
}

#[test]
fn a_directory_that_cannot_be_placed_leaves_no_row() {
    let (_dir, store) = store();
    let failed = store.create(Kind::Active, "a", "", Labels::new(), |_| Err(io::Error::other("no")));
    assert!(matches!(failed, Err(StoreError::Place(_))));
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_rebase_gives_a_parent_to_who_has_none() {
    let (_dir, store) = store();
    done(&store, "base", "");
    done(&store, "other", "");
    make(&store, "a", "");
    let rebase = |parent: &str| Committing { parent: parent.into(), ..Committing::default() };
    assert!(matches!(store.commit("a", "b", rebase("nothing")), Err(StoreError::NotFound { .. })));
    assert_eq!(store.commit("a", "b", rebase("base")).unwrap().parent, "base");
    assert!(matches!(store.remove("base"), Err(StoreError::HasChildren { .. })));
    make(&store, "c", "base");
    assert!(matches!(store.commit("c", "d", rebase("other")), Err(StoreError::OtherParent { .. })));
    store.commit("c", "d", rebase("base")).unwrap();
}

#[test]
fn labels_change_as_the_mask_says() {
    let (_dir, store) = store();
    store.create(Kind::Active, "a", "", labels(&[("x", "1"), ("y", "2")]), |_| Ok(())).unwrap();
    let update = |pairs, mask: Option<&[&str]>| {
        let mask: Option<Vec<String>> = mask.map(|mask| mask.iter().map(|path| (*path).to_owned()).collect());
        store.update("a", &labels(pairs), mask.as_deref()).map(|record| record.labels)
    };
    assert_eq!(
        update(&[("x", "3"), ("z", "4")], Some(&["labels.x"])).unwrap(),
        labels(&[("x", "3"), ("y", "2")])
    );
    assert_eq!(update(&[], Some(&["labels.y"])).unwrap(), labels(&[("x", "3")]));
    assert_eq!(update(&[("q", "5")], Some(&["labels"])).unwrap(), labels(&[("q", "5")]));
    assert_eq!(update(&[("r", "6")], None).unwrap(), labels(&[("r", "6")]));
    assert!(matches!(update(&[], Some(&["kind"])), Err(StoreError::Immutable(_))));
    assert_eq!(store.get("a").unwrap().labels, labels(&[("r", "6")]));
}

#[test]
fn everything_is_there_after_a_restart_and_one_process_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata.redb");
    let store = Store::open(&path).unwrap();
    let lazy = LazyRecord {
        image: "r/i:t".into(),
        manifest: "m".into(),
        layer: "l".into(),
        ztoc: "z".into(),
        namespace: "n".into(),
        own_ztoc: None,
    };
    make(&store, "a", "");
    store.commit("a", "b", Committing { lazy: Some(lazy), ..Committing::default() }).unwrap();
    let before = store.list().unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
    drop(store);
    assert_eq!(Store::open(&path).unwrap().list().unwrap(), before);
}

#[test]
fn a_later_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata.redb");
    let store = Store::open(&path).unwrap();
    let transaction = store.database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("format", 2).unwrap();
    transaction.commit().unwrap();
    drop(store);
    assert!(matches!(Store::open(&path), Err(StoreError::Format { found: 2, .. })));
}

#[test]
fn orphans_are_what_has_no_row() {
    let (_dir, store) = store();
    let id = make(&store, "a", "").id;
    assert_eq!(store.orphans(|| Ok(vec![id, Id(77)])).unwrap(), [Id(77)]);
}

#[test]
fn keys_are_found_by_both_ends() {
    let (_dir, store) = store();
    for key in ["a/soci-1/x", "a/soci-2/y", "a/soci-3/x", "b/soci-4/x", "a/soci-/x", "a/5/x"] {
        make(&store, key, "");
    }
    let found: Vec<String> =
        store.between("a/soci-", "/x").unwrap().into_iter().map(|named| named.key).collect();
    assert_eq!(found, ["a/soci-/x", "a/soci-1/x", "a/soci-3/x"]);
    // The ends may not overlap.
    assert!(store.between("a/soci-/", "/x").unwrap().is_empty());
}

/// The first start of all was cut off while it made the file.
#[test]
fn half_a_file_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata.redb");
    fs::write(dir.path().join("metadata.redb.new"), [0; 70_000]).unwrap();
    make(&Store::open(&path).unwrap(), "a", "");
    assert_eq!(Store::open(&path).unwrap().list().unwrap().len(), 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
