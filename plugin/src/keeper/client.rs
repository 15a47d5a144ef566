//! The daemon's side of a keeper process: finds it or starts it, and starts it again, with everything, should it die.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::wire::{self, MAX_DESCRIPTORS, Packet};
use super::{HoldError, HolderOptions, KeeperOptions, Name};

/// Name of the socket in the daemon's root.
pub(super) const SOCKET: &str = "keeper.sock";
/// Name of the hidden command that makes this program a keeper.
pub(crate) const COMMAND: &str = "keep-descriptors";
/// The first pause between two looks for a keeper while another one is ending; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(10);

/// A keeper process and what it was given.
#[derive(Debug)]
pub(super) struct Client {
    root: PathBuf,
    options: KeeperOptions,
    /// None after it was told to end.
    connection: Option<OwnedFd>,
    /// Where this process started it.
    child: Option<Child>,
    /// To give everything to another one.
    held: BTreeMap<Name, Vec<OwnedFd>>,
}

// === impl Client ===

impl Client {
    /// Connects to the keeper below `root`, which is started where there is none, and takes what it holds.
    pub(super) fn open(root: &Path, options: KeeperOptions) -> io::Result<Client> {
        let (connection, child) = connect(root, options, true)?;
        Client::taking(root, options, connection, child)
    }

    /// The same, of a keeper that is there.
    pub(super) fn find(root: &Path, options: KeeperOptions) -> Option<Client> {
        let (connection, child) = connect(root, options, false).ok()?;
        Client::taking(root, options, connection, child).ok()
    }

    fn taking(
        root: &Path,
        options: KeeperOptions,
        connection: OwnedFd,
        child: Option<Child>,
    ) -> io::Result<Client> {
        let mut held = BTreeMap::new();
        let mut after = None;
        while let (Packet::Held(name), descriptors) = ask(&connection, &Packet::Next(after), &[])? {
            after = Some(name.clone());
            held.insert(name, descriptors);
        }
        Ok(Client { root: root.to_owned(), options, connection: Some(connection), child, held })
    }

    pub(super) fn held(&self) -> &BTreeMap<Name, Vec<OwnedFd>> {
        &self.held
    }

    pub(super) fn hold(&mut self, name: Name, descriptors: Vec<OwnedFd>) -> Result<(), HoldError> {
        self.held.insert(name.clone(), descriptors);
        let result = self.hand_over(&name);
        if result.is_err() {
            self.held.remove(&name);
        }
        result
    }

    fn hand_over(&mut self, name: &Name) -> Result<(), HoldError> {
        let descriptors = self.held.get(name).map(Vec::as_slice).unwrap_or_default();
        match self.ask(&Packet::Hold(name.clone()), descriptors) {
            Ok(Packet::Done) => Ok(()),
            Ok(_) => Err(HoldError::Full),
            Err(_) => self.again().map(|_| ()).map_err(HoldError::System),
        }
    }

    pub(super) fn release(&mut self, name: &Name) -> io::Result<()> {
        if self.held.remove(name).is_none() {
            return Ok(());
        }
        match self.ask(&Packet::Release(name.clone()), &[]) {
            Ok(_) => Ok(()),
            Err(_) => self.again().map(|_| ()),
        }
    }

    /// Makes it let go of everything and waits until it has.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.held.clear();
        let result = self.ask(&Packet::End, &[]);
        if let Some(connection) = self.connection.take().filter(|_| result.is_ok()) {
            // It hangs up when it is gone.
            let _ = wire::receive(&connection);
        }
        if let Some(child) = self.child.take() {
            reap(child, self.options.answer);
        }
        result.map(|_| ())
    }

    /// The connection, for whoever wants to see it end; none after [`Client::end`].
    pub(super) fn watched(&self) -> Option<OwnedFd> {
        self.connection.as_ref()?.try_clone().ok()
    }

    /// Finds or starts another keeper, and gives it everything. False after [`Client::end`].
    pub(super) fn again(&mut self) -> io::Result<bool> {
        if self.connection.is_none() {
            return Ok(false);
        }
        let (connection, child) = connect(&self.root, self.options, true)?;
        for (name, descriptors) in &self.held {
            ask(&connection, &Packet::Hold(name.clone()), &borrowed(descriptors))?;
        }
        self.connection = Some(connection);
        if child.is_some()
            && let Some(old) = std::mem::replace(&mut self.child, child)
        {
            // Another one could take its place: it is gone, or about to be.
            reap(old, self.options.answer);
        }
        Ok(true)
    }

    fn ask(&self, packet: &Packet, descriptors: &[OwnedFd]) -> io::Result<Packet> {
        let connection = self.connection.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        ask(connection, packet, &borrowed(descriptors)).map(|(answer, _)| answer)
    }
}

/// Waits for one that is ending; one that does not is left alone.
fn reap(mut child: Child, patience: Duration) {
    let deadline = Instant::now() + patience;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
}

fn borrowed(descriptors: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().take(MAX_DESCRIPTORS).map(|descriptor| descriptor.as_fd()).collect()
}

fn ask(
    connection: &OwnedFd,
    packet: &Packet,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<(Packet, Vec<OwnedFd>)> {
    wire::send(connection, packet, descriptors)?;
    wire::receive(connection)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A keeper, and the child that it is if it was started here (which it is only if it may be).
fn connect(root: &Path, options: KeeperOptions, may_start: bool) -> io::Result<(OwnedFd, Option<Child>)> {
    // Through the directory's descriptor: an address has 108 bytes, a root may have more.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(root, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    let address = SocketAddrUnix::new(path.as_str())?;
    let deadline = Instant::now() + options.answer;
    let (mut child, mut pause) = (None::<Child>, PAUSE);
    loop {
        let error = match greet(&address, options.answer) {
            Ok(connection) => return Ok((connection, child)),
            Err(error) => error,
        };
        let ending = match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound if !may_start => return Err(error),
            // Left by one that was killed.
            io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path)?;
                false
            }
            io::ErrorKind::NotFound => false,
            // It is ending, and removes its file in a moment.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => true,
            _ => return Err(error),
        };
        if ending || child.is_some() {
            if Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(pause);
            pause = pause.saturating_mul(2);
        }
        if !ending && let Some(mut old) = child.replace(start(root, &address, options.holder)?) {
            let _ = old.try_wait();
        }
    }
}

fn greet(address: &SocketAddrUnix, patience: Duration) -> io::Result<OwnedFd> {
    let connection =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for side in [Timeout::Recv, Timeout::Send] {
        sockopt::set_socket_timeout(&connection, side, Some(patience))?;
    }
    rustix::net::connect(&connection, address)?;
    match ask(&connection, &Packet::Hello(wire::VERSION), &[])?.0 {
        Packet::Done => Ok(connection),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a keeper of another version is running")),
    }
}

/// Starts one. It listens before it runs: whoever looks from now on finds it.
fn start(root: &Path, address: &SocketAddrUnix, options: HolderOptions) -> io::Result<Child> {
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&listener, address)?;
    rustix::net::listen(&listener, i32::try_from(options.daemons).unwrap_or(i32::MAX))?;
    // No pipe, terminal or file of ours: whoever waits for their end waits for us, not for it.
    let mut command = Command::new("/proc/self/exe");
    command.arg("--root").arg(root).arg(COMMAND).args(options.arguments()).current_dir("/").env_clear();
    command.stdin(Stdio::from(listener)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_does_not_end_is_left_alone() {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let number = rustix::process::Pid::from_child(&child);
        reap(child, PAUSE);
        assert!(rustix::process::test_kill_process(number).is_ok());
        rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
        rustix::process::waitpid(Some(number), rustix::process::WaitOptions::empty()).unwrap();
    }
}
