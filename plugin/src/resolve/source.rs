//! A layer's bytes, read from its registry.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use lazy_layer::{BlobSource, ByteStream, SourceError};
use oci_registry::{RegistryError, Repository};
use oci_spec::image::Digest;
use ztoc::CompressedOffset;

use super::registries::Registries;

/// One blob of one repository.
#[derive(Clone, Debug)]
pub(super) struct RegistryBlob {
    pub(super) registries: Arc<Registries>,
    pub(super) repository: Repository,
    pub(super) digest: Digest,
}

impl BlobSource for RegistryBlob {
    fn read(&self, range: Range<CompressedOffset>) -> ByteStream {
        let this = self.clone();
        let opened = async move {
            // Asked for each time: credentials and the way of talking may have been handed over anew.
            let client = this.registries.client(&this.repository).map_err(SourceError::permanent)?;
            let range = range.start.0..range.end.0;
            let stream = client.blob_range(&this.repository, &this.digest, range).await.map_err(failed)?;
            Ok(stream.map_err(failed))
        };
        stream::once(opened).try_flatten().boxed()
    }

    fn host(&self) -> Arc<str> {
        self.repository.host().into()
    }
}

/// A host that does not answer in time is asked for less at a time, as one that says that it has too much to do.
fn failed(error: RegistryError) -> SourceError {
    if error.is_overload() || matches!(error.answer(), RegistryError::Timeout { .. }) {
        let retry_after = error.retry_after();
        SourceError::busy(error, retry_after)
    } else if error.is_transient() {
        SourceError::transient(error)
    } else {
        SourceError::permanent(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;
    use std::str::FromStr as _;
    use std::sync::mpsc;
    use std::time::Duration;

    use lazy_layer::{LayerKey, LayerStore, StoreOptions};
    use oci_registry::ClientOptions;
    use sha2::{Digest as _, Sha256};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::credentials::Keyring;
    use crate::resolve::GreetOptions;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn golden(name: &str) -> (Vec<u8>, Digest) {
        let bytes =
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)).unwrap();
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        (bytes, Digest::from_str(&format!("sha256:{hex}")).unwrap())
    }

    /// A registry with one blob. Of the first ranges that it is asked for, so many as `stuck`, it sends one byte and then nothing. Tells of each range.
    fn registry(blob: Vec<u8>, stuck: usize) -> (String, mpsc::Receiver<Range<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (tell, told) = mpsc::channel();
        let (blob, asked) = (Arc::new(blob), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (blob, asked, tell) = (Arc::clone(&blob), Arc::clone(&asked), tell.clone());
                std::thread::spawn(move || {
                    serve(
                        connection?,
                        &blob,
                        || asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < stuck,
                        &tell,
                    )
                });
            }
        });
        (host, told)
    }

    fn serve(
        mut connection: TcpStream,
        blob: &[u8],
        is_stuck: impl Fn() -> bool,
        tell: &mpsc::Sender<Range<usize>>,
    ) -> std::io::Result<()> {
        let mut lines = BufReader::new(connection.try_clone()?).lines();
        loop {
            let mut range = 0..0;
            for line in lines.by_ref() {
                let line = line?.to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                if let Some((first, last)) =
                    line.strip_prefix("range: bytes=").and_then(|r| r.split_once('-'))
                {
                    range = first.parse().unwrap()..last.parse::<usize>().unwrap() + 1;
                }
            }
            if range.is_empty() {
                return Ok(());
            }
            let (first, last, size, len) = (range.start, range.end - 1, blob.len(), range.len());
            write!(
                connection,
                "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {first}-{last}/{size}\r\ncontent-length: {len}\r\n\r\n"
            )?;
            let stuck = is_stuck();
            connection.write_all(&blob[if stuck { first..first + 1 } else { range.clone() }])?;
            let _ = tell.send(range);
            if stuck {
                std::thread::park();
            }
        }
    }

    #[test]
    fn a_host_that_is_silent_is_taken_for_a_busy_one() {
        let timeout = || RegistryError::Timeout { host: "host".to_owned(), after: PATIENCE };
        let endpoints =
            RegistryError::Endpoints { tried: vec!["mirror".to_owned()], last: Box::new(timeout()) };
        for error in [timeout(), endpoints] {
            let shown = format!("{:?}", failed(error));
            assert!(shown.contains("Busy"), "{shown}");
        }
        let length =
            RegistryError::Length { host: "host".to_owned(), what: String::new(), expected: 2, actual: 1 };
        assert!(!format!("{:?}", failed(length)).contains("Busy"));
    }

    #[test]
    fn the_background_has_no_turn_that_a_reader_needs() {
        let ((blob, digest), (ztoc, ztoc_digest)) =
            (golden("layers/plain.tar"), golden("ztoc/head/plain.s65536.ztoc"));
        let (host, asked) = registry(blob.clone(), 2);
        let root = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut options = StoreOptions::new(root.path());
        (options.max_ranges, options.max_range, options.fill.silence) = (Some(2), 1, Duration::ZERO);
        options.read_deadline = PATIENCE / 2;
        let store = LayerStore::open(options, runtime.handle().clone()).unwrap();
        let client = ClientOptions {
            turns: Some(Arc::new(Semaphore::new(2))),
            idle_timeout: PATIENCE,
            ..ClientOptions::default()
        };
        let greet = GreetOptions { at_once: 1, deadline: PATIENCE };
        let registries = Arc::new(Registries::new(client, greet, Arc::new(Keyring::alone(1))));
        let layer =
            store.create_layer(&LayerKey { layer: digest.clone(), ztoc: ztoc_digest }, &ztoc).unwrap();
        let repository = Repository::new(&host, "repository").unwrap();
        let _attached = layer.attach(Arc::new(RegistryBlob { registries, repository, digest }));
        // Both that the background may ask for are under way.
        let background = [(); 2].map(|()| asked.recv_timeout(PATIENCE).unwrap());
        assert!(background.iter().all(|range| range.end < blob.len() / 2), "{background:?}");
        let (tell, told) = mpsc::channel();
        let reply = move |got: Result<&[u8], lazy_layer::ReadError>| {
            let _ = tell.send(got.map(<[u8]>::to_vec));
        };
        layer.read_file(layer.file_size() - 100, 100, Box::new(reply));
        let got = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(got.unwrap(), blob[blob.len() - 100..]);
    }
}
