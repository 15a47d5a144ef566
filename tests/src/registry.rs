//! Debian's docker-registry on loopback: plain HTTP, one user, an access log that counts bytes.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::image::digest;
use crate::process::{Process, run, say};

/// The user that the registry knows.
pub const USER: &str = "testuser";
/// The user's password.
pub const PASSWORD: &str = "correct-horse-battery";

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    host: String,
    folder: PathBuf,
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Registry {
    /// Starts one with its data in `folder`.
    pub fn start(folder: &Path) -> Registry {
        fs::create_dir_all(folder).unwrap();
        let host = format!("127.0.0.1:{}", free_port());
        fs::write(folder.join("htpasswd"), run("htpasswd", &["-nbB", USER, PASSWORD])).unwrap();
        let place = folder.display();
        let config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {place}/data}}, cache: {{blobdescriptor: inmemory}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{host}\"}}\nauth: {{htpasswd: {{realm: tests, path: {place}/htpasswd}}}}\n"
        );
        fs::write(folder.join("config.yml"), config).unwrap();
        let process = Registry::spawn(folder);
        let mut registry = Registry { process, host, folder: folder.to_owned() };
        registry.wait();
        registry
    }

    fn spawn(folder: &Path) -> Process {
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(folder.join("config.yml"));
        Process::start("docker-registry", &mut command, &folder.join("log"))
    }

    fn wait(&mut self) {
        let host = self.host.clone();
        self.process.wait_until("it listens", Duration::from_secs(20), || TcpStream::connect(&host).is_ok());
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Ends it: from now on it is unreachable.
    pub fn stop(&mut self) {
        self.process.stop(rustix::process::Signal::KILL);
    }

    /// Connections are taken and nothing is answered, until [`Registry::go_on`].
    pub fn hang(&self) {
        self.process.signal(rustix::process::Signal::STOP);
    }

    /// Answers again.
    pub fn go_on(&self) {
        self.process.signal(rustix::process::Signal::CONT);
    }

    /// Starts it again, on the same port with the same data.
    pub fn restart(&mut self) {
        self.process = Registry::spawn(&self.folder);
        self.wait();
    }

    /// Lines of the access log: method, path, status, bytes sent.
    pub fn requests(&self) -> Vec<Request> {
        // The line is written after the last byte of the answer.
        std::thread::sleep(Duration::from_millis(100));
        self.process.output().lines().filter_map(Request::parse).collect()
    }

    /// Bytes sent in answer to GET so far.
    pub fn downloaded(&self) -> u64 {
        self.requests()
            .iter()
            .filter(|request| request.method == "GET" && request.status < 300)
            .map(|request| request.bytes)
            .sum()
    }

    /// Bytes sent of one blob so far.
    pub fn downloaded_of(&self, blob: &str) -> u64 {
        let of = |request: &&Request| {
            request.method == "GET" && request.status < 300 && request.path.ends_with(blob)
        };
        self.requests().iter().filter(of).map(|request| request.bytes).sum()
    }

    /// The body of GET `/v2/<path>`.
    pub fn get(&self, path: &str) -> String {
        let accept = "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
        run("curl", &["-sSf", "-u", &user(), "-H", accept, &format!("http://{}/v2/{path}", self.host)])
    }

    /// The bytes of a blob, through a file in `folder`.
    pub fn blob(&self, repository: &str, blob: &str) -> Vec<u8> {
        let file = self.folder.join("curl.out");
        let url = format!("http://{}/v2/{repository}/blobs/{blob}", self.host);
        run("curl", &["-sSf", "-u", &user(), "-o", file.to_str().unwrap(), &url]);
        fs::read(file).unwrap()
    }

    /// Uploads a blob; the digest is returned.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let (file, digest) = (self.folder.join("curl.in"), digest(bytes));
        fs::write(&file, bytes).unwrap();
        let start = format!("http://{}/v2/{repository}/blobs/uploads/", self.host);
        let headers =
            run("curl", &["-sSf", "-u", &user(), "-X", "POST", "-D", "-", "-o", "/dev/null", &start]);
        let location =
            headers.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim().to_owned();
        let data = format!("@{}", file.display());
        let kind = "Content-Type: application/octet-stream";
        let target = format!("{location}&digest={digest}");
        run("curl", &["-sSf", "-u", &user(), "-X", "PUT", "-H", kind, "--data-binary", &data, &target]);
        digest
    }

    /// Uploads a manifest under a tag or digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let file = self.folder.join("curl.in");
        fs::write(&file, bytes).unwrap();
        let (data, kind) = (format!("@{}", file.display()), format!("Content-Type: {media_type}"));
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.host);
        say(Command::new("curl").args([
            "-sSf",
            "-u",
            &user(),
            "-X",
            "PUT",
            "-H",
            &kind,
            "--data-binary",
            &data,
            &url,
        ]))
        .ok();
    }
}

/// `USER:PASSWORD`, as the clients take it.
pub fn user() -> String {
    format!("{USER}:{PASSWORD}")
}

/// A line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the answer's body that were sent.
    pub bytes: u64,
}

impl Request {
    fn parse(line: &str) -> Option<Request> {
        let mut quoted = line.split('"');
        let mut request = quoted.nth(1)?.split(' ');
        let mut answer = quoted.next()?.split_whitespace();
        Some(Request {
            method: request.next()?.to_owned(),
            path: request.next()?.to_owned(),
            status: answer.next()?.parse().ok()?,
            bytes: answer.next()?.parse().ok()?,
        })
    }
}
