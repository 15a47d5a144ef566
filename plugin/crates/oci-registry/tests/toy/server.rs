//! A registry, a token server and a storage behind them, small and obedient: every fault is a switch.

use parking_lot::Mutex;
use soci_index::digest_of;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Auth {
    #[default]
    None,
    /// `user:secret`.
    Basic(String),
    /// Tokens from our own token server, each good for so many requests.
    Bearer { user: Option<String>, identity_token: Option<String>, uses: usize },
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Answer with this status and these headers.
    Status(u16, Vec<(String, String)>, String),
    /// Send the head and so many bytes of the body, then close.
    Cut(usize),
    /// Send the head and so many bytes of the body, then nothing more.
    Stall(usize),
    /// Send the head, then the body byte by byte, one every so many milliseconds.
    Drip(u64),
    /// Close without a word.
    Close,
    /// Answer as usual, but with a header changed (or, where the value is empty, left out).
    Header(String, String),
    /// More bytes than are meant.
    Longer(Vec<u8>),
}

#[derive(Debug, Default)]
pub(crate) struct Switches {
    pub(crate) auth: Auth,
    /// Blobs are on the storage's port, behind a signature with this number.
    pub(crate) signature: Option<u32>,
    /// What the storage says to a wrong signature.
    pub(crate) stale_status: u16,
    pub(crate) no_ranges: bool,
    /// Faults for the next requests whose path contains the text.
    pub(crate) faults: VecDeque<(String, Fault)>,
    pub(crate) referrers: Referrers,
    pub(crate) absolute_location: bool,
    pub(crate) head_without_headers: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Referrers {
    #[default]
    Missing,
    Status(u16),
    LoginPage,
    Redirect,
    Api,
    Pages,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) port: u16,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug, Default)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) switches: Switches,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) manifests: HashMap<String, (String, Vec<u8>)>,
    pub(crate) log: Vec<Request>,
    tokens: HashMap<String, usize>,
    pub(crate) tokens_given: usize,
    uploads: usize,
}

#[derive(Clone)]
pub(crate) struct Toy {
    pub(crate) registry: SocketAddr,
    pub(crate) storage: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Toy {
    pub(crate) async fn start() -> Self {
        let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let storage = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let toy = Self {
            registry: registry.local_addr().unwrap(),
            storage: storage.local_addr().unwrap(),
            state: Arc::default(),
        };
        for listener in [registry, storage] {
            let toy = toy.clone();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (toy, port) = (toy.clone(), listener.local_addr().unwrap().port());
                    tokio::spawn(async move { toy.connection(stream, port).await });
                }
            });
        }
        toy
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.state.lock().switches);
    }

    pub(crate) fn fault(&self, path: &str, fault: Fault) {
        self.set(|switches| switches.faults.push_back((path.to_owned(), fault)));
    }

    pub(crate) fn add_blob(&self, bytes: &[u8]) -> oci_spec::image::Digest {
        let digest = digest_of(bytes);
        self.state.lock().blobs.insert(digest.to_string(), bytes.to_vec());
        digest
    }

    pub(crate) fn add_manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> oci_spec::image::Digest {
        let digest = digest_of(bytes);
        let entry = (media_type.to_owned(), bytes.to_vec());
        let mut state = self.state.lock();
        state.manifests.insert(digest.to_string(), entry.clone());
        state.manifests.insert(name.to_owned(), entry);
        digest
    }

    /// Requests to the registry's (not the storage's) port whose path contains `path`.
    pub(crate) fn count(&self, path: &str) -> usize {
        let state = self.state.lock();
        state.log.iter().filter(|r| r.port == self.registry.port() && r.path.contains(path)).count()
    }

    pub(crate) fn forget_log(&self) {
        self.state.lock().log.clear();
    }

    async fn connection(&self, stream: TcpStream, port: u16) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read_request(&mut stream, port).await {
            let (mut reply, fault) = self.answer(&request);
            let head_only = request.method == "HEAD";
            let announced = reply.body.len();
            let (mut send, mut stall, mut close, mut drip) = (announced, false, false, None);
            match fault {
                Some(Fault::Close) => return,
                Some(Fault::Cut(after)) => (send, close) = (after, true),
                Some(Fault::Stall(after)) => (send, stall) = (after, true),
                Some(Fault::Drip(pause)) => (send, drip) = (0, Some(pause)),
                Some(Fault::Longer(more)) => {
                    reply.body.extend(more);
                    reply.headers.push(("connection".to_owned(), "close".to_owned()));
                    (send, close) = (reply.body.len(), true);
                }
                Some(Fault::Header(name, value)) => {
                    reply.headers.retain(|(other, _)| *other != name);
                    if !value.is_empty() {
                        reply.headers.push((name, value));
                    }
                }
                Some(Fault::Status(..)) | None => {}
            }
            let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
            for (name, value) in &reply.headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            let has_length = reply.headers.iter().any(|(name, _)| name == "content-length");
            if !has_length && send <= announced {
                head.push_str(&format!("content-length: {announced}\r\n"));
            }
            head.push_str("\r\n");
            let mut bytes = head.into_bytes();
            if !head_only {
                bytes.extend_from_slice(&reply.body[..send.min(reply.body.len())]);
            }
            if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() || close {
                return;
            }
            if let Some(pause) = drip {
                for byte in &reply.body {
                    tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
                    if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            }
            if stall {
                tokio::time::sleep(std::time::Duration::from_secs(60)).await;
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> (Reply, Option<Fault>) {
        let mut state = self.state.lock();
        state.log.push(request.clone());
        let fault = match state.switches.faults.front() {
            Some((path, _)) if request.path.contains(path.as_str()) => state.switches.faults.pop_front(),
            _ => None,
        };
        let fault = fault.map(|(_, fault)| fault);
        if let Some(Fault::Status(status, headers, body)) = fault {
            return (Reply { status, headers, body: body.into_bytes() }, None);
        }
        let reply = if request.port == self.storage.port() {
            state.storage(request)
        } else if request.path == "/token" {
            state.token_server(request)
        } else {
            match state.refusal(request, &format!("http://{}/token", self.registry)) {
                Some(reply) => reply,
                None => state.registry(request, self.storage, self.registry),
            }
        };
        (reply, fault)
    }
}

impl Reply {
    fn new(status: u16, body: &[u8]) -> Self {
        Self { status, headers: Vec::new(), body: body.to_vec() }
    }

    fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

impl State {
    fn refusal(&mut self, request: &Request, realm: &str) -> Option<Reply> {
        let sent = request.headers.get("authorization").cloned().unwrap_or_default();
        let challenge = match &self.switches.auth {
            Auth::None => return None,
            Auth::Basic(user) if sent == format!("Basic {}", base64(user)) => return None,
            Auth::Basic(_) => "Basic realm=\"toy\"".to_owned(),
            Auth::Bearer { .. } => {
                if let Some(left) = sent.strip_prefix("Bearer ").and_then(|token| self.tokens.get_mut(token))
                    && *left > 0
                {
                    *left -= 1;
                    return None;
                }
                let name = request.path.trim_start_matches("/v2/").split('/').next().unwrap_or_default();
                format!("Bearer realm=\"{realm}\",service=\"toy\",scope=\"repository:{name}:pull\"")
            }
        };
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Some(Reply::new(401, body).header("www-authenticate", challenge))
    }

    fn token_server(&mut self, request: &Request) -> Reply {
        let Auth::Bearer { user, identity_token, uses } = self.switches.auth.clone() else {
            return Reply::new(404, b"");
        };
        let sent = request.headers.get("authorization").cloned();
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let good = match (&user, &identity_token) {
            (_, Some(token)) => {
                request.method == "POST"
                    && form.contains(&format!("refresh_token={token}"))
                    && form.contains("grant_type=refresh_token")
                    && form.contains("service=toy")
            }
            (Some(user), _) => sent == Some(format!("Basic {}", base64(user))),
            (None, None) => sent.is_none(),
        };
        if !good {
            return Reply::new(401, b"{}");
        }
        self.tokens_given += 1;
        let token = format!("token-{}", self.tokens_given);
        self.tokens.insert(token.clone(), uses);
        Reply::new(200, format!(r#"{{"token":"{token}","expires_in":300}}"#).as_bytes())
    }

    fn storage(&mut self, request: &Request) -> Reply {
        let wanted = self.switches.signature.map(|number| format!("signature={number}"));
        if wanted.as_deref() != Some(request.query.as_str()) {
            return Reply::new(self.switches.stale_status, b"<Error><Code>ExpiredToken</Code></Error>");
        }
        let digest = request.path.trim_start_matches('/').to_owned();
        self.blob(request, &digest)
    }

    fn blob(&self, request: &Request, digest: &str) -> Reply {
        let Some(blob) = self.blobs.get(digest) else { return Reply::new(404, b"") };
        let range = request.headers.get("range").filter(|_| !self.switches.no_ranges);
        let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
            return Reply::new(200, blob);
        };
        let (first, last) = range.split_once('-').unwrap();
        let first: usize = first.parse().unwrap();
        let last = last.parse::<usize>().unwrap_or(usize::MAX).min(blob.len().saturating_sub(1));
        if first > last {
            return Reply::new(416, b"");
        }
        Reply::new(206, &blob[first..=last])
            .header("content-range", format!("bytes {first}-{last}/{}", blob.len()))
    }

    fn registry(&mut self, request: &Request, storage: SocketAddr, registry: SocketAddr) -> Reply {
        let rest = request.path.strip_prefix("/v2/").unwrap_or_default();
        let Some((_, rest)) = rest.split_once('/') else { return Reply::new(404, b"") };
        match (request.method.as_str(), rest.split_once('/').unwrap_or((rest, ""))) {
            ("GET" | "HEAD", ("blobs", digest)) => match self.switches.signature {
                Some(number) if self.blobs.contains_key(digest) => Reply::new(307, b"")
                    .header("location", format!("http://{storage}/{digest}?signature={number}")),
                _ => self.blob(request, digest),
            },
            ("POST", ("blobs", "uploads/")) => {
                self.uploads += 1;
                let host = if self.switches.absolute_location {
                    format!("http://{registry}")
                } else {
                    String::new()
                };
                let path = request.path.clone();
                Reply::new(202, b"").header("location", format!("{host}{path}{}?state=a%2Fb", self.uploads))
            }
            ("PUT", ("blobs", _)) => {
                let digest = request.query.rsplit("digest=").next().unwrap_or_default().replace("%3A", ":");
                if !request.query.starts_with("state=a%2Fb&")
                    || digest_of(&request.body).to_string() != digest
                {
                    return Reply::new(400, br#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
                }
                self.blobs.insert(digest, request.body.clone());
                Reply::new(201, b"")
            }
            ("GET" | "HEAD", ("manifests", name)) => {
                let Some((media_type, bytes)) = self.manifests.get(name) else { return Reply::new(404, b"") };
                let reply = Reply::new(200, bytes).header("content-type", media_type);
                if self.switches.head_without_headers && request.method == "HEAD" {
                    return reply;
                }
                reply.header("docker-content-digest", digest_of(bytes))
            }
            ("PUT", ("manifests", name)) => {
                let media_type = request.headers.get("content-type").cloned().unwrap_or_default();
                let digest = digest_of(&request.body);
                for name in [name, digest.as_ref()] {
                    self.manifests.insert(name.to_owned(), (media_type.clone(), request.body.clone()));
                }
                let reply = Reply::new(201, b"").header("docker-content-digest", &digest);
                let parsed: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
                match (parsed["subject"]["digest"].as_str(), self.switches.referrers) {
                    (Some(subject), Referrers::Api | Referrers::Pages) => {
                        reply.header("oci-subject", subject)
                    }
                    _ => reply,
                }
            }
            ("GET", ("referrers", subject)) => self.referrers(request, subject),
            _ => Reply::new(405, b""),
        }
    }

    fn referrers(&self, request: &Request, subject: &str) -> Reply {
        let index = |entries: Vec<serde_json::Value>| {
            let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
            Reply::new(200, index.to_string().as_bytes()).header("content-type", soci_index::INDEX_MEDIA_TYPE)
        };
        let entries: Vec<_> = self
            .manifests
            .iter()
            .filter(|(name, _)| name.starts_with("sha256:"))
            .filter_map(|(name, (media_type, bytes))| {
                let parsed: serde_json::Value = serde_json::from_slice(bytes).ok()?;
                (parsed["subject"]["digest"] == subject).then(|| {
                    serde_json::json!({"mediaType": media_type, "digest": name, "size": bytes.len(),
                        "artifactType": parsed["config"]["mediaType"]})
                })
            })
            .collect();
        match self.switches.referrers {
            Referrers::Missing => Reply::new(404, b"404 page not found"),
            Referrers::Status(status) => Reply::new(status, b""),
            Referrers::LoginPage => Reply::new(200, b"<html>").header("content-type", "text/html"),
            Referrers::Redirect => Reply::new(302, b"").header("location", "/login"),
            Referrers::Api => index(entries),
            Referrers::Pages if request.query.contains("page=2") => index(entries),
            Referrers::Pages => {
                index(Vec::new()).header("link", format!("<{}?page=2>; rel=\"next\"", request.path))
            }
        }
    }
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

async fn read_request(stream: &mut BufReader<TcpStream>, port: u16) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    assert!(!headers.contains_key("transfer-encoding"), "bodies have a length here");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Request { port, method, path: path.to_owned(), query: query.to_owned(), headers, body })
}
