//! What signs SVIDs: the interface of an authority, and the one inside the agent.

use std::{fmt, future::Future, path::PathBuf, pin::Pin, sync::Arc};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use seamount_identity::{
    BundleError, BundleSet, CertificateError, KeyPair, KeyType, PrivateKey, SvidError, TrustDomain,
};

mod embedded;
mod load;
mod signing_key;
mod template;

pub use embedded::{Clock, Done, Embedded, EmbeddedConfig};
pub use template::{IdTemplate, TemplateError};

use signing_key::SigningKey;

/// A boxed future, so that [`Authority`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The pod for which an SVID is asked, as its verified token describes it; never as the pod's author does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Service account's name.
    pub service_account: String,
    /// Pod's name.
    pub pod_name: String,
    /// Pod's UID.
    pub pod_uid: String,
    /// Name of the node that the pod runs on.
    pub node: String,
}

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

/// Signs SVIDs for pods of one trust domain and knows what to trust.
pub trait Authority: Send + Sync + 'static {
    /// The trust domain of its SVIDs.
    fn trust_domain(&self) -> &TrustDomain;

    /// CSR (PKCS#10 DER, made by the agent) and the pod's token → certificate chain, leaf first, without the
    /// root. Of the CSR nothing but the public key is taken.
    fn sign<'a>(
        &'a self,
        csr_der: &'a [u8],
        workload: &'a Workload,
        token: &'a str,
    ) -> BoxFuture<'a, Result<Vec<CertificateDer<'static>>, AuthorityError>>;

    /// The same for a key that this process has made. An authority outside is sent a request, which proves
    /// that the asker has the private key; one in this process sees it, and need not make and verify a
    /// signature for that.
    fn sign_key<'a>(
        &'a self,
        key: &'a NewKey,
        workload: &'a Workload,
        token: &'a str,
    ) -> BoxFuture<'a, Result<Vec<CertificateDer<'static>>, AuthorityError>> {
        Box::pin(async move { self.sign(&key.csr()?, workload, token).await })
    }

    /// What to trust now; the receiver is told of every change.
    fn bundles(&self) -> watch::Receiver<Arc<BundleSet>>;
}

/// A key for which an SVID is to be signed. A value of this type is proof that its holder has the private
/// key.
pub struct NewKey {
    pair: SigningKey,
    key: PrivateKey,
}

impl NewKey {
    /// Makes a key. An RSA key takes a tenth of a second and more: call this off the asynchronous threads.
    pub fn generate(key_type: KeyType) -> Result<Self, AuthorityError> {
        let (pair, key) =
            KeyPair::generate(key_type).map_err(|_| AuthorityError::Crypto("key generation"))?;
        Ok(Self { pair: SigningKey(pair), key })
    }

    /// A signing request (PKCS#10 DER). It has no name: the authority decides for which workload it is.
    pub fn csr(&self) -> Result<Vec<u8>, AuthorityError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params
            .serialize_request(&self.pair)
            .map_err(|_| AuthorityError::Crypto("signing a certificate request"))?;
        Ok(csr.der().to_vec())
    }

    /// The key, to be kept with its SVID.
    pub fn into_private_key(self) -> PrivateKey {
        self.key
    }

    /// The public half, for a certificate.
    fn public(&self) -> &impl rcgen::PublicKeyData {
        &self.pair
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey(…)")
    }
}

/// Makes a key and a signing request for it: [`NewKey::generate`] and [`NewKey::csr`].
pub fn new_key_and_csr(key_type: KeyType) -> Result<(PrivateKey, Vec<u8>), AuthorityError> {
    let key = NewKey::generate(key_type)?;
    let csr = key.csr()?;
    Ok((key.into_private_key(), csr))
}

#[cfg(test)]
mod tests;
