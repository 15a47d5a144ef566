//! A program that runs beside a test, in a session of its own, with its output in a file; it never outlives its owner.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; standard output and standard error go to `log`, behind what is there.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Process {
        let open = || File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Process { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// What it was started as.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn output_file(&self) -> PathBuf {
        self.log.clone()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until `done`, and panics with the end of the output when the program ends first or `limit` is over.
    pub fn wait_until(&mut self, what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + limit;
        while !done() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{} ended ({status}) before {what}\n{}", self.name, tail(&self.output()));
            }
            assert!(
                Instant::now() < deadline,
                "{}: {what}: not in time\n{}",
                self.name,
                tail(&self.output())
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end; `None` when it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            kill_process(pid, signal).ok();
        }
    }

    /// Sends `signal`, waits 15 seconds, then kills.
    pub fn stop(&mut self, signal: Signal) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        self.signal(signal);
        let status = self.wait(Duration::from_secs(15));
        if status.is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(Signal::TERM);
    }
}

/// The last 30 lines.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// What a command that ended said.
#[derive(Debug)]
pub struct Said {
    /// The command line, for messages.
    pub line: String,
    /// Exit status 0?
    pub success: bool,
    /// Exit status, if it was no signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Panics unless the exit status is 0.
    #[track_caller]
    pub fn ok(self) -> Said {
        assert!(
            self.success,
            "`{}` failed ({:?})\n{}\n{}",
            self.line,
            self.code,
            tail(&self.out),
            tail(&self.err)
        );
        self
    }

    /// Panics unless it failed as house rules want it: exit status 1, and one line `soci: …` on standard error, which is returned.
    #[track_caller]
    pub fn one_line_error(self) -> String {
        assert_eq!(
            self.code,
            Some(1),
            "`{}` should have failed with 1\n{}\n{}",
            self.line,
            self.out,
            self.err
        );
        let error = self.err.trim_end().to_owned();
        assert!(
            error.starts_with("soci: ") && error.lines().count() == 1,
            "`{}`: stderr is\n{error}",
            self.line
        );
        error
    }
}

/// Runs a command to its end; `timeout 120` sees to it that there is one.
pub fn say(command: &mut Command) -> Said {
    let line = format!("{command:?}");
    let mut timed = Command::new("timeout");
    timed.arg("--kill-after=5").arg("120").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(key, value),
            None => timed.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        timed.current_dir(folder);
    }
    let output = timed.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    Said {
        line,
        success: output.status.success(),
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `program` with `arguments`; it has to succeed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    say(Command::new(program).args(arguments)).ok().out
}
