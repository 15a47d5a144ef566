//! The verbs, with a backend that does as it is told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::*;

const D: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// Gives prepared answers, and counts what is mounted.
#[derive(Debug, Default)]
struct Fake {
    attempts: Mutex<VecDeque<Answer>>,
    unpack: Mutex<Option<Result<(), String>>>,
    mounted: Arc<AtomicUsize>,
    remounts_fail: bool,
    kept: Vec<KeptLayer>,
    /// What became of them.
    fates: Mutex<Vec<(Slot, &'static str)>>,
    /// Mounts are gone on with when it gives leave.
    gate: Option<Arc<Semaphore>>,
    /// Alive as often as something is pinned.
    pin: Arc<()>,
    /// Pins at each look for what can go.
    swept: Mutex<Vec<usize>>,
    /// Snapshots whose containers perhaps run.
    ran: Mutex<Vec<String>>,
    /// Where front ends were unmounted.
    cleared: Mutex<Vec<PathBuf>>,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Mount,
    NoZtoc,
    NoIndex,
    Fail,
}

#[derive(Debug)]
struct FakeMount(Arc<AtomicUsize>);

impl FakeMount {
    fn boxed(count: &Arc<AtomicUsize>) -> Box<dyn LazyMount> {
        count.fetch_add(1, Ordering::SeqCst);
        Box::new(FakeMount(Arc::clone(count)))
    }
}

impl LazyMount for FakeMount {
    fn unmount(self: Box<Self>, _: Then) -> Result<(), String> {
        self.0.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn leave(self: Box<Self>, _: Then) {}

    fn status(&self) -> Box<dyn FnOnce() -> lazy_layer::LayerStatus + Send> {
        Box::new(|| lazy_layer::LayerStatus {
            size: 10,
            present: 4,
            spans: 2,
            spans_present: 1,
            fetched_on_demand: 3,
            reads_that_waited: 1,
            ..lazy_layer::LayerStatus::default()
        })
    }
}

impl Backend for Fake {
    fn unmount_front_end(&self, at: &Path) -> std::io::Result<()> {
        self.cleared.lock().push(at.to_owned());
        Ok(rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH)?)
    }

    fn starts(&self, _: &[Arc<Layer>]) {}

    fn runs(&self, _: Option<&str>, key: &str, _: &[Arc<Layer>]) {
        self.ran.lock().push(key.to_owned());
    }

    fn mount(&self, asked: Asked, _: Id, _: PathBuf, _: Vec<Arc<Layer>>) -> BoxFuture<'static, Attempt> {
        let attempt = match self.attempts.lock().pop_front().unwrap_or(Answer::NoIndex) {
            Answer::Mount => Attempt::Mounted(
                LazyRecord {
                    image: asked.layer.image,
                    manifest: D.into(),
                    layer: D.into(),
                    ztoc: D.into(),
                    namespace: "n".into(),
                    own_ztoc: None,
                },
                FakeMount::boxed(&self.mounted),
            ),
            Answer::NoZtoc => Attempt::NoZtoc("no ztoc for layer".into()),
            Answer::NoIndex => Attempt::NoIndex("no index".into()),
            Answer::Fail => Attempt::Failed("bad ztoc".into()),
        };
        async { attempt }.boxed()
    }

    fn unpack(&self, _: Asked, _: Vec<Below>, at: PathBuf) -> BoxFuture<'static, Result<(), String>> {
        let result = self.unpack.lock().clone().unwrap_or(Err("not told".into()));
        async move {
            std::fs::write(at.join("unpacked"), "x").unwrap();
            result
        }
        .boxed()
    }

    fn remount(
        &self,
        _: LazyRecord,
        _: Id,
        _: PathBuf,
    ) -> BoxFuture<'static, Result<Box<dyn LazyMount>, String>> {
        let result =
            if self.remounts_fail { Err("no registry".into()) } else { Ok(FakeMount::boxed(&self.mounted)) };
        async { result }.boxed()
    }

    fn kept(&self) -> Vec<KeptLayer> {
        self.kept.clone()
    }

    fn resume(
        &self,
        slot: Slot,
        _: Sight,
        _: PathBuf,
    ) -> BoxFuture<'static, Result<Box<dyn LazyMount>, String>> {
        self.fates.lock().push((slot, "resumed"));
        let (mount, gate) = (FakeMount::boxed(&self.mounted), self.gate.clone());
        async move {
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            Ok(mount)
        }
        .boxed()
    }

    fn drop_kept(&self, slot: Slot) {
        self.fates.lock().push((slot, "dropped"));
    }

    fn pin(&self, _: &LazyRecord) -> Pin {
        Box::new(Arc::clone(&self.pin))
    }

    fn sweep(&self, _: &[LazyRecord]) {
        self.swept.lock().push(Arc::strong_count(&self.pin) - 1);
    }
}

fn options() -> Options {
    Options {
        min_layer_size: 100,
        restores: 2,
        restore_deadline: Duration::from_secs(5),
        cleanups: 64,
        overlay: OverlayOptions::default(),
    }
}

fn open(root: &Path, fake: Fake) -> (Snapshotter, Arc<Fake>) {
    let fake = Arc::new(fake);
    (Snapshotter::open(root, options(), fake.clone()).unwrap(), fake)
}

/// One that nobody asks anything of.
pub(crate) fn idle(root: &Path) -> Snapshotter {
    open(root, Fake::default()).0
}

fn answers(answers: &[Answer]) -> Fake {
    Fake { attempts: Mutex::new(answers.iter().copied().collect()), ..Fake::default() }
}

fn layer_labels(target: &str, extra: &[(&str, &str)]) -> Labels {
    [
        (labels::TARGET, target),
        (labels::IMAGE, "docker.io/library/x:1"),
        (labels::LAYER, D),
        (labels::MANIFEST, D),
    ]
    .iter()
    .chain(extra)
    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
    .collect()
}

async fn prepare_layer(
    snapshotter: &Snapshotter,
    key: &str,
    parent: &str,
    target: &str,
) -> Result<Vec<Mount>, SnapshotError> {
    snapshotter.prepare(Some("n".into()), key.into(), parent.into(), layer_labels(target, &[])).await
}

/// As containerd does after AlreadyExists.
async fn adopt(snapshotter: &Snapshotter, target: &str, parent: &str) -> Named {
    let filter = format!(r#"labels."containerd.io/snapshot.ref"=={target},parent=="{parent}""#);
    let mut found = snapshotter.list(&[filter]).await.unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

#[tokio::test]
async fn a_remote_layer_is_committed_and_found_by_its_labels() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, fake) = open(root.path(), answers(&[Answer::Mount, Answer::Mount]));
    let error = prepare_layer(&snapshotter, "n/1/extract", "", "sha256:one").await.unwrap_err();
    assert_eq!(error.to_string(), r#"target snapshot "sha256:one": already exists"#);
    let base = adopt(&snapshotter, "sha256:one", "").await;
    assert_eq!(base.record.kind, Kind::Committed);
    assert_eq!(base.record.labels["containerd.io/snapshot/remote"], "remote snapshot");
    assert_eq!(base.record.labels["containerd.io/snapshot/remote/namespace"], "n");
    assert!(matches!(
        snapshotter.stat("n/1/extract".into()).await,
        Err(SnapshotError::Store(StoreError::NotFound { .. }))
    ));
    prepare_layer(&snapshotter, "n/2/extract", &base.key, "sha256:two").await.unwrap_err();
    let top = adopt(&snapshotter, "sha256:two", &base.key).await;

    let mounts = snapshotter.prepare(None, "n/3/c".into(), top.key.clone(), Labels::new()).await.unwrap();
    assert_eq!(mounts[0].kind, "overlay");
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    assert!(lower.ends_with("/snapshots/1/fs") && lower.contains("/snapshots/2/fs:"), "{lower}");
    assert!(fake.ran.lock().is_empty(), "no client has recorded the container yet");
    assert_eq!(snapshotter.mounts(None, "n/3/c".into()).await.unwrap(), mounts);
    assert_eq!(*fake.ran.lock(), ["n/3/c"]);
    assert_eq!(snapshotter.usage(top.key.clone()).await.unwrap(), Usage { bytes: 4, inodes: 0 });
    assert_eq!(snapshotter.layers().len(), 2);

    assert!(matches!(
        snapshotter.remove(top.key.clone()).await,
        Err(SnapshotError::Store(StoreError::HasChildren { .. }))
    ));
    for key in ["n/3/c".to_owned(), top.key, base.key] {
        snapshotter.remove(key).await.unwrap();
    }
    snapshotter.cleanup().await.unwrap();
    assert_eq!(fake.mounted.load(Ordering::SeqCst), 0);
    assert_eq!(std::fs::read_dir(root.path().join("snapshotter/snapshots")).unwrap().count(), 0);
}

#[tokio::test]
async fn two_namespaces_do_not_meet() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, _) = open(root.path(), answers(&[Answer::Mount, Answer::Mount]));
    for namespace in ["a", "b"] {
        let result = snapshotter
            .prepare(
                Some(namespace.into()),
                format!("{namespace}/1/x"),
                String::new(),
                layer_labels("sha256:one", &[]),
            )
            .await;
        assert!(matches!(result, Err(SnapshotError::Prepared { .. })));
    }
    assert_eq!(snapshotter.list(&[]).await.unwrap().len(), 2);
}

#[tokio::test]
async fn no_index_is_left_to_containerd_and_so_is_everything_it_did_not_ask_for() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, fake) = open(root.path(), answers(&[Answer::NoIndex, Answer::Mount]));
    let mounts = prepare_layer(&snapshotter, "n/1/x", "", "t1").await.unwrap();
    assert_eq!((mounts[0].kind, mounts[0].options[0].as_str()), ("bind", "rw"));
    snapshotter.commit("n/1/x".into(), "n/2/t1".into(), Labels::new(), String::new()).await.unwrap();
    assert!(snapshotter.usage("n/2/t1".into()).await.unwrap().inodes > 0);
    // Too small, and no labels at all: the backend is not even asked.
    let small = layer_labels("t2", &[(labels::SIZE, "99")]);
    snapshotter.prepare(None, "n/3/x".into(), String::new(), small).await.unwrap();
    let plain = Labels::from([(labels::TARGET.to_owned(), "t3".to_owned())]);
    snapshotter.prepare(None, "n/4/x".into(), String::new(), plain).await.unwrap();
    assert_eq!(fake.attempts.lock().len(), 1);
}

#[tokio::test]
async fn a_layer_outside_the_index_is_unpacked_here() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, fake) = open(root.path(), answers(&[Answer::NoZtoc, Answer::Fail, Answer::NoZtoc]));
    *fake.unpack.lock() = Some(Ok(()));
    for key in ["n/1/x", "n/2/x"] {
        let error = prepare_layer(&snapshotter, key, "", key).await.unwrap_err();
        assert!(matches!(error, SnapshotError::Prepared { .. }), "{error}");
        let layer = adopt(&snapshotter, key, "").await;
        assert!(!layer.record.labels.contains_key("containerd.io/snapshot/remote"));
        assert!(layer.record.usage.inodes >= 2);
    }
    *fake.unpack.lock() = Some(Err("registry is down".into()));
    assert_eq!(prepare_layer(&snapshotter, "n/3/x", "", "t3").await.unwrap().len(), 1);
    assert!(snapshotter.layers().is_empty());
}

#[tokio::test]
async fn a_restart_brings_layers_back_or_says_that_it_could_not() {
    let root = tempfile::tempdir().unwrap();
    {
        let (snapshotter, _) = open(root.path(), answers(&[Answer::Mount]));
        prepare_layer(&snapshotter, "n/1/x", "", "t").await.unwrap_err();
        snapshotter.cleanup().await.unwrap();
        snapshotter.unmount_all().await;
    }
    // The power went before the directory was on the disk.
    std::fs::remove_dir_all(root.path().join("snapshotter/snapshots/1")).unwrap();
    let parent = {
        let (snapshotter, fake) = open(root.path(), Fake { remounts_fail: true, ..Fake::default() });
        let restored = snapshotter.restore().await.unwrap();
        assert_eq!((restored.mounted, restored.missing), (0, 1));
        let parent = adopt(&snapshotter, "t", "").await.key;
        let error = snapshotter.view("n/5/v".into(), parent.clone(), Labels::new()).await.unwrap_err();
        assert_eq!(error.to_string(), r#"layer "1" unavailable"#);
        assert_eq!(fake.mounted.load(Ordering::SeqCst), 0);
        // It was only a view that failed: nothing of it stays.
        assert_eq!(snapshotter.list(&[]).await.unwrap().len(), 1);
        parent
    };
    // The task that tried to revive it holds the store a moment longer.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if Store::open(&root.path().join("snapshotter/metadata.redb")).is_ok() {
            break;
        }
    }
    let (snapshotter, fake) = open(root.path(), Fake::default());
    let restored = snapshotter.restore().await.unwrap();
    assert_eq!((restored.mounted, restored.missing), (1, 0));
    assert!(root.path().join("snapshotter/snapshots/1/fs").is_dir());
    assert_eq!(fake.mounted.load(Ordering::SeqCst), 1);
    let mounts = snapshotter.view("n/5/v".into(), parent, Labels::new()).await.unwrap();
    // Not a bind mount of the layer itself: only overlayfs checks who may read what.
    let option = &mounts[0].options[0];
    assert!(
        mounts[0].kind == "overlay" && option.starts_with("lowerdir=") && option.contains("/snapshots/1/fs")
    );
}

/// Btrfs writes a row before the directory that was made earlier: a power cut leaves the row.
#[tokio::test]
async fn directories_that_a_power_cut_took() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, _) = open(root.path(), Fake::default());
    snapshotter.prepare(None, "n/1/base".into(), String::new(), Labels::new()).await.unwrap();
    snapshotter.commit("n/1/base".into(), "n/2/done".into(), Labels::new(), String::new()).await.unwrap();
    snapshotter.prepare(None, "n/3/active".into(), "n/2/done".into(), Labels::new()).await.unwrap();
    snapshotter.view("n/4/view".into(), "n/2/done".into(), Labels::new()).await.unwrap();
    let of = |id: u32| root.path().join(format!("snapshotter/snapshots/{id}"));
    for id in 1..=3 {
        std::fs::remove_dir_all(of(id)).unwrap();
    }
    snapshotter.restore().await.unwrap();
    assert!(!of(1).exists(), "what was unpacked is not empty");
    assert!(of(2).join("fs").is_dir() && of(2).join("work").is_dir());
    assert!(of(3).join("fs").is_dir() && !of(3).join("work").exists());
}

/// Nothing is mounted here: what was ready is out of sight, and is served until its last user goes.
#[tokio::test]
async fn kept_mounts_without_a_place() {
    let root = tempfile::tempdir().unwrap();
    let layer = |slot, ready| KeptLayer { slot: Slot(slot), id: Id(7), lazy: LazyRecord::named(D), ready };
    let kept = vec![layer(0, false), layer(1, true)];
    let (snapshotter, fake) = open(root.path(), Fake { kept, ..Fake::default() });
    assert_eq!(snapshotter.restore().await.unwrap(), Restored::default());
    for _ in 0..100 {
        if fake.fates.lock().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(*fake.fates.lock(), [(Slot(0), "dropped"), (Slot(1), "resumed")]);
    assert_eq!(fake.mounted.load(Ordering::SeqCst), 1);
    assert!(snapshotter.layers().is_empty());
}

/// No row names the layers of these mounts, and they wait for their turn: whoever looks for what can go meanwhile must spare them.
#[tokio::test]
async fn what_kept_mounts_are_made_from_stays_until_they_are_gone_on_with() {
    let root = tempfile::tempdir().unwrap();
    let kept: Vec<_> = (0..5)
        .map(|slot| KeptLayer { slot: Slot(slot), id: Id(7), lazy: LazyRecord::named(D), ready: true })
        .collect();
    let gate = Arc::new(Semaphore::new(0));
    let (snapshotter, fake) =
        open(root.path(), Fake { kept, gate: Some(Arc::clone(&gate)), ..Fake::default() });
    snapshotter.restore().await.unwrap();
    snapshotter.cleanup().await.unwrap();
    gate.add_permits(4);
    while fake.mounted.load(Ordering::SeqCst) < 5 || Arc::strong_count(&fake.pin) > 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    snapshotter.cleanup().await.unwrap();
    assert!(fake.swept.lock().iter().all(|pins| (1..=5).contains(pins)));
    assert!(fake.swept.lock().contains(&5) && fake.swept.lock().ends_with(&[1]));
    // With the last one somebody looks once more, by himself.
    gate.add_permits(1);
    while !fake.swept.lock().ends_with(&[0]) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_mount_whose_commit_fails_is_undone() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, fake) = open(root.path(), answers(&[Answer::Mount]));
    // The second Prepare under the same key fails before anything is mounted.
    prepare_layer(&snapshotter, "k", "", "t").await.unwrap_err();
    snapshotter.prepare(None, "k".into(), String::new(), Labels::new()).await.unwrap();
    assert!(matches!(
        prepare_layer(&snapshotter, "k", "", "another").await,
        Err(SnapshotError::Store(StoreError::AlreadyExists { .. }))
    ));
    assert_eq!(fake.mounted.load(Ordering::SeqCst), 1);
}

/// The answer was lost, so containerd asks again: one is enough, and it is the one that containerd finds.
#[tokio::test]
async fn a_layer_that_containerd_has_not_heard_of_is_not_brought_twice() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, fake) = open(root.path(), answers(&[Answer::Mount, Answer::Mount, Answer::Mount]));
    prepare_layer(&snapshotter, "n/1/x", "", "t").await.unwrap_err();
    let error = prepare_layer(&snapshotter, "n/2/x", "", "t").await.unwrap_err();
    assert!(matches!(error, SnapshotError::Prepared { .. }), "{error}");
    let layer = adopt(&snapshotter, "t", "").await;
    assert_eq!(snapshotter.list(&[]).await.unwrap().len(), 1);
    // Another layer whose name ends in the same way, the same layer on another one, and one that could not be mounted are not it.
    prepare_layer(&snapshotter, "n/3/x", "", "/t").await.unwrap_err();
    prepare_layer(&snapshotter, "n/4/x", &layer.key, "t").await.unwrap_err();
    snapshotter.unmount(layer.record.id).await;
    snapshotter
        .prepare(Some("n".into()), "n/5/x".into(), String::new(), layer_labels("t", &[]))
        .await
        .unwrap();
    assert_eq!(fake.mounted.load(Ordering::SeqCst), 2);
    assert_eq!(snapshotter.list(&[]).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_can_be_asked_for_again() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, _) = open(root.path(), Fake::default());
    let commit = |key: &str| snapshotter.commit(key.into(), "n/2/t".into(), Labels::new(), String::new());
    snapshotter.prepare(None, "n/1/x".into(), String::new(), Labels::new()).await.unwrap();
    for _ in 0..2 {
        commit("n/1/x").await.unwrap();
    }
    let error = commit("n/3/x").await.unwrap_err();
    assert!(
        matches!(error, SnapshotError::Store(StoreError::NotFound { .. })),
        "another became that: {error}"
    );
}

/// EROFS of a file, where this machine can: the caller's business is the type alone.
fn mount_erofs(image: &Path, at: &Path) -> Option<()> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
    let mut bytes =
        erofs_image::NewImage::of(erofs_image::TreeBuilder::new().finish(), 0).unwrap().metadata();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    std::fs::write(image, bytes).unwrap();
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    rustix::mount::fsconfig_set_flag(&context, "ro").ok()?;
    rustix::mount::fsconfig_set_string(&context, "source", image).ok()?;
    rustix::mount::fsconfig_create(&context).ok()?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap();
    let place = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", rustix::fs::CWD, at, place).unwrap();
    Some(())
}

/// What is below it may be a mount that only this process can serve.
#[tokio::test]
async fn front_ends_are_unmounted_by_the_backend() {
    let root = tempfile::tempdir().unwrap();
    let (snapshotter, fake) = open(root.path(), Fake::default());
    let directory = snapshotter.shared.tree.directory(Id(7));
    let (fs, erofs) = (directory.join("fs"), directory.join("erofs"));
    for path in [&fs, &erofs] {
        std::fs::create_dir_all(path).unwrap();
    }
    if mount_erofs(&root.path().join("image"), &erofs).is_none() {
        return;
    }
    rustix::mount::mount("none", &fs, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    snapshotter.cleanup().await.unwrap();
    assert_eq!(*fake.cleared.lock(), [erofs]);
    assert!(!directory.exists());
}
