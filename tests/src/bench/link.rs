//! A link that is longer and narrower than loopback, in user space: a TCP forwarder in front of a server.
//!
//! * **Length.** Every byte, and the end of a stream, arrives half a round trip after it was sent, in both directions. The kernel answers the
//!   client's SYN at once, so that `connect` returns a round trip too early; the client's first bytes wait that much longer instead. A TLS
//!   handshake thereby costs what it costs on a real link of that length.
//! * **Width.** What the server sends, over all connections together, passes one line of a fixed rate, a piece at a time, each connection in
//!   its turn. What clients send (requests) is not slowed down.
//! * **Back-pressure.** A connection has at most one bandwidth-delay product under way, and the sockets' own buffers are small: a server cannot run ahead
//!   of a client that does not read.
//!
//! Not imitated: slow start, losses, jitter.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

/// Bytes that pass the line at a time: the turn of a connection.
const PIECE: usize = 32 * 1024;
/// How far ahead of the line's own time a connection may queue: hides that a thread wakes late.
const AHEAD: Duration = Duration::from_millis(3);
/// Buffers of the sockets, which the kernel would otherwise let grow to megabytes.
const SOCKET_BUFFER: usize = 128 * 1024;

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

/// What the link is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// From one end to the other and back.
    pub round_trip: Duration,
    /// Of everything towards the clients.
    pub rate: Rate,
}

/// What has passed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes towards the clients, TLS and HTTP included.
    pub down: u64,
    /// Bytes from the clients.
    pub up: u64,
    /// Connections made.
    pub connections: u64,
}

/// A link that forwards.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    down: AtomicU64,
    up: AtomicU64,
    connections: AtomicU64,
}

/// The narrow part: it is free again when everything that was let onto it has left.
#[derive(Debug)]
struct Line {
    rate: Rate,
    free: Mutex<Instant>,
}

/// One direction of a connection: what has been read at one end and is not written at the other.
#[derive(Debug)]
struct Pipe {
    window: usize,
    state: Mutex<PipeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PipeState {
    parcels: VecDeque<Parcel>,
    bytes: usize,
    broken: bool,
}

/// Bytes and when they arrive; none at all are the end of the stream.
#[derive(Debug, PartialEq, Eq)]
struct Parcel {
    due: Instant,
    bytes: Vec<u8>,
}

/// What a direction does to the bytes.
#[derive(Debug, Clone)]
struct Direction {
    /// The line that they pass, if it is the narrow direction.
    line: Option<Arc<Line>>,
    /// Half a round trip.
    delay: Duration,
    /// Nothing sets out before this.
    earliest: Instant,
    window: usize,
    count: fn(&Counts) -> &AtomicU64,
}

// === impl Rate ===

impl Rate {
    /// From megabits (10⁶ bits) per second; at least one.
    pub fn from_megabits(megabits: u64) -> Rate {
        Rate(megabits.max(1) * 125_000)
    }

    /// How long that many bytes take.
    pub fn time_of(self, bytes: usize) -> Duration {
        Duration::from_nanos((bytes as u128 * 1_000_000_000 / u128::from(self.0)) as u64)
    }

    /// How many bytes pass in that time.
    pub fn bytes_in(self, time: Duration) -> usize {
        (u128::from(self.0) * time.as_nanos() / 1_000_000_000) as usize
    }
}

// === impl Link ===

impl Link {
    /// Listens on `listen` and forwards every connection from this machine to `target`, until the process ends.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(listen: SocketAddr, target: SocketAddr, shape: Shape) -> io::Result<Link> {
        let listener = TcpListener::bind(listen)?;
        let link = Link { address: listener.local_addr()?, counts: Arc::default() };
        let counts = Arc::clone(&link.counts);
        let line = Arc::new(Line { rate: shape.rate, free: Mutex::new(Instant::now()) });
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let began = Instant::now();
                let joined = client.and_then(|client| {
                    if client.peer_addr()?.ip() != client.local_addr()?.ip() {
                        return Err(io::Error::other("a client on another machine is not served"));
                    }
                    let server = TcpStream::connect(target)?;
                    join(client, server, shape, &line, &counts, began)
                });
                match joined {
                    Ok(()) => _ = counts.connections.fetch_add(1, Ordering::Relaxed),
                    Err(error) => eprintln!("link: {error}"),
                }
            }
        });
        Ok(link)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has passed so far.
    pub fn totals(&self) -> Totals {
        Totals {
            down: self.counts.down.load(Ordering::Relaxed),
            up: self.counts.up.load(Ordering::Relaxed),
            connections: self.counts.connections.load(Ordering::Relaxed),
        }
    }
}

/// Forwards in both directions, with two threads for each.
fn join(
    client: TcpStream,
    server: TcpStream,
    shape: Shape,
    line: &Arc<Line>,
    counts: &Arc<Counts>,
    began: Instant,
) -> io::Result<()> {
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
        sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER)?;
        sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER)?;
    }
    let delay = shape.round_trip / 2;
    let window = shape.rate.bytes_in(shape.round_trip + AHEAD).max(4 * PIECE);
    let up = Direction {
        line: None,
        delay,
        earliest: began + shape.round_trip,
        window,
        count: |counts| &counts.up,
    };
    let down = Direction {
        line: Some(Arc::clone(line)),
        delay,
        earliest: began,
        window,
        count: |counts| &counts.down,
    };
    forward(client.try_clone()?, server.try_clone()?, up, Arc::clone(counts));
    forward(server, client, down, Arc::clone(counts));
    Ok(())
}

fn forward(from: TcpStream, to: TcpStream, direction: Direction, counts: Arc<Counts>) {
    let pipe = Arc::new(Pipe::new(direction.window));
    let (filled, source) = (Arc::clone(&pipe), from.try_clone());
    std::thread::spawn(move || fill(from, &filled, &direction, &counts));
    std::thread::spawn(move || {
        drain(&pipe, to);
        // Nobody takes what comes: the sender is told.
        if let Ok(source) = source {
            source.shutdown(Shutdown::Read).ok();
        }
    });
}

/// Reads until the end, one piece a turn.
fn fill(mut from: TcpStream, pipe: &Pipe, direction: &Direction, counts: &Counts) {
    let mut buffer = vec![0; PIECE];
    while pipe.wait_for_room() {
        // A connection that was reset has ended, too.
        let read = from.read(&mut buffer).unwrap_or(0);
        let now = Instant::now().max(direction.earliest);
        let left = direction.line.as_ref().map_or(now, |line| line.pass(now, read));
        pipe.push(Parcel { due: left + direction.delay, bytes: buffer[..read].to_vec() });
        if read == 0 {
            return;
        }
        (direction.count)(counts).fetch_add(read as u64, Ordering::Relaxed);
        sleep_until(left.checked_sub(AHEAD).unwrap_or(now));
    }
}

/// Writes everything when it is due.
fn drain(pipe: &Pipe, mut to: TcpStream) {
    while let Some(parcel) = pipe.next() {
        sleep_until(parcel.due);
        if parcel.bytes.is_empty() || to.write_all(&parcel.bytes).is_err() {
            break;
        }
        pipe.written(parcel.bytes.len());
    }
    pipe.give_up();
    to.shutdown(Shutdown::Write).ok();
}

fn sleep_until(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}

// === impl Line ===

impl Line {
    /// Lets bytes onto the line at `now`, behind those that are on it; says when they have left it.
    fn pass(&self, now: Instant, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap();
        *free = (*free).max(now) + self.rate.time_of(bytes);
        *free
    }
}

// === impl Pipe ===

impl Pipe {
    fn new(window: usize) -> Pipe {
        Pipe { window, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until a piece fits; false when nobody takes anything out any more.
    fn wait_for_room(&self) -> bool {
        let full = |state: &mut PipeState| !state.broken && state.bytes + PIECE > self.window;
        !self.changed.wait_while(self.state.lock().unwrap(), full).unwrap().broken
    }

    fn push(&self, parcel: Parcel) {
        let mut state = self.state.lock().unwrap();
        state.bytes += parcel.bytes.len();
        state.parcels.push_back(parcel);
        self.changed.notify_all();
    }

    /// The next parcel, due or not; what it weighs stays counted until `written`.
    fn next(&self) -> Option<Parcel> {
        let empty = |state: &mut PipeState| !state.broken && state.parcels.is_empty();
        self.changed.wait_while(self.state.lock().unwrap(), empty).unwrap().parcels.pop_front()
    }

    fn written(&self, bytes: usize) {
        self.state.lock().unwrap().bytes -= bytes;
        self.changed.notify_all();
    }

    fn give_up(&self) {
        self.state.lock().unwrap().broken = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const FAST: Shape = Shape { round_trip: Duration::from_millis(2), rate: Rate(50_000_000) };

    /// Bytes that tell their place and their stream.
    fn pattern(stream: u8, length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 7 % 251) as u8 ^ stream).collect()
    }

    /// A server that reads one byte, answers it with that stream's pattern, closes, and reports whether all of it could be written.
    fn server(length: usize) -> (SocketAddr, mpsc::Receiver<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (report, reports) = mpsc::channel();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, report) = (client.unwrap(), report.clone());
                std::thread::spawn(move || {
                    let mut stream = [0];
                    client.read_exact(&mut stream).unwrap();
                    report.send(client.write_all(&pattern(stream[0], length)).is_ok()).ok();
                });
            }
        });
        (address, reports)
    }

    fn link(target: SocketAddr, shape: Shape) -> Link {
        Link::start("127.0.0.1:0".parse().unwrap(), target, shape).unwrap()
    }

    fn ask(link: &Link, stream: u8) -> TcpStream {
        let mut client = TcpStream::connect(link.address()).unwrap();
        client.write_all(&[stream]).unwrap();
        client
    }

    #[test]
    fn every_byte_arrives_in_its_order_on_every_connection() {
        let length = 1_500_000;
        let (server, _reports) = server(length);
        let link = link(server, FAST);
        let began = Instant::now();
        let readers: Vec<_> = (0..6)
            .map(|stream| {
                let mut client = ask(&link, stream);
                std::thread::spawn(move || {
                    let mut answer = Vec::new();
                    client.read_to_end(&mut answer).unwrap();
                    assert!(answer == pattern(stream, length), "stream {stream} is damaged");
                    began.elapsed()
                })
            })
            .collect();
        for reader in readers {
            println!("{:?}", reader.join().unwrap());
        }
        assert_eq!(link.totals(), Totals { down: 6 * length as u64, up: 6, connections: 6 });
    }

    #[test]
    fn a_client_that_does_not_read_holds_the_server_back() {
        let length = 64 * 1024 * 1024;
        let (server, _reports) = server(length);
        let link = link(server, Shape { rate: Rate(1_000_000_000), ..FAST });
        let client = ask(&link, 1);
        // Until nothing moves any more: everything between the two is full.
        let mut before = u64::MAX;
        while link.totals().down != before || before == 0 {
            before = link.totals().down;
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("{before} bytes under way");
        assert!(before < length as u64 / 2, "{before} bytes for a client that reads nothing");
        drop(client);
    }

    #[test]
    fn a_client_that_goes_away_ends_the_transfer() {
        let length = 64 * 1024 * 1024;
        let (server, reports) = server(length);
        let link = link(server, FAST);
        let mut client = ask(&link, 1);
        client.read_exact(&mut [0; 1000]).unwrap();
        drop(client);
        assert_eq!(reports.recv_timeout(Duration::from_secs(60)), Ok(false), "the server is told");
        println!("{:?}", link.totals());
    }

    #[test]
    fn the_line_never_runs_faster_than_its_rate() {
        let began = Instant::now();
        let line = Line { rate: Rate(1_000_000), free: Mutex::new(began) };
        let at = |milliseconds| began + Duration::from_millis(milliseconds);
        assert_eq!(line.pass(at(0), 10_000), at(10), "the first piece takes its time");
        assert_eq!(line.pass(at(0), 10_000), at(20), "the second waits for the first, whoever sends it");
        assert_eq!(line.pass(at(15), 5_000), at(25), "so does one that comes later");
        assert_eq!(line.pass(at(100), 1_000), at(101), "time without traffic is not saved up");
    }

    #[test]
    fn rates_and_times() {
        let rate = Rate::from_megabits(400);
        assert_eq!(rate.bytes_in(Duration::from_millis(20)), 1_000_000);
        assert_eq!(rate.time_of(50_000_000), Duration::from_secs(1));
        assert_eq!(Rate::from_megabits(0), Rate(125_000));
    }

    #[test]
    fn a_full_pipe_waits_until_something_was_written() {
        let pipe = Arc::new(Pipe::new(2 * PIECE));
        let parcel = || Parcel { due: Instant::now(), bytes: vec![7; PIECE] };
        assert!(pipe.wait_for_room());
        pipe.push(parcel());
        assert!(pipe.wait_for_room());
        pipe.push(parcel());
        let waiter = {
            let pipe = Arc::clone(&pipe);
            std::thread::spawn(move || pipe.wait_for_room())
        };
        assert_eq!(pipe.next().unwrap().bytes.len(), PIECE);
        pipe.written(PIECE);
        assert!(waiter.join().unwrap());
        pipe.push(parcel());
        pipe.give_up();
        assert!(!pipe.wait_for_room(), "no use in filling it");
    }
}
