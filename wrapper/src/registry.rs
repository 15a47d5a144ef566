//! Flags about registries, as `ctr` has them.

use std::path::PathBuf;

/// Flags of every command that asks a registry.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Skip SSL certificate validation.
    #[arg(short = 'k', long)]
    pub(crate) skip_verify: bool,
    /// Allow connections using plain HTTP.
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// User[:password] Registry user and password.
    #[arg(short, long, value_name = "USER[:PASSWORD]")]
    pub(crate) user: Option<String>,
    /// Refresh token for authorization server.
    #[arg(long)]
    pub(crate) refresh: Option<String>,
    /// Custom hosts configuration directory.
    #[arg(long)]
    pub(crate) hosts_dir: Option<PathBuf>,
    /// Path to TLS root CA.
    #[arg(long)]
    pub(crate) tlscacert: Option<PathBuf>,
    /// Path to TLS client certificate.
    #[arg(long)]
    pub(crate) tlscert: Option<PathBuf>,
    /// Path to TLS client key.
    #[arg(long)]
    pub(crate) tlskey: Option<PathBuf>,
    /// Say on stderr which requests are made.
    #[arg(long)]
    pub(crate) http_dump: bool,
    /// Say on stderr which requests are made.
    #[arg(long)]
    pub(crate) http_trace: bool,
}
