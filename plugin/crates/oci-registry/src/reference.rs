//! Image references, in the grammar and with the defaults of `distribution/reference`.

use oci_spec::image::Digest;
use std::fmt;
use std::str::FromStr;

const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_HOST: &str = "registry-1.docker.io";
/// Longest `domain/path`, in bytes.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A repository of a registry: where blobs and manifests live.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    domain: String,
    name: String,
}

/// A normalised image reference. With neither tag nor digest in the text, the tag is `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("the image reference is empty")]
    Empty,
    /// 64 hexadecimal digits, which people mean as an image ID.
    #[error("{0:?} is an image ID, not a reference")]
    ImageId(String),
    /// The repository has upper case letters.
    #[error("the repository in {0:?} has upper case letters")]
    Uppercase(String),
    /// Longer than 255 bytes without tag and digest.
    #[error("the name in the image reference is longer than {MAX_NAME} bytes")]
    TooLong,
    /// Host and port.
    #[error("{0:?} has no valid registry host")]
    Domain(String),
    /// Repository.
    #[error("{0:?} has no valid repository")]
    Path(String),
    /// Tag.
    #[error("{0:?} has no valid tag")]
    Tag(String),
    /// Digest; only SHA-256 is accepted.
    #[error("{0:?} has no valid sha256 digest")]
    Digest(String),
}

// === impl Repository ===

impl Repository {
    /// The repository `name` (for example `library/alpine`) of the registry `domain` (`docker.io`, `localhost:5000`).
    ///
    /// # Errors
    /// Where either is not valid.
    pub fn new(domain: &str, name: &str) -> Result<Self, ReferenceError> {
        if domain.len().saturating_add(name.len()) >= MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        if !is_domain(domain) {
            return Err(ReferenceError::Domain(domain.to_owned()));
        }
        if !name.split('/').all(is_path_component) {
            return Err(ReferenceError::Path(name.to_owned()));
        }
        Ok(Self { domain: domain.to_owned(), name: name.to_owned() })
    }

    /// The repository `name` of the registry that is talked to at `host`: the reverse of [`Repository::host`].
    ///
    /// # Errors
    /// Where either is not valid.
    pub fn at_host(host: &str, name: &str) -> Result<Self, ReferenceError> {
        Self::new(if host == DEFAULT_HOST { DEFAULT_DOMAIN } else { host }, name)
    }

    /// The registry as it is called in references, for example `docker.io`; with its port, if the text has one.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The host (and port) to talk to: the domain, but `registry-1.docker.io` for `docker.io`.
    pub fn host(&self) -> &str {
        if self.domain == DEFAULT_DOMAIN { DEFAULT_HOST } else { &self.domain }
    }

    /// The name inside the registry, for example `library/alpine`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The reference to a manifest of this repository by its digest.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { repository: self.clone(), tag: None, digest: Some(digest) }
    }

    /// The reference to a tag of this repository.
    ///
    /// # Errors
    /// Where `tag` is not valid.
    pub fn with_tag(&self, tag: &str) -> Result<Reference, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        Ok(Reference { repository: self.clone(), tag: Some(tag.to_owned()), digest: None })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.name)
    }
}

// === impl Reference ===

impl Reference {
    /// Reads what a user types: `rabbitmq:3`, `localhost:5000/x@sha256:…`, `docker.io/library/alpine`.
    ///
    /// # Errors
    /// Where the text is outside the grammar.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::ImageId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(text, digest)?)),
            None => (text, None),
        };
        let (domain, path) = split_domain(rest);
        // The last colon starts a tag: a port's colon was split off with the domain.
        let (name, tag) = match path.rsplit_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (path.as_str(), None),
        };
        if name.chars().any(char::is_uppercase) {
            return Err(ReferenceError::Uppercase(text.to_owned()));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        let repository = Repository::new(domain, name).map_err(|error| match error {
            ReferenceError::Domain(_) => ReferenceError::Domain(text.to_owned()),
            ReferenceError::Path(_) => ReferenceError::Path(text.to_owned()),
            other => other,
        })?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { repository, tag, digest })
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// See [`Repository::domain`].
    pub fn domain(&self) -> &str {
        self.repository.domain()
    }

    /// See [`Repository::host`].
    pub fn host(&self) -> &str {
        self.repository.host()
    }

    /// The tag. A digest, where there is one too, has priority.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As people write it: without `docker.io/` and `library/` where these are implied.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        let shorter = short.strip_prefix("library/").filter(|_| self.domain() == DEFAULT_DOMAIN);
        match shorter {
            Some(rest) if !self.repository.name.strip_prefix("library/").unwrap_or("/").contains('/') => {
                rest.to_owned()
            }
            _ => short.to_owned(),
        }
    }

    /// What stands behind `manifests/` in a URL: the digest, or the tag where there is none.
    pub(crate) fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_ref(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// Domain and path, with the defaults filled in.
fn split_domain(name: &str) -> (&str, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        (domain, format!("library/{path}"))
    } else {
        (domain, path.to_owned())
    }
}

fn parse_digest(text: &str, digest: &str) -> Result<Digest, ReferenceError> {
    let parsed = Digest::try_from(digest).ok().filter(soci_index::is_sha256);
    parsed.ok_or_else(|| ReferenceError::Digest(text.to_owned()))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Lower case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alnum = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let (first, last) = (component.bytes().next(), component.bytes().next_back());
    if !first.is_some_and(alnum) || !last.is_some_and(alnum) {
        return false;
    }
    component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if !address.is_empty() => {
                let hex = |byte: u8| byte.is_ascii_hexdigit() || byte == b':';
                if !address.bytes().all(hex) {
                    return false;
                }
                return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            }
            _ => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().next_back()];
        ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
