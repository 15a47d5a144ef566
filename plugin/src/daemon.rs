//! The daemon from its command line to its end: validate, compose, serve, drain.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lazy_layer::LayerStore;
use parking_lot::Mutex;
use tokio::runtime::{self, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

mod agreement;
mod client;
mod lazy;
mod metrics;
mod options;
mod socket;
mod supervise;

use crate::adopt::{self, AdoptError};
use crate::args::{Args, Command, ConfigCommand};
use crate::config::{Config, LoadError, count};
use crate::credentials::Keyring;
use crate::grpc::{OwnService, SnapshotsService};
use crate::keeper::{self, Keeper};
use crate::kernel::Kernel;
use crate::kernel::errand::{self, Errands};
use crate::notify::notify;
use crate::resolve::{Registries, Resolver};
use crate::snapshot::overlay::OverlayOptions;
use crate::snapshot::{self, Slot, SnapshotError, Snapshotter};
use crate::telemetry;
use crate::unpack::Unpacker;
use lazy::{LazyBackend, Mounting};
use metrics::Endpoint;
use socket::Socket;
pub use socket::SocketError;

/// What ends the program before it serves, or while it does.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Something that the system refused.
    #[error("failed to {operation} {}", path.display())]
    System {
        /// What.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root has what the Go program writes.
    #[error(
        "{} was written by the Go soci-snapshotter, whose snapshots this one cannot use. Remove its images (`ctr images rm` for those pulled with \
         it) while it runs, stop it, and move the directory away; or give this daemon another --root",
        .0.display()
    )]
    ForeignRoot(PathBuf),
    /// A later version has made mounts that this one cannot go on with.
    #[error(
        "{0} mounts that containers use were made by a later version of this program, which has to be started to go on with them; this one would end them"
    )]
    LaterMounts(usize),
    /// The layer store.
    #[error("failed to open the layer store")]
    Layers(#[source] lazy_layer::OpenError),
    /// The snapshots.
    #[error("failed to open the snapshots")]
    Snapshots(#[source] SnapshotError),
    /// containerd's address.
    #[error("content_store.containerd_address cannot be used")]
    Containerd(#[source] soci_store::ConnectError),
    /// The runtime or the signals.
    #[error("failed to start")]
    Runtime(#[source] io::Error),
    /// overlayfs does not work below the root.
    #[error("overlayfs does not work below {} (skip_check_snapshotter_supported starts the daemon all the same)", path.display())]
    Overlay {
        /// The root.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The metrics' address.
    #[error("failed to serve metrics on {address}")]
    Metrics {
        /// As it is in the configuration.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// What the service manager passed.
    #[error("failed to take what the service manager passed")]
    Adopt(#[from] AdoptError),
    /// Supervising the daemon failed.
    #[error("failed to supervise the daemon")]
    Supervise(#[source] io::Error),
    /// The keeper process could not begin.
    #[error("failed to keep descriptors")]
    Keep(#[source] io::Error),
    /// Nobody heard what came of an errand.
    #[error("failed to say what was done")]
    Errand(#[source] io::Error),
    /// Serving failed.
    #[error("failed to serve")]
    Serve(#[source] tonic::transport::Error),
}

/// Runs the program and returns how it ended. Errors go to stderr as plain text.
pub fn main(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::parse_from_command_line(line) {
        Ok(args) => args,
        Err(error) => {
            // Help and the version go to stdout and are no failure.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "soci-snapshotter-grpc: {}", telemetry::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, DaemonError> {
    let (file, asked_for) = args.config_file();
    match &args.command {
        Some(Command::Config(ConfigCommand::Default)) => return print(&Config::default()),
        Some(Command::Config(ConfigCommand::Dump)) => return print(&Config::load(file, asked_for)?),
        Some(Command::KeepDescriptors(options)) => {
            return keeper::process::main(&args.root, *options)
                .map(|()| ExitCode::SUCCESS)
                .map_err(DaemonError::Keep);
        }
        Some(Command::KernelErrand(errand)) => {
            return errand::main(errand).map(|()| ExitCode::SUCCESS).map_err(DaemonError::Errand);
        }
        None if args.supervise => return supervise::supervise(args, &Config::load(file, asked_for)?),
        None => {}
    }
    // Before there are threads and descriptors of our own.
    let inherited = adopt::inherited()?;
    adopt::keep_to_ourselves();
    let config = Config::load(file, asked_for)?;
    // Only a program that embeds this one has a subscriber already.
    let _ = telemetry::init(args.log_level, config.fuse.log_fuse_operations, options::brake(&config));
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(count(config.limits.blocking_threads).max(1))
        .build()
        .map_err(DaemonError::Runtime)?;
    let result = runtime.block_on(serve(args, &config, inherited));
    // What still runs waits for a registry, and nobody waits for it.
    runtime.shutdown_timeout(config.release_patience());
    result.map(|()| ExitCode::SUCCESS)
}

fn print(config: &Config) -> Result<ExitCode, DaemonError> {
    // A reader that went away is no failure.
    let _ = io::stdout().write_all(config.to_toml(false).as_bytes());
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &Args, config: &Config, inherited: Vec<(String, OwnedFd)>) -> Result<(), DaemonError> {
    let mut signals = Signals::new().map_err(DaemonError::Runtime)?;
    let (kept, sockets): (Vec<_>, Vec<_>) = inherited.into_iter().partition(|(name, _)| Keeper::owns(name));
    let socket = Socket::open(&args.address, sockets.into_iter().map(|(_, socket)| socket).collect())?;
    let remove = socket.remove_later();
    let address = socket.address();
    if config.general.disable_verification {
        tracing::warn!("disable_verification is ignored: what a container reads is always verified");
    }
    let parts = compose(&args.root, config, kept)?;
    let metrics = open_metrics(config).await?;
    let restored = parts.snapshotter.restore().await.map_err(DaemonError::Snapshots)?;
    if restored != snapshot::Restored::default() {
        tracing::info!(
            resumed = restored.resumed,
            cleared = restored.cleared,
            mounted = restored.mounted,
            missing = restored.missing,
            "remote snapshots restored"
        );
    }

    socket.listener.set_nonblocking(true).map_err(DaemonError::Runtime)?;
    let listener = tokio::net::UnixListener::from_std(socket.listener).map_err(DaemonError::Runtime)?;
    let router = crate::grpc::router(
        count(config.limits.calls),
        SnapshotsService::new(parts.snapshotter.clone()),
        OwnService::new(parts.snapshotter.clone(), Arc::clone(&parts.keyring), Arc::clone(&parts.registries)),
    );
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut server =
        tokio::spawn(router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            // A sender that is gone means the same.
            let _ = stopped.await;
        }));
    if let Some(metrics) = metrics {
        tokio::spawn(metrics.serve(parts.snapshotter.clone(), options::metrics_options(config)));
    }
    if let Some((containerd, address)) = parts.containerd.clone().zip(address) {
        let snapshotter = parts.snapshotter.clone();
        let options = options::agreement_options(config);
        tokio::spawn(async move { agreement::reach(containerd, snapshotter, &address, options).await });
    }
    notify("READY=1");
    tracing::info!(version = env!("CARGO_PKG_VERSION"), root = %args.root.display(), "soci-snapshotter-grpc successfully started");

    let (end, served) = tokio::select! {
        end = signals.next() => {
            tracing::info!(signal = end.signal(), "received signal; shutting down");
            (end, Ok(()))
        }
        ended = &mut server => match ended {
            Ok(Err(error)) => (End::HandOver, Err(DaemonError::Serve(error))),
            Ok(Ok(())) | Err(_) => (End::HandOver, Ok(())),
        },
    };
    notify("STOPPING=1");
    drop(remove);
    let _ = stop.send(());
    let drained = tokio::time::timeout(config.drain_deadline(), async {
        if !server.is_finished() {
            let _ = server.await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!("requests are still under way; going all the same");
    }
    if end == End::HandOver && parts.keeper.keeps() {
        parts.settle(config.drain_deadline()).await;
        if let Err(error) = &served {
            tracing::error!(error = telemetry::chain(error), "handing over after a failure");
        }
        tracing::info!("layers stay mounted for the next daemon");
        // Nothing may be dropped: whoever drops a request that waits answers it with an error.
        std::process::exit(supervise::handed_over(served.is_err()));
    }
    if tokio::time::timeout(config.drain_deadline(), parts.snapshotter.unmount_all()).await.is_err() {
        tracing::warn!("layers are still mounted; the next start clears them");
    }
    parts.settle(config.drain_deadline()).await;
    let keeper = parts.keeper.clone();
    let ended = tokio::task::spawn_blocking(move || keeper.end());
    if tokio::time::timeout(config.drain_deadline(), ended).await.is_err() {
        tracing::warn!("the keeper does not end; going all the same");
    }
    served
}

/// None where nobody asked for metrics.
async fn open_metrics(config: &Config) -> Result<Option<Endpoint>, DaemonError> {
    let (network, address) = (&config.general.metrics_network, &config.general.metrics_address);
    if config.general.no_prometheus || address.is_empty() {
        return Ok(None);
    }
    let opened = Endpoint::open(network, address).await;
    opened.map(Some).map_err(|source| DaemonError::Metrics { address: address.clone(), source })
}

/// What a daemon is made of.
struct Parts {
    snapshotter: Snapshotter,
    keyring: Arc<Keyring>,
    registries: Arc<Registries>,
    layers: Arc<LayerStore>,
    containerd: Option<soci_store::Containerd>,
    keeper: Keeper,
}

impl Parts {
    /// Brings layer files to the disk, so that the next start need not check them.
    async fn settle(&self, deadline: Duration) {
        let layers = Arc::clone(&self.layers);
        let closed = tokio::time::timeout(deadline, tokio::task::spawn_blocking(move || layers.close()));
        let error = match closed.await {
            Ok(Ok(Err(error))) => telemetry::chain(&error),
            Ok(Ok(Ok(())) | Err(_)) => return,
            Err(_) => format!("they are not on the disk after {deadline:?}"),
        };
        tracing::warn!(error, "layers will be checked again at the next start");
    }
}

/// `kept` is what the service manager kept of an earlier life.
fn compose(root: &Path, config: &Config, kept: Vec<(String, OwnedFd)>) -> Result<Parts, DaemonError> {
    let system = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| DaemonError::System { operation, path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(system("make", root))?;
    let root = &root.canonicalize().map_err(system("find", root))?;
    if root.join("snapshotter/metadata.db").exists() {
        return Err(DaemonError::ForeignRoot(root.clone()));
    }
    if !config.general.skip_check_snapshotter_supported {
        check_overlay(root).map_err(|source| DaemonError::Overlay { path: root.clone(), source })?;
    }
    raise_descriptor_limit();

    let (keeper, kept) = Keeper::open(root, kept, options::keeper_options(config));
    if kept.later > 0 {
        return Err(DaemonError::LaterMounts(kept.later));
    }
    let keyring =
        Arc::new(Keyring::kept(count(config.limits.credentials), keeper.clone(), kept.secrets.as_deref()));
    let registries = Arc::new(Registries::new(
        client::client_options(config, &keyring),
        options::greet_options(config),
        Arc::clone(&keyring),
    ));
    let address = Path::new(&config.content_store.containerd_address);
    let channel =
        soci_store::connect(address, config.containerd_deadline()).map_err(DaemonError::Containerd)?;
    // The namespace is chosen anew for each request; this one only fills the place.
    let containerd = "default".parse().ok().map(|namespace| soci_store::Containerd::new(channel, namespace));
    let layers = LayerStore::open(options::layer_options(root, config), Handle::current())
        .map_err(DaemonError::Layers)?;
    let layers = Arc::new(layers);
    let resolver = Resolver::new(
        options::resolve_options(config),
        Arc::clone(&registries),
        containerd.clone(),
        Arc::clone(&layers),
    );
    let overlay = OverlayOptions::of_this_system();
    let unpacker = Arc::new(Unpacker::new(options::unpack_options(config, overlay), Arc::clone(&resolver)));
    let errands = Errands::new(options::errand_options(config), Handle::current());
    let kernel = kernel_front_end(root, config, overlay, &errands);
    let backend = LazyBackend {
        resolver,
        unpacker,
        mounting: Mounting {
            fuse: options::fuse_options(config, kernel.is_some()),
            mount_deadline: config.mount_deadline(),
            kernel,
            attach_deadline: config.attach_deadline(),
            shared_cache: config.shared_cache(),
        },
        errands,
        keeper: keeper.clone(),
        kept: Mutex::new((0..).map(Slot).zip(kept.mounts).collect()),
    };
    let options = options::snapshot_options(config, overlay);
    let snapshotter = Snapshotter::open(root, options, Arc::new(backend)).map_err(DaemonError::Snapshots)?;
    Ok(Parts { snapshotter, keyring, registries, layers, containerd, keeper })
}

/// Whether layers are mounted above FUSE; why not is said here, once.
fn kernel_front_end(
    root: &Path,
    config: &Config,
    overlay: OverlayOptions,
    errands: &Errands,
) -> Option<Kernel> {
    if config.fuse.kernel != "auto" {
        return None;
    }
    if overlay.userxattr {
        tracing::info!("layers are mounted through FUSE alone: loop devices belong to the whole machine");
        return None;
    }
    match Kernel::probe(root, options::kernel_options(config), errands.clone()) {
        Ok(kernel) => {
            tracing::info!("layers are mounted through FUSE, and by the kernel's EROFS above it");
            Some(kernel)
        }
        Err(error) => {
            tracing::info!(error = telemetry::chain(&error), "layers are mounted through FUSE alone");
            None
        }
    }
}

/// Hundreds of mounts, each with its descriptors, are normal. What the system does not grant shows when it is needed.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Makes an overlay below the root, as containerd will.
fn check_overlay(root: &Path) -> io::Result<()> {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let place = root.join("overlay-check");
    // Of one that was killed.
    let _ = unmount(place.join("merged"), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _ = std::fs::remove_dir_all(&place);
    for name in ["lower", "upper", "work", "merged"] {
        DirBuilder::new().recursive(true).mode(0o700).create(place.join(name))?;
    }
    let shown = place.display();
    let options = format!("lowerdir={shown}/lower,upperdir={shown}/upper,workdir={shown}/work");
    let options = std::ffi::CString::new(options)?;
    let mounted =
        mount("overlay", place.join("merged"), "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .map_err(io::Error::from)
            .and_then(|()| Ok(unmount(place.join("merged"), UnmountFlags::DETACH)?));
    let removed = std::fs::remove_dir_all(&place);
    mounted.and(removed)
}

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything stays mounted, for a successor. Without a keeper that is not possible, and everything is unmounted.
    HandOver,
    /// Nothing is left.
    Unmount,
}

impl End {
    /// What asks for it.
    fn signal(self) -> &'static str {
        match self {
            End::HandOver => "terminated",
            End::Unmount => "interrupt",
        }
    }
}

/// What makes the daemon stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

// === impl Signals ===

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> End {
        tokio::select! {
            _ = self.interrupt.recv() => End::Unmount,
            _ = self.terminate.recv() => End::HandOver,
        }
    }
}
