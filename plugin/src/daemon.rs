//! The daemon from its command line to its end: validate, compose, serve, drain.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lazy_layer::{DropPolicy, FillOptions, LayerStore, StoreOptions};
use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

mod agreement;
mod client;
mod lazy;
mod metrics;
mod socket;
mod supervise;

use crate::adopt::{self, AdoptError};
use crate::args::{Args, Command, ConfigCommand};
use crate::config::{Config, LoadError, bytes, count, or};
use crate::credentials::Keyring;
use crate::fuse::FuseOptions;
use crate::grpc::{OwnService, SnapshotsService};
use crate::keeper::{self, Keeper};
use crate::kernel::{Kernel, KernelOptions, errand};
use crate::notify::notify;
use crate::resolve::{self, Registries, Resolver};
use crate::snapshot::overlay::OverlayOptions;
use crate::snapshot::{self, Slot, SnapshotError, Snapshotter};
use crate::telemetry;
use crate::unpack::{self, Unpacker};
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
        Some(Command::KeepDescriptors) => {
            return keeper::process::main(&args.root).map(|()| ExitCode::SUCCESS).map_err(DaemonError::Keep);
        }
        Some(Command::KernelErrand(errand)) => {
            return errand::main(errand).map(|()| ExitCode::SUCCESS).map_err(DaemonError::Errand);
        }
        None if args.supervise => return supervise::supervise(args),
        None => {}
    }
    // Before there are threads and descriptors of our own.
    let inherited = adopt::inherited()?;
    adopt::keep_to_ourselves();
    let config = Config::load(file, asked_for)?;
    // Only a program that embeds this one has a subscriber already.
    let _ = telemetry::init(args.log_level, config.fuse.log_fuse_operations);
    let runtime = Runtime::new().map_err(DaemonError::Runtime)?;
    let result = runtime.block_on(serve(args, &config, inherited));
    // What still runs waits for a registry, and nobody waits for it.
    runtime.shutdown_timeout(Duration::from_secs(1));
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
        tokio::spawn(metrics.serve(parts.snapshotter.clone()));
    }
    if let Some((containerd, address)) = parts.containerd.clone().zip(address) {
        let snapshotter = parts.snapshotter.clone();
        tokio::spawn(async move { agreement::reach(containerd, snapshotter, &address).await });
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
        parts.settle().await;
        if let Err(error) = &served {
            tracing::error!(error = telemetry::chain(error), "handing over after a failure");
        }
        tracing::info!("layers stay mounted for the next daemon");
        // Nothing may be dropped: whoever drops a request that waits answers it with an error.
        std::process::exit(i32::from(served.is_err()));
    }
    if tokio::time::timeout(config.drain_deadline(), parts.snapshotter.unmount_all()).await.is_err() {
        tracing::warn!("layers are still mounted; the next start clears them");
    }
    parts.settle().await;
    let keeper = parts.keeper.clone();
    let _ = tokio::task::spawn_blocking(move || keeper.end()).await;
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
    async fn settle(&self) {
        let layers = Arc::clone(&self.layers);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || layers.close()).await {
            tracing::warn!(
                error = telemetry::chain(&error),
                "layers will be checked again at the next start"
            );
        }
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

    let (keeper, kept) = Keeper::open(root, kept);
    let keyring = Arc::new(Keyring::kept(keeper.clone(), kept.secrets.as_deref()));
    let registries =
        Arc::new(Registries::new(client::client_options(config, &keyring), Arc::clone(&keyring)));
    let address = Path::new(&config.content_store.containerd_address);
    let channel =
        soci_store::connect(address, config.containerd_deadline()).map_err(DaemonError::Containerd)?;
    // The namespace is chosen anew for each request; this one only fills the place.
    let containerd = "default".parse().ok().map(|namespace| soci_store::Containerd::new(channel, namespace));
    let layers =
        LayerStore::open(layer_options(root, config), Handle::current()).map_err(DaemonError::Layers)?;
    let layers = Arc::new(layers);
    let resolver = Resolver::new(
        resolve_options(config),
        Arc::clone(&registries),
        containerd.clone(),
        Arc::clone(&layers),
    );
    let overlay = OverlayOptions::of_this_system();
    let unpacker = Arc::new(Unpacker::new(
        unpack::Options {
            at_once: count(config.limits.unpacks),
            stall: config.unpack_stall(),
            userxattr: overlay.userxattr,
        },
        Arc::clone(&resolver),
    ));
    let kernel = kernel_front_end(root, config, overlay);
    let backend = LazyBackend {
        resolver,
        unpacker,
        mounting: Mounting {
            fuse: FuseOptions {
                threads: count(config.fuse.threads),
                read_ahead_kib: kib(config.fuse.read_ahead_kib),
                layer_file: kernel.is_some(),
            },
            mount_deadline: config.mount_deadline(),
            kernel,
            attach_deadline: config.attach_deadline(),
        },
        keeper: keeper.clone(),
        kept: Mutex::new((0..).map(Slot).zip(kept.mounts).collect()),
    };
    let options = snapshot::Options {
        min_layer_size: u64::try_from(config.snapshotter.min_layer_size).unwrap_or(0),
        restores: count(config.limits.restores),
        restore_deadline: config.resolve_deadline(),
        overlay,
    };
    let snapshotter = Snapshotter::open(root, options, Arc::new(backend)).map_err(DaemonError::Snapshots)?;
    Ok(Parts { snapshotter, keyring, registries, layers, containerd, keeper })
}

/// Whether layers are mounted above FUSE; why not is said here, once.
fn kernel_front_end(root: &Path, config: &Config, overlay: OverlayOptions) -> Option<Kernel> {
    if config.fuse.kernel != "auto" {
        return None;
    }
    if overlay.userxattr {
        tracing::info!("layers are mounted through FUSE alone: loop devices belong to the whole machine");
        return None;
    }
    let options = KernelOptions {
        read_ahead_kib: kib(config.fuse.read_ahead_kib),
        local_read_ahead_kib: kib(config.fuse.local_read_ahead_kib),
    };
    match Kernel::probe(root, options) {
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

fn kib(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn layer_options(root: &Path, config: &Config) -> StoreOptions {
    let mut options = StoreOptions::new(root);
    options.max_disk = config.max_disk();
    options.min_free = config.min_free();
    if config.limits.inflate_threads > 0 {
        options.inflate_threads = count(config.limits.inflate_threads);
    }
    options.read_deadline = config.read_deadline();
    let limits = &config.limits;
    options.max_fetches = count(limits.fetches).max(1);
    options.max_connections_per_host = count(limits.connections_per_host).max(1);
    options.max_range = bytes(&limits.range_bytes);
    options.max_read_ahead = bytes(&limits.read_ahead_bytes);
    options.max_ahead_while_waiting = bytes(&limits.ahead_while_waiting_bytes);
    options.max_bytes_in_flight = bytes(&limits.in_flight_bytes).max(1);
    options.max_span = bytes(&limits.span_bytes);
    options.max_waiters = count(limits.waiting_reads).max(1);
    options.attempt_timeout = Duration::from_secs(count(config.deadlines.fetch_stall_sec) as u64);
    let blob = &config.blob;
    options.first_backoff = Duration::from_millis(count(or(blob.min_wait_msec, 50)) as u64);
    options.max_backoff = Duration::from_millis(count(or(blob.max_wait_msec, 5_000)) as u64);
    options.max_retries = (blob.max_retries != 0).then(|| u32::try_from(blob.max_retries).unwrap_or(0));
    options.fill = fill_options(config);
    options.lock_timeout = config.mount_deadline();
    // Upstream counts what comes after the first download.
    let again = config.blob.max_span_verification_retries;
    if again > 0 {
        options.span_attempts = u32::try_from(again).unwrap_or(u32::MAX).saturating_add(1);
    }
    options
}

fn fill_options(config: &Config) -> FillOptions {
    let keys = &config.background_fetch;
    let millis = |value| Duration::from_millis(count(value) as u64);
    FillOptions {
        disable: keys.disable,
        silence: millis(keys.silence_period_msec),
        period: millis(keys.fetch_period_msec),
        bytes_per_second: NonZeroU64::new(bytes(&keys.bytes_per_sec)),
        max_queue: usize::try_from(keys.max_queue_size).unwrap_or(usize::MAX),
        drop: if keys.drop_policy == "oldest" { DropPolicy::Oldest } else { DropPolicy::Newest },
    }
}

fn resolve_options(config: &Config) -> resolve::Options {
    resolve::Options {
        v1: config.soci_v1.enable,
        v2: config.soci_v2.enable,
        resolve_deadline: config.resolve_deadline(),
        mount_deadline: config.mount_deadline(),
        containerd_deadline: config.containerd_deadline(),
        negative_ttl: config.negative_ttl(),
        found_ttl: config.found_ttl(),
        images: count(or(config.general.resolve_result_entry, 256)),
        max_ztoc_bytes: config.max_ztoc_bytes(),
        layers_ahead: count(config.limits.layers_ahead),
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
