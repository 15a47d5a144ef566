//! The keeper as a process: one thread, no state but descriptors by name. See [`wire`](super::wire) for what it understands.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::SocketFlags;
use rustix::net::sockopt::{self, Timeout};
use rustix::process::DumpableBehavior;

use super::Name;
use super::client::SOCKET;
use super::wire::{self, Packet};

/// What a keeper process may hold, and how long it waits. It reads no configuration: the daemon that starts it says so on its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct HolderOptions {
    /// Names that are held at most.
    #[arg(long)]
    pub names: usize,
    /// Daemons that are connected at the same time: the one that is there, and one that comes.
    #[arg(long)]
    pub daemons: usize,
    /// Seconds that one which does not take its answer is waited for.
    #[arg(long)]
    pub send_sec: u64,
    /// Seconds that a daemon is waited for while nothing is held: whoever started it comes; one who does not come within this time has died.
    #[arg(long)]
    pub alone_sec: u64,
}

/// Runs the keeper until it holds nothing and nobody is connected. The listening socket is standard input, its file below `root` is removed
/// at the end.
///
/// # Errors
/// The system's, at the beginning only.
pub fn main(root: &Path, options: HolderOptions) -> io::Result<()> {
    // A terminal's and a service manager's signals to a daemon's group are not for us. Fails only where this has happened already.
    let _ = rustix::process::setsid();
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"soci-keeper")?;
    let input = io::stdin();
    if !sockopt::socket_acceptconn(&input)? {
        return Err(io::Error::other("standard input is no listening socket"));
    }
    let peers = serve(input.as_fd(), options);
    // The socket is still open: who finds the file a moment before it goes connects, and learns from the connection's end to look again.
    let _ = std::fs::remove_file(root.join(SOCKET));
    drop(peers);
    Ok(())
}

/// What is held, by name.
#[derive(Debug)]
struct Held {
    max: usize,
    named: BTreeMap<Name, Vec<OwnedFd>>,
}

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Stay,
    HangUp,
    End,
}

/// Returns the connections that there still are.
pub(super) fn serve(listener: BorrowedFd<'_>, options: HolderOptions) -> Vec<OwnedFd> {
    let mut held = Held { max: options.names, named: BTreeMap::new() };
    let mut peers: Vec<OwnedFd> = Vec::new();
    let mut waited = false;
    loop {
        let more = if peers.len() < options.daemons { PollFlags::IN } else { PollFlags::empty() };
        let mut polled = vec![PollFd::from_borrowed_fd(listener, more)];
        polled.extend(peers.iter().map(|peer| PollFd::new(peer, PollFlags::IN)));
        let alone = held.named.is_empty() && peers.is_empty();
        if alone && waited {
            return peers;
        }
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(options.alone_sec).unwrap_or(i64::MAX),
            tv_nsec: 0,
        };
        match rustix::event::poll(&mut polled, alone.then_some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return peers,
        }
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        drop(polled);
        waited = true;
        let mut end = false;
        let mut ready_peers = ready.iter().skip(1);
        peers.retain(|peer| {
            let next = if ready_peers.next() == Some(&true) { held.answer(peer) } else { Next::Stay };
            end |= next == Next::End;
            next != Next::HangUp
        });
        if end {
            return peers;
        }
        if ready.first() == Some(&true) {
            peers.extend(accept(listener, Duration::from_secs(options.send_sec)));
        }
    }
}

/// A connection of somebody who may have the descriptors: root.
fn accept(listener: BorrowedFd<'_>, patience: Duration) -> Option<OwnedFd> {
    let peer = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).ok()?;
    for side in [Timeout::Recv, Timeout::Send] {
        sockopt::set_socket_timeout(&peer, side, Some(patience)).ok()?;
    }
    sockopt::socket_peercred(&peer).is_ok_and(|peer| peer.uid.is_root()).then_some(peer)
}

// === impl HolderOptions ===

impl HolderOptions {
    /// As a command line has them.
    pub(super) fn arguments(&self) -> [String; 4] {
        let HolderOptions { names, daemons, send_sec, alone_sec } = self;
        [
            format!("--names={names}"),
            format!("--daemons={daemons}"),
            format!("--send-sec={send_sec}"),
            format!("--alone-sec={alone_sec}"),
        ]
    }
}

// === impl Held ===

impl Held {
    fn answer(&mut self, peer: &OwnedFd) -> Next {
        let Ok(Some((packet, descriptors))) = wire::receive(peer) else { return Next::HangUp };
        let (answer, next) = match packet {
            Packet::Hello(wire::VERSION) => (Packet::Done, Next::Stay),
            Packet::Hold(_) if descriptors.is_empty() => (Packet::Refused, Next::Stay),
            Packet::Hold(name) if self.named.len() < self.max || self.named.contains_key(&name) => {
                self.named.insert(name, descriptors);
                (Packet::Done, Next::Stay)
            }
            Packet::Hello(_) | Packet::Hold(_) => (Packet::Refused, Next::Stay),
            Packet::Release(name) => {
                self.named.remove(&name);
                (Packet::Done, Next::Stay)
            }
            Packet::Next(after) => return self.show(peer, after),
            Packet::End => {
                self.named.clear();
                (Packet::Done, Next::End)
            }
            Packet::Done | Packet::Refused | Packet::Held(_) => return Next::HangUp,
        };
        match wire::send(peer, &answer, &[]) {
            Ok(()) => next,
            Err(_) if next == Next::End => next,
            Err(_) => Next::HangUp,
        }
    }

    fn show(&self, peer: &OwnedFd, after: Option<Name>) -> Next {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sent = match self.named.range((from, Bound::Unbounded)).next() {
            Some((name, descriptors)) => {
                let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                wire::send(peer, &Packet::Held(name.clone()), &descriptors)
            }
            None => wire::send(peer, &Packet::Done, &[]),
        };
        if sent.is_ok() { Next::Stay } else { Next::HangUp }
    }
}
