//! A proxy in front of the registry that keeps some answers back until other requests have come.

use std::io::{BufRead as _, BufReader, Read as _, Write as _, copy};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How long an answer is kept back at most; whoever waits for it first of all goes on then.
const PATIENCE: Duration = Duration::from_secs(40);

/// The running proxy.
pub(crate) struct Proxy {
    host: String,
    shared: Arc<Shared>,
}

struct Shared {
    registry: String,
    /// Answers to paths with such a text in them are kept back.
    held: fn(&str, &[String]) -> bool,
    /// Texts in the paths that have to be asked for first, all of them.
    awaited: Vec<String>,
    /// Paths in the order in which their requests were passed on.
    passed: Mutex<Vec<String>>,
    news: Condvar,
}

impl Proxy {
    /// Keeps back what `held` says, of a path and `awaited`, until paths with all of `awaited` have been asked for.
    pub(crate) fn start(registry: &str, held: fn(&str, &[String]) -> bool, awaited: Vec<String>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let registry = registry.to_owned();
        let shared = Shared { registry, held, awaited, passed: Mutex::default(), news: Condvar::new() };
        let shared = Arc::new(shared);
        let proxy = Proxy { host, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.pass(stream.unwrap()));
            }
        });
        proxy
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Paths in the order in which their requests were passed on.
    pub(crate) fn passed(&self) -> Vec<String> {
        self.shared.passed.lock().unwrap().clone()
    }
}

impl Shared {
    /// One request without a body, on a connection of its own.
    fn pass(&self, mut client: TcpStream) {
        let mut reader = BufReader::new(client.try_clone().unwrap());
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut head = first.clone();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                break;
            }
            if !line.to_ascii_lowercase().starts_with("connection:") {
                head.push_str(&line);
            }
        }
        head.push_str("connection: close\r\n\r\n");
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut passed = self.passed.lock().unwrap();
        if (self.held)(&path, &self.awaited) {
            let missing = |passed: &mut Vec<String>| {
                self.awaited.iter().any(|text| !passed.iter().any(|path| path.contains(text)))
            };
            passed = self.news.wait_timeout_while(passed, PATIENCE, missing).unwrap().0;
        }
        passed.push(path);
        drop(passed);
        self.news.notify_all();
        let mut registry = TcpStream::connect(&self.registry).unwrap();
        registry.write_all(head.as_bytes()).unwrap();
        let mut answer = registry.take(u64::MAX);
        let _ = copy(&mut answer, &mut client);
    }
}
