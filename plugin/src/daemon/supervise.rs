//! `--supervise`: a small process that starts the daemon, and starts it again when it dies. What the daemon had mounted is with the keeper.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::runtime;

use super::{DaemonError, End, Signals, options};
use crate::args::{Address, Args};
use crate::config::Config;
use crate::keeper::{Keeper, KeeperOptions};
use crate::snapshot::Tree;
use crate::telemetry;

/// Tells a daemon that it has a supervisor, which has to know what it was told to do.
const VARIABLE: &str = "SOCI_SNAPSHOTTER_SUPERVISED";
/// How a supervised daemon ends that left everything mounted for the next one.
const HANDED_OVER: i32 = 75;

/// How a daemon that died is started again.
#[derive(Clone, Copy, Debug)]
pub(super) struct SuperviseOptions {
    /// Before the first time; each further pause is twice as long.
    pub(super) first_pause: Duration,
    /// The longest.
    pub(super) longest_pause: Duration,
    /// One that lived this long did not die of its start: the pauses begin anew.
    pub(super) stable: Duration,
    /// To find the keeper.
    pub(super) keeper: KeeperOptions,
}

/// The exit status of a daemon that handed over.
pub(super) fn handed_over(failed: bool) -> i32 {
    match (failed, std::env::var_os(VARIABLE)) {
        (true, _) => 1,
        (false, Some(_)) => HANDED_OVER,
        (false, None) => 0,
    }
}

/// Runs the daemon until it is told to end.
pub(super) fn supervise(args: &Args, config: &Config) -> Result<ExitCode, DaemonError> {
    if args.address == Address::Inherited {
        let reason = "with fd:// the service manager is the supervisor";
        return Err(DaemonError::Supervise(io::Error::new(io::ErrorKind::InvalidInput, reason)));
    }
    let _ = telemetry::init(args.log_level, false, options::brake(config));
    let runtime =
        runtime::Builder::new_current_thread().enable_all().build().map_err(DaemonError::Runtime)?;
    runtime.block_on(run(&args.root, options::supervise_options(config))).map_err(DaemonError::Supervise)
}

async fn run(root: &Path, options: SuperviseOptions) -> io::Result<ExitCode> {
    // Remembered now: after an upgrade the new program is at this path.
    let program = std::env::current_exe()?;
    let line: Vec<OsString> = std::env::args_os().skip(1).filter(|argument| !asks_for_it(argument)).collect();
    let mut signals = Signals::new()?;
    let mut pause = options.first_pause;
    let mut lived = false;
    loop {
        let began = Instant::now();
        let mut child = Command::new(&program).args(&line).env(VARIABLE, "1").spawn()?;
        let (asked, status) = watch(&mut child, &mut signals).await?;
        let stable = began.elapsed() >= options.stable;
        lived |= stable;
        let handed_over = status.code() == Some(HANDED_OVER);
        // Success without that: somebody told the daemon itself to unmount everything.
        if asked || status.success() {
            return Ok(if handed_over { ExitCode::SUCCESS } else { exit_code(status) });
        }
        // An error that it could tell of in its first moments will be there the next time.
        if status.signal().is_none() && !handed_over && !lived {
            return Ok(exit_code(status));
        }
        if stable {
            pause = options.first_pause;
        }
        if handed_over {
            tracing::info!("the daemon handed over; starting the next one in {pause:?}");
        } else {
            tracing::error!(%status, "the daemon died; starting it again in {pause:?}");
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            end = signals.next() => match end {
                // What it left mounted stays for the next one.
                End::HandOver => return Ok(ExitCode::FAILURE),
                End::Unmount => {
                    unmount_all(root, options.keeper)?;
                    return Ok(ExitCode::SUCCESS);
                }
            },
        }
        pause = pause.saturating_mul(2).min(options.longest_pause);
    }
}

/// What the daemon would do, in its place: nothing stays. The keeper goes first: without it nobody waits for a mount that nobody serves.
fn unmount_all(root: &Path, keeper: KeeperOptions) -> io::Result<()> {
    Keeper::end_of(root, keeper)?;
    Tree::open(root)?.unmount_dead(&HashSet::new())?;
    Ok(())
}

/// Passes signals on until the daemon has ended. Whether there were any, and how it ended.
async fn watch(child: &mut Child, signals: &mut Signals) -> io::Result<(bool, ExitStatus)> {
    let mut asked = false;
    loop {
        let end = tokio::select! {
            status = child.wait() => return Ok((asked, status?)),
            end = signals.next() => end,
        };
        asked = true;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let signal = match end {
                End::HandOver => Signal::TERM,
                End::Unmount => Signal::INT,
            };
            kill_process(pid, signal)?;
        }
    }
}

fn asks_for_it(argument: &OsString) -> bool {
    argument == "--supervise" || argument == "-supervise"
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let signal = || status.signal().map(|signal| signal.saturating_add(128));
    let code = status.code().or_else(signal).and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
