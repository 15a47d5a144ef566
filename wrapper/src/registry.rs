//! Flags about registries, as `ctr` has them, and the client that they make.

use std::path::PathBuf;
use std::sync::Arc;

use oci_registry::{
    Chain, Client, ClientOptions, CredentialSource, Credentials, DockerConfig, HostOptions, Reference,
    StaticCredentials,
};

use crate::error::Error;
use crate::terminal;

/// Flags of every command that asks a registry.
#[derive(Clone, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Skip SSL certificate validation.
    #[arg(short = 'k', long)]
    pub(crate) skip_verify: bool,
    /// Allow connections using plain HTTP.
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// User[:password] Registry user and password.
    #[arg(short, long, value_name = "USER[:PASSWORD]")]
    user: Option<String>,
    /// Refresh token for authorization server.
    #[arg(long, value_name = "TOKEN")]
    refresh: Option<String>,
    /// Custom hosts configuration directories; the first that has the host wins.
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    hosts_dir: Vec<PathBuf>,
    /// Path to TLS root CA.
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Path to TLS client certificate.
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    /// Path to TLS client key.
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
    /// Accepted for compatibility; --debug says what is going on.
    #[arg(long, hide = true)]
    http_dump: bool,
    /// Accepted for compatibility; --debug says what is going on.
    #[arg(long, hide = true)]
    http_trace: bool,
}

impl std::fmt::Debug for RegistryArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryArgs")
            .field("skip_verify", &self.skip_verify)
            .field("plain_http", &self.plain_http)
            .field("user", &self.user.as_ref().map(|_| "redacted"))
            .field("refresh", &self.refresh.as_ref().map(|_| "redacted"))
            .finish_non_exhaustive()
    }
}

impl RegistryArgs {
    /// What the command line says about who we are; asks for the password where only a name was given.
    ///
    /// # Errors
    /// A password that cannot be read.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>, Error> {
        if let Some(token) = &self.refresh {
            return Ok(Some(Credentials::new(Credentials::IDENTITY_TOKEN, token.clone())));
        }
        let Some(user) = self.user.as_deref().filter(|user| !user.is_empty()) else { return Ok(None) };
        if user.contains(':') {
            let parsed = Credentials::parse(user);
            return parsed.map(Some).ok_or_else(|| Error::Usage("--user has no user name".to_owned()));
        }
        Ok(Some(Credentials::new(user, terminal::secret("Password: ")?)))
    }

    /// What docker's configuration says about who we are to the registry of `reference`.
    pub(crate) async fn found_credentials(reference: &Reference) -> Option<Credentials> {
        let docker = DockerConfig::from_environment();
        docker.credentials(reference.host(), reference.repository().name()).await
    }

    /// A client for the registry of `reference`; the command line's credentials go to that host alone, others come from docker's config.
    ///
    /// # Errors
    /// Certificates that cannot be read, or only one of certificate and key.
    pub(crate) fn client(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Client, Error> {
        let client_cert = match (&self.tlscert, &self.tlskey) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(Error::Usage("--tlscert and --tlskey need each other".to_owned())),
        };
        let mut sources: Vec<Arc<dyn CredentialSource>> = Vec::new();
        match credentials {
            Some(given) => {
                sources.push(Arc::new(StaticCredentials::for_host(given.clone(), reference.host())))
            }
            None => sources.push(Arc::new(DockerConfig::from_environment())),
        }
        let options = ClientOptions {
            hosts: HostOptions {
                plain_http: self.plain_http.then_some(true),
                skip_verify: self.skip_verify,
                ca: self.tlscacert.iter().cloned().collect(),
                client_cert,
                hosts_dir: self.hosts_dir.clone(),
                ..HostOptions::default()
            },
            credentials: Arc::new(Chain::new(sources)),
            ..ClientOptions::default()
        };
        Client::new(options).map_err(Error::command)
    }
}
