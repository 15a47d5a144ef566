//! Docker's `config.json`, with its credential helpers.

use super::{CredentialSource, Credentials};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// `config.json` of Docker: in `$DOCKER_CONFIG`, else in `~/.docker`, or in a folder of its own. Read on every question,
/// since logins change it.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    folder: Option<PathBuf>,
    patience: Duration,
    /// One turn for each server that somebody asks about. A helper that hangs keeps its thread; it keeps the turn, too, so that there is no second
    /// thread.
    turns: Arc<Mutex<HashMap<String, Weak<Turn>>>>,
}

type Turn = tokio::sync::Mutex<()>;

impl Default for DockerConfig {
    fn default() -> Self {
        Self { folder: None, patience: Duration::from_secs(30), turns: Arc::default() }
    }
}

impl DockerConfig {
    /// The configuration in `$DOCKER_CONFIG` or `~/.docker`.
    pub fn from_environment() -> Self {
        Self::default()
    }

    /// The `config.json` in `folder`.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()), ..Self::default() }
    }

    /// The same, with another limit to the time that a credential helper may take (default 30 s): some ask a cloud's API.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn turn(&self, server: &str) -> Arc<Turn> {
        let mut turns = self.turns.lock();
        if let Some(turn) = turns.get(server).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(server.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn path(&self) -> Option<PathBuf> {
        let folder = match &self.folder {
            Some(folder) => Some(folder.clone()),
            None => std::env::var_os("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"))),
        };
        folder.map(|folder| folder.join("config.json"))
    }
}

impl CredentialSource for DockerConfig {
    fn credentials<'a>(&'a self, host: &'a str, _: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        let Some(path) = self.path() else { return Box::pin(std::future::ready(None)) };
        // Helpers know Docker Hub by this address alone; for the others the host is the key.
        let server = match host {
            "registry-1.docker.io" | "docker.io" => "https://index.docker.io/v1/".to_owned(),
            other => other.to_owned(),
        };
        let (patience, turn) = (self.patience, self.turn(&server));
        Box::pin(async move {
            let asked = async {
                let turn = turn.lock_owned().await;
                tokio::task::spawn_blocking(move || {
                    let found = ask(&path, &server);
                    drop(turn);
                    found
                })
                .await
            };
            match tokio::time::timeout(patience, asked).await {
                Ok(Ok(found)) => found,
                Ok(Err(_)) => None,
                Err(_) => {
                    tracing::warn!(host, "credential helper did not answer in time");
                    None
                }
            }
        })
    }
}

fn ask(path: &std::path::Path, server: &str) -> Option<Credentials> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot read docker config");
            }
            return None;
        }
    };
    match docker_credential::get_credential_from_reader(std::io::BufReader::new(file), server) {
        Ok(DockerCredential::IdentityToken(token)) if !token.is_empty() => {
            Some(Credentials::new(Credentials::IDENTITY_TOKEN, token))
        }
        Ok(DockerCredential::UsernamePassword(username, secret)) if !username.is_empty() => {
            Some(Credentials::new(username, secret))
        }
        Ok(_) | Err(CredentialRetrievalError::NoCredentialConfigured) => None,
        Err(error) => {
            // Not the helper's own words: they may have a secret in them.
            let what = match error {
                CredentialRetrievalError::HelperFailure { helper, .. } => format!("{helper} failed"),
                other => other.to_string(),
            };
            tracing::debug!(server, error = what, "no credentials from docker config");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_plain_entries_tokens_and_docker_hub() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOnM6Mw=="},
            "localhost:5000":{"auth":"bG9jYWw6cHc="},
            "t.example":{"auth":"eDp5","identitytoken":"refresh"},
            "empty.example":{}}}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let source = DockerConfig::in_folder(folder.path());
        let expect = |name: &str, secret: &str| Some(Credentials::new(name, secret));
        assert_eq!(source.credentials("registry-1.docker.io", "x").await, expect("hub", "s:3"));
        assert_eq!(source.credentials("localhost:5000", "x").await, expect("local", "pw"));
        assert_eq!(source.credentials("t.example", "x").await, expect("<token>", "refresh"));
        assert_eq!(source.credentials("empty.example", "x").await, None);
        assert_eq!(source.credentials("other.example", "x").await, None);
    }

    #[tokio::test]
    async fn a_missing_or_broken_file_is_no_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let source = DockerConfig::in_folder(folder.path());
        assert_eq!(source.credentials("x", "y").await, None);
        std::fs::write(folder.path().join("config.json"), "{").unwrap();
        assert_eq!(source.credentials("x", "y").await, None);
    }

    /// A helper that hangs keeps one thread for ever, not one more with each question. The file itself hangs here, which is the same to us.
    #[test]
    fn what_hangs_is_asked_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.json");
        assert!(std::process::Command::new("mkfifo").arg(&config).status().unwrap().success());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .unwrap();
        runtime.block_on(async {
            let source = DockerConfig::in_folder(folder.path()).with_patience(Duration::from_millis(50));
            for _ in 0..3 {
                assert_eq!(source.credentials("x", "y").await, None);
            }
            let other = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(Duration::from_secs(30), other).await.expect("a thread is left").unwrap();
        });
        runtime.shutdown_background();
        // Its reader goes on, and finds nothing.
        drop(std::fs::OpenOptions::new().write(true).open(&config));
    }
}
