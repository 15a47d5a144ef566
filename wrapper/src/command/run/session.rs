//! One container from its making to its end, and what has to go when that end comes early.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use containerd_client::types::Mount;
use oci_registry::Reference;
use oci_registry::platform::Platform;
use oci_spec::image::ImageConfiguration;
use soci_store::labels::{self, Labels};
use soci_store::{Containerd, Image, Lease, StoreError};

use super::user::{self, Decision};
use super::{Args, Source};
use crate::container::{self, NewContainer, Snapshot};
use crate::context::Context;
use crate::error::{Error, one_line};
use crate::local_image::{self, LocalImage};
use crate::rootfs::{self, RootfsError};
use crate::spec::user::{Accounts, ProcessUser};
use crate::spec::{self, Request};
use crate::task::signals::{Signal, Signals};
use crate::task::streams::Streams;
use crate::task::terminal::RawTerminal;
use crate::task::{ExitStatus, Task};
use crate::terminal::{self, Progress};
use crate::unpack::{Prepared, Unpacker};

/// Should we die, containerd lets go of what was half made after this time.
const LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// containerd's label for the signal that asks the image's process to end.
const STOP_SIGNAL: &str = "io.containerd.image.config.stop-signal";

/// What this run has made so far, in the order of making.
#[derive(Debug)]
pub(super) struct Session<'a> {
    context: &'a Context,
    args: &'a Args,
    id: String,
    lease: Option<Lease>,
    /// A call was cut short: containerd may have made what we do not know of, and only the lease holds.
    cut: bool,
    unpacker: Option<Unpacker>,
    snapshot: Option<Snapshot>,
    container: bool,
    task: Option<Task>,
    /// The process runs, or has run: what is left is the user's.
    started: bool,
}

/// The image that a container is made from.
struct RunImage {
    record: Image,
    local: LocalImage,
    config: ImageConfiguration,
}

impl<'a> Session<'a> {
    /// One that has made nothing yet.
    pub(super) fn new(context: &'a Context, args: &'a Args, id: String) -> Self {
        Self {
            context,
            args,
            id,
            lease: None,
            cut: false,
            unpacker: None,
            snapshot: None,
            container: false,
            task: None,
            started: false,
        }
    }

    /// Makes the container, runs it, and stays until its process ends; `None` when detached.
    pub(super) async fn run(
        &mut self,
        signals: &mut Signals,
        source: &Source,
        request: Request,
    ) -> Result<Option<ExitStatus>, Error> {
        // What is only read needs no lease. That is not cut short: nobody would know its name.
        let leases = self.context.containerd().leases();
        let (lease, image) = tokio::join!(leases.create(LEASE), signals.unless(self.image(source)));
        let lease = lease?;
        let containerd = self.context.containerd().with_lease(&lease);
        self.lease = Some(lease);
        let image = image??;
        let made = signals.unless(self.make(&containerd, source, image.as_ref(), request)).await;
        self.cut = made.is_err();
        let (new, rootfs) = made??;
        // A record, not cut short: it may be there, or be another's with the same name.
        container::create(&containerd, new).await?;
        self.container = true;
        // Asked once more, as ctr does: now that the container is recorded, a lazy snapshotter can see what it is going to run.
        let snapshot = self.snapshot.clone();
        let mounts = async {
            match &snapshot {
                Some(snapshot) => snapshot.rootfs(&containerd).await,
                None => Ok(rootfs),
            }
        };
        let ready = async { tokio::join!(mounts, self.end_lease()) };
        let (rootfs, ()) = signals.unless(ready).await?;
        self.process(signals, rootfs?).await
    }

    /// What the container is made from: its record, and its root file system.
    async fn make(
        &mut self,
        containerd: &Containerd,
        source: &Source,
        image: Option<&RunImage>,
        request: Request,
    ) -> Result<(NewContainer, Vec<Mount>), Error> {
        let rootfs = match image {
            Some(image) => self.snapshot(containerd, image).await?,
            None => Vec::new(),
        };
        let spec = match source {
            Source::SpecFile(path) => read_spec(path)?,
            _ => {
                let user = self.user(source, image, &rootfs).await?;
                let namespace = self.context.namespace().as_str();
                let config = image.map(|image| &image.config);
                let spec =
                    spec::build(namespace, &self.id, config, &user, &request).map_err(Error::command)?;
                serde_json::to_vec(&spec).map_err(Error::command)?
            }
        };
        let new = NewContainer {
            id: self.id.clone(),
            image: image.map(|image| image.record.name.clone()).unwrap_or_default(),
            labels: image.map_or_else(|| self.args.labels(), |image| container_labels(image, self.args)),
            runtime: self.args.runtime.clone(),
            runtime_options: self.args.runtime_options(),
            spec,
            snapshot: self.snapshot.clone(),
        };
        Ok((new, rootfs))
    }

    async fn image(&self, source: &Source) -> Result<Option<RunImage>, Error> {
        let Source::Image(name) = source else { return Ok(None) };
        let containerd = self.context.containerd();
        let record = local_image::find(containerd, name).await?;
        let host = Platform::host();
        let wanted = self.args.platform.as_ref().unwrap_or(&host);
        let local = local_image::for_platform(containerd, &record, wanted).await.map_err(Error::command)?;
        let config = local.configuration().map_err(Error::command)?;
        Ok(Some(RunImage { record, local, config }))
    }

    /// The container's own snapshot, on the image's, which is unpacked first where it is not.
    async fn snapshot(&mut self, containerd: &Containerd, image: &RunImage) -> Result<Vec<Mount>, Error> {
        let snapshotter = &self.args.snapshotter;
        let parent = image.local.layers.last().map(|layer| layer.chain_id.to_string()).unwrap_or_default();
        let own = Snapshot { snapshotter: snapshotter.clone(), key: self.id.clone() };
        let labels: HashMap<String, String> = self.args.snapshotter_label.iter().cloned().collect();
        let mounts = match own.prepare(containerd, &parent, labels.clone()).await {
            Err(error) if error.is_not_found() && !parent.is_empty() => {
                self.unpack(containerd, image, parent.clone()).await?;
                own.prepare(containerd, &parent, labels).await?
            }
            prepared => prepared?,
        };
        self.snapshot = Some(own);
        Ok(mounts)
    }

    async fn unpack(&mut self, containerd: &Containerd, image: &RunImage, top: String) -> Result<(), Error> {
        let snapshotter = &self.args.snapshotter;
        let unpacker = Unpacker::new(containerd.clone(), snapshotter);
        self.unpacker = Some(unpacker.clone());
        unpack(&unpacker, &image.local).await?;
        let held = Labels::from([(labels::gc_ref_snapshot(snapshotter), top)]);
        containerd.content().set_labels(image.local.manifest.config.digest(), held).await?;
        Ok(())
    }

    async fn user(
        &self,
        source: &Source,
        image: Option<&RunImage>,
        rootfs: &[Mount],
    ) -> Result<ProcessUser, Error> {
        let flag = self.args.user.as_ref().map(super::UserFlag::value);
        let credentials = flag.filter(|flag| flag.as_credentials().is_some());
        let mut accounts = self.accounts(source, rootfs).await?;
        let mut handed_over = false;
        if let Err(error) = &accounts
            && error.is_input_output()
            && let (Some(flag), Some(image)) = (credentials, image)
        {
            // The image is lazy and its registry does not let the daemon in: then these may be what it waits for.
            user::hand_over(self.context, &self.args.snapshotter, &image.record.name, flag).await;
            handed_over = true;
            accounts = self.accounts(source, rootfs).await?;
        }
        let accounts = accounts.map_err(Error::command)?;
        let of_the_image = image.and_then(|image| image.config.config().as_ref()?.user().as_deref());
        match (user::decide(flag, of_the_image, &accounts).map_err(Error::command)?, flag, image) {
            (Decision::Process(user), ..) => Ok(user),
            (Decision::Credentials(user), Some(flag), Some(image)) => {
                let host = Reference::parse(&image.record.name).map(|reference| reference.host().to_owned());
                let host = host.unwrap_or_else(|_| "the image's registry".to_owned());
                terminal::notice(&format!(
                    "--user names nobody in the image; it is taken as credentials for {host}"
                ));
                if !handed_over {
                    user::hand_over(self.context, &self.args.snapshotter, &image.record.name, flag).await;
                }
                Ok(user)
            }
            // Without an image there is no registry that credentials could be for.
            (Decision::Credentials(_), Some(flag), None) => flag.resolve(&accounts).map_err(Error::command),
            (Decision::Credentials(user), None, _) => Ok(user),
        }
    }

    async fn accounts(
        &self,
        source: &Source,
        rootfs: &[Mount],
    ) -> Result<Result<Accounts, RootfsError>, Error> {
        let directory = match source {
            Source::Directory(path) => Some(path.clone()),
            _ => None,
        };
        let mounts = rootfs.to_vec();
        let looked = tokio::task::spawn_blocking(move || match directory {
            Some(path) => rootfs::accounts_of_directory(&path),
            None if mounts.is_empty() => Ok(Accounts::default()),
            None => rootfs::accounts_of_snapshot(&mounts),
        });
        looked.await.map_err(Error::command)
    }

    async fn process(
        &mut self,
        signals: &mut Signals,
        rootfs: Vec<Mount>,
    ) -> Result<Option<ExitStatus>, Error> {
        let args = self.args;
        let containerd = self.context.containerd().clone();
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| Error::Io { what, source }
        };
        // Before anything is made that would have to be taken back.
        let raw = (args.tty && !args.detach).then(RawTerminal::enter).transpose().map_err(Error::command)?;
        let streams =
            Streams::new(&args.destination(), &args.fifo_dir, &self.id, args.tty).map_err(Error::command)?;
        // An interrupted call may have made it all the same.
        self.task = Some(Task::presumed(&containerd, &self.id));
        let options = args.runtime_options();
        let create = Task::create(&containerd, &self.id, rootfs, &streams, args.tty, options);
        let task = signals.unless(create).await??;
        self.task = Some(task.clone());
        if let Some(file) = &args.pid_file {
            write_pid(file, task.pid()).map_err(io("cannot write the pid file"))?;
        }
        if args.detach {
            signals.unless(task.start()).await??;
            self.started = true;
            self.task = None;
            streams.leave();
            return Ok(None);
        }
        let mut copies = streams.copy().map_err(io("cannot start a thread"))?;
        copies.task_is_there();
        let early = start(&task, signals).await?;
        self.started = true;
        if let Some(signal) = early
            && let Err(error) = task.kill(signal).await
        {
            tracing::debug!(%error, "signal not forwarded");
        }
        let deadline = self.context.take_deadline();
        let attended = tokio::select! {
            status = task.attend(copies, signals, args.tty) => Ok(status?),
            error = deadline.passed() => Err(error),
        };
        if attended.is_err()
            && let Err(error) = task.abandon().await
        {
            tracing::warn!(error = one_line(&error), "the process may go on");
        }
        let status = attended?;
        drop(raw);
        task.delete().await?;
        self.task = None;
        Ok(Some(status))
    }

    async fn end_lease(&mut self) {
        let Some(lease) = &self.lease else { return };
        let leases = self.context.containerd().leases();
        let ended =
            if self.cut { leases.delete_and_collect(lease).await } else { leases.delete(lease).await };
        if let Err(error) = ended {
            tracing::debug!(error = one_line(&error), "the lease ends by itself later");
        }
        self.lease = None;
    }

    /// Takes back what a run that never started has made; after one that did, what `--rm` asks for.
    ///
    /// # Errors
    /// Something stays; the rest is tried all the same.
    pub(super) async fn clean_up(mut self) -> Result<(), Error> {
        let containerd = self.context.containerd();
        let mut outcome: Result<(), StoreError> = Ok(());
        if let Some(unpacker) = &self.unpacker {
            unpacker.abandon().await;
        }
        let remove = !self.started || self.args.rm;
        if remove {
            if let Some(task) = &self.task {
                outcome = outcome.and(task.abandon().await);
            }
            let container =
                async { if self.container { container::delete(containerd, &self.id).await } else { Ok(()) } };
            let snapshot = async {
                match &self.snapshot {
                    Some(snapshot) => snapshot.remove(containerd).await,
                    None => Ok(()),
                }
            };
            let (container, snapshot) = tokio::join!(container, snapshot);
            outcome = outcome.and(container).and(snapshot);
        }
        self.end_lease().await;
        Ok(outcome?)
    }
}

/// Lets the process run. It may run before we hear of it: the first signal that comes meanwhile is for it, and given back; the second one is
/// for us.
async fn start(task: &Task, signals: &mut Signals) -> Result<Option<Signal>, Error> {
    let mut started = std::pin::pin!(task.start());
    let mut early = None;
    loop {
        tokio::select! {
            done = &mut started => return Ok(done.map(|()| early)?),
            end = signals.end() => {
                let signal = end?;
                if early.replace(signal).is_some() {
                    return Err(Error::Interrupted);
                }
            }
        }
    }
}

async fn unpack(unpacker: &Unpacker, image: &LocalImage) -> Result<(), Error> {
    let progress = Progress::new();
    let mut parent = None;
    for layer in &image.layers {
        let _working = progress.work(&format!("unpacking {}", layer.blob.digest()));
        match unpacker.prepare(layer, parent, Labels::new()).await? {
            Prepared::Present => {}
            Prepared::Active { key, mounts } => unpacker.fill(layer, key, mounts).await?,
        }
        parent = Some(&layer.chain_id);
    }
    Ok(())
}

/// The image's labels (its config's and its record's), then the command line's.
fn container_labels(image: &RunImage, args: &Args) -> HashMap<String, String> {
    let config = image.config.config().as_ref();
    let mut all: HashMap<String, String> = HashMap::new();
    all.extend(config.and_then(|config| config.labels().clone()).unwrap_or_default());
    all.extend(image.record.labels.clone());
    // containerd's collector would read these on a container too.
    all.retain(|key, value| !key.starts_with("containerd.io/gc.") && labels::fits(key, value));
    let stop = config.and_then(|config| config.stop_signal().clone()).filter(|signal| !signal.is_empty());
    all.insert(STOP_SIGNAL.to_owned(), stop.unwrap_or_else(|| "SIGTERM".to_owned()));
    all.extend(args.labels());
    all
}

fn read_spec(path: &Path) -> Result<Vec<u8>, Error> {
    let what = || format!("cannot read {}", path.display());
    let bytes = std::fs::read(path).map_err(|source| Error::Io { what: what(), source })?;
    let spec: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|source| Error::Io { what: what(), source: source.into() })?;
    serde_json::to_vec(&spec).map_err(Error::command)
}

/// Whole or not at all: who waits for the file must not read half a number.
fn write_pid(path: &Path, pid: u32) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    write!(file, "{pid}")?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
