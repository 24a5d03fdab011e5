//! The certificates that a server's certificate is verified against.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::file::{self, FileError};

/// The largest CA bundle, in bytes. A distribution's own has about 220 KiB.
const MAX: usize = 1024 * 1024;

/// Why there are no certificates to verify with.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not PEM.
    #[error("not PEM: {0}")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// A certificate that is none.
    #[error("not a CA certificate: {0}")]
    Certificate(#[source] rustls::Error),
    /// No certificate at all.
    #[error("has no certificate")]
    Empty,
}

/// A CA bundle. Such a file is replaced when its authority is rotated: make a new one from time to time.
#[derive(Debug, Clone)]
pub struct CaBundle(pub(crate) Arc<ClientConfig>);

impl CaBundle {
    /// From PEM certificates.
    ///
    /// # Errors
    /// Where one of them cannot be used, or none is there.
    pub fn pem(pem: &[u8]) -> Result<Self, CaError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(CaError::Pem)?).map_err(CaError::Certificate)?;
        }
        if roots.is_empty() {
            return Err(CaError::Empty);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(CaError::Certificate)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// From a file of PEM certificates.
    ///
    /// # Errors
    /// As [`pem`](Self::pem), and where the file cannot be read.
    pub fn file(path: &Path) -> Result<Self, CaError> {
        Self::pem(&file::read(path, MAX)?)
    }
}
