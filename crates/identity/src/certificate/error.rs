//! What is wrong with a certificate.

use crate::id::{IdError, SpiffeId, TrustDomain};

/// Most certificates in a chain (the leaf and its intermediates). Real ones have two or three.
pub const MAX_CHAIN: usize = 16;

/// Why certificates are not those of an X.509-SVID, or not trusted ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not DER of a certificate.
    #[error("certificate {position} of the chain cannot be read: {reason}")]
    Malformed {
        /// 0 is the leaf.
        position: usize,
        /// What the parser says.
        reason: String,
    },
    /// No certificate at all.
    #[error("the chain holds no certificate")]
    Empty,
    /// More than [`MAX_CHAIN`].
    #[error("the chain holds more than {MAX_CHAIN} certificates")]
    TooMany,
    /// X509-SVID §2 and §5.2: exactly one URI SAN.
    #[error("the certificate has {count} URI SANs; an X.509-SVID has exactly one")]
    UriCount {
        /// How many there are.
        count: usize,
    },
    /// X509-SVID §2: the URI is not a SPIFFE ID.
    #[error("the certificate's URI SAN is not a SPIFFE ID: {0}")]
    Id(#[from] IdError),
    /// X509-SVID §5.2: a leaf names a workload.
    #[error("the leaf's SPIFFE ID {0} has no path: it names a trust domain, not a workload")]
    RootPath(SpiffeId),
    /// X509-SVID §3.2: a signing certificate's ID has no path.
    #[error("the signing certificate's SPIFFE ID {0} has a path; only a leaf may have one")]
    SigningPath(SpiffeId),
    /// The signing certificate is of another trust domain.
    #[error("the signing certificate is of trust domain {found}, the leaf of {expected}")]
    OtherTrustDomain {
        /// The leaf's.
        expected: TrustDomain,
        /// The signer's.
        found: TrustDomain,
    },
    /// X509-SVID §2 (RFC 5280 §4.2.1.6): critical if and only if the subject is empty.
    #[error("the SAN extension must be critical exactly when the subject is empty (critical: {critical})")]
    SanCriticality {
        /// What the certificate says.
        critical: bool,
    },
    /// X509-SVID §4.1: a leaf with cA, or a signing certificate without.
    #[error("basicConstraints cA is {found}, must be {expected}")]
    BasicConstraints {
        /// What the certificate says.
        found: bool,
        /// What its place in the chain demands.
        expected: bool,
    },
    /// X509-SVID §4.3: key usage missing, not critical, or with wrong bits.
    #[error("key usage: {0}")]
    KeyUsage(&'static str),
    /// X509-SVID §4.4: extended key usage without serverAuth or clientAuth.
    #[error("extended key usage must hold both serverAuth and clientAuth when it is present")]
    ExtendedKeyUsage,
    /// RFC 5280 §4.2: a critical extension that we do not know, or one that comes twice.
    #[error("extension {oid}: {problem}")]
    Extension {
        /// Its object identifier.
        oid: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Outside its validity.
    #[error("certificate {position} of the chain is not valid now: {problem}")]
    Validity {
        /// 0 is the leaf.
        position: usize,
        /// Expired or not yet valid.
        problem: &'static str,
    },
    /// X509-SVID §5.1: no path from the leaf to the bundle.
    #[error("certificate {position} of the chain is not signed by {signer}: {reason}")]
    Untrusted {
        /// 0 is the leaf.
        position: usize,
        /// The one that should have signed it.
        signer: &'static str,
        /// Why not.
        reason: &'static str,
    },
}
