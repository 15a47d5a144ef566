//! What can go wrong between us and containerd.

use std::time::Duration;

use tonic::{Code, Status};

/// Failure of one call to containerd; every variant says which operation on what.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// containerd does not have it.
    #[error("{operation} {subject}: not found")]
    NotFound {
        /// What was asked of containerd.
        operation: &'static str,
        /// Name or digest.
        subject: String,
    },
    /// containerd has it already.
    #[error("{operation} {subject}: already exists")]
    AlreadyExists {
        /// What was asked of containerd.
        operation: &'static str,
        /// Name or digest.
        subject: String,
    },
    /// No answer in time.
    #[error("{operation} {subject}: no answer from containerd within {limit:?}")]
    Deadline {
        /// What was asked of containerd.
        operation: &'static str,
        /// Name or digest.
        subject: String,
        /// How long was waited.
        limit: Duration,
    },
    /// containerd, or a plugin that it asked, is not there or is busy.
    #[error("{operation} {subject}: containerd is unavailable: {message}")]
    Unavailable {
        /// What was asked of containerd.
        operation: &'static str,
        /// Name or digest.
        subject: String,
        /// containerd's or the transport's words.
        message: String,
    },
    /// containerd answered with another error.
    #[error("{operation} {subject}: {message}")]
    Refused {
        /// What was asked of containerd.
        operation: &'static str,
        /// Name or digest.
        subject: String,
        /// Kind of error.
        code: Code,
        /// containerd's words.
        message: String,
    },
    /// containerd's answer lacks a field or does not parse.
    #[error("{operation} {subject}: malformed answer: {what}")]
    Malformed {
        /// What was asked of containerd.
        operation: &'static str,
        /// Name or digest.
        subject: String,
        /// What is wrong with it.
        what: String,
    },
    /// Content is larger than the caller allows.
    #[error("content {digest} has {size} bytes, more than the {limit} allowed here")]
    TooLarge {
        /// The content.
        digest: String,
        /// Its size in bytes.
        size: u64,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// What was to be written ended early, was too long, or failed.
    #[error("the data for {digest} could not be read")]
    Body {
        /// The content that was to be written.
        digest: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was to be written is not what its descriptor says.
    #[error("the data for {digest} do not match their descriptor: {what}")]
    Mismatch {
        /// The content that was to be written.
        digest: String,
        /// Length or digest, as found.
        what: String,
    },
    /// A label that containerd would not take (key and value over 4096 bytes).
    #[error("label {key} is too long ({size} bytes with its value)")]
    LabelTooLong {
        /// Key of the label.
        key: String,
        /// Bytes of key and value.
        size: usize,
    },
    /// What should be an index is none.
    #[error("{what} {digest} is not one")]
    Artifact {
        /// What kind of artifact.
        what: &'static str,
        /// Its digest.
        digest: String,
        /// Why not.
        source: soci_index::ParseError,
    },
}

impl StoreError {
    /// Types a status by its code.
    #[must_use]
    pub fn from_status(operation: &'static str, subject: impl Into<String>, status: &Status) -> StoreError {
        let subject = subject.into();
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => StoreError::NotFound { operation, subject },
            Code::AlreadyExists => StoreError::AlreadyExists { operation, subject },
            Code::Unavailable => StoreError::Unavailable { operation, subject, message: with_cause(status) },
            // A status with a source is not containerd's word but the connection's: it broke while containerd was answering.
            _ if std::error::Error::source(status).is_some() => {
                StoreError::Unavailable { operation, subject, message: with_cause(status) }
            }
            code => StoreError::Refused { operation, subject, code, message },
        }
    }

    /// containerd does not have it.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }

    /// containerd has it already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        matches!(self, StoreError::AlreadyExists { .. })
    }

    /// Trying again later may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Unavailable { .. } | StoreError::Deadline { .. })
    }
}

/// tonic says no more than "transport error" when a socket is missing; the reason stands in its sources.
fn with_cause(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}
