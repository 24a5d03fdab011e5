//! Why an authority signs nothing.

use std::path::PathBuf;

use seamount_identity::{BundleError, CertificateError, SvidError};

use crate::template::TemplateError;

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// A configuration value that cannot be.
    #[error("authority configuration: {field} {problem}")]
    Config {
        /// Which one, as it stands in the configuration file.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file of the authority's directory cannot be used.
    #[error("authority file {}: {problem}; {remedy}", file.display())]
    Directory {
        /// Which one.
        file: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The signing request is malformed, its signature wrong, or its key of a kind that is not allowed.
    #[error("certificate signing request refused: {0}")]
    Request(String),
    /// The pod has no valid ID by the template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Randomness, key generation or signing failed.
    #[error("{0} failed in the cryptographic library")]
    Crypto(&'static str),
    /// What was signed does not keep the rules. This is a defect, never the caller's fault.
    #[error("the authority made an invalid certificate: {0}")]
    Invalid(#[from] SvidError),
    /// The bundle is not valid.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The authority's certificate has expired and no other is ready.
    #[error("the authority's certificate has expired; look in the log for why it was not rotated")]
    Expired,
    /// The authority says that this workload gets no identity. Asking again will not help.
    #[error("no identity issued: {0}")]
    Denied(String),
    /// The authority cannot be reached. Ask again.
    #[error("the authority is not available: {0}")]
    Unavailable(String),
}

impl From<CertificateError> for AuthorityError {
    fn from(error: CertificateError) -> Self {
        Self::Invalid(error.into())
    }
}

impl AuthorityError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::Expired
                | Self::Crypto(_)
                | Self::Directory { .. }
                | Self::Invalid(_)
        )
    }
}
