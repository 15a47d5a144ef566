//! Who we say that we are.

mod docker;

pub use docker::DockerConfig;

use futures_util::future::BoxFuture;
use std::fmt;
use std::sync::Arc;

/// A user name and its secret. Neither is ever shown: the name may be a token's name, too.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name; [`Credentials::IDENTITY_TOKEN`] where the secret is an OAuth2 refresh ("identity") token.
    pub username: String,
    /// Password or token.
    pub secret: String,
}

/// Where credentials come from. Asked anew whenever authorisation is renewed, so that rotated ones are found.
pub trait CredentialSource: Send + Sync {
    /// The credentials for `repository` (`library/alpine`) at `host`, the registry's host and port
    /// (`registry-1.docker.io`). None where it has none; a source with trouble of its own logs it and has none.
    fn credentials<'a>(&'a self, host: &'a str, repository: &'a str) -> BoxFuture<'a, Option<Credentials>>;
}

/// No credentials.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCredentials;

/// One pair, as given with `--user`, for one host or for all.
#[derive(Clone, Debug)]
pub struct StaticCredentials {
    credentials: Credentials,
    host: Option<String>,
}

/// Several sources; the first that has an answer wins.
#[derive(Clone, Default)]
pub struct Chain(Vec<Arc<dyn CredentialSource>>);

// === impl Credentials ===

impl Credentials {
    /// The user name that marks an identity token.
    pub const IDENTITY_TOKEN: &'static str = "<token>";

    /// A user name and a secret.
    pub fn new(username: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { username: username.into(), secret: secret.into() }
    }

    /// Reads `NAME:SECRET`; the secret may have colons. None without a colon or without a name.
    pub fn parse(text: &str) -> Option<Self> {
        let (username, secret) = text.split_once(':')?;
        (!username.is_empty()).then(|| Self::new(username, secret))
    }

    /// Whether the secret is an OAuth2 refresh token.
    pub fn is_identity_token(&self) -> bool {
        self.username == Self::IDENTITY_TOKEN
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(redacted)")
    }
}

// === impl CredentialSource ===

impl CredentialSource for NoCredentials {
    fn credentials<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        Box::pin(std::future::ready(None))
    }
}

impl StaticCredentials {
    /// The same credentials for every host.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, host: None }
    }

    /// Credentials for one host alone, as [`crate::Repository::host`] names it.
    pub fn for_host(credentials: Credentials, host: impl Into<String>) -> Self {
        Self { credentials, host: Some(host.into()) }
    }
}

impl CredentialSource for StaticCredentials {
    fn credentials<'a>(&'a self, host: &'a str, _: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        let fits = self.host.as_deref().is_none_or(|own| own == host);
        Box::pin(std::future::ready(fits.then(|| self.credentials.clone())))
    }
}

impl Chain {
    /// A chain that asks in the order of `sources`.
    pub fn new(sources: Vec<Arc<dyn CredentialSource>>) -> Self {
        Self(sources)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({} sources)", self.0.len())
    }
}

impl CredentialSource for Chain {
    fn credentials<'a>(&'a self, host: &'a str, repository: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        Box::pin(async move {
            for source in &self.0 {
                if let Some(found) = source.credentials(host, repository).await {
                    return Some(found);
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        let credentials = Credentials::parse("robot$x:hunter2:3").unwrap();
        assert_eq!((credentials.username.as_str(), credentials.secret.as_str()), ("robot$x", "hunter2:3"));
        let shown = format!("{credentials:?} {:?}", StaticCredentials::new(credentials.clone()));
        assert!(!shown.contains("hunter2") && !shown.contains("robot"), "{shown}");
        assert!(Credentials::parse("nocolon").is_none() && Credentials::parse(":x").is_none());
    }

    #[tokio::test]
    async fn first_answer_wins() {
        let pair = |name: &str| Credentials::new(name, "s");
        let chain = Chain::new(vec![
            Arc::new(NoCredentials),
            Arc::new(StaticCredentials::for_host(pair("a"), "a.example")),
            Arc::new(StaticCredentials::new(pair("rest"))),
        ]);
        assert_eq!(chain.credentials("a.example", "x").await, Some(pair("a")));
        assert_eq!(chain.credentials("b.example", "x").await, Some(pair("rest")));
    }
}
