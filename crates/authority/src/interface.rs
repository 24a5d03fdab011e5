//! What every authority does.

use std::{future::Future, pin::Pin, sync::Arc};

use rustls_pki_types::CertificateDer;
use seamount_identity::{BundleSet, TrustDomain};
use tokio::sync::watch;

use crate::{error::AuthorityError, new_key::NewKey, workload::Workload};

/// A boxed future, so that [`Authority`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

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
