//! X.509-SVIDs (X509-SVID standard).

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;

use crate::{
    bundle::X509Bundle,
    certificate::{self, Certificate, CertificateError},
    id::SpiffeId,
    keys::PrivateKey,
};

pub use crate::certificate::MAX_CHAIN;

/// Why certificates and a key are not an X.509-SVID, or not a trusted one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The certificates.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the leaf certificate of {0}")]
    KeyMismatch(SpiffeId),
}

/// An X.509-SVID: a chain, leaf first and without the root, whose leaf keeps the rules of the X509-SVID
/// standard, and the leaf's private key.
#[derive(Clone)]
pub struct X509Svid {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl X509Svid {
    /// An SVID from its certificates, leaf first, and its key. Checks the leaf (§2, §4, §5.2), the signing
    /// certificates (§3, §4) and that the key is the leaf's. Signatures are checked by
    /// [`verify`](Self::verify), which needs a bundle.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, SvidError> {
        let parsed = certificate::parse_chain(&chain)?;
        let parts = Parts::of(&parsed, &key)?;
        Ok(Self::of_parts(parts, chain, key))
    }

    /// As [`new`](Self::new), and what [`verify`](Self::verify) does, with one reading of the certificates.
    pub fn new_verified(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
        bundle: &X509Bundle,
        now: SystemTime,
    ) -> Result<Self, SvidError> {
        let parsed = certificate::parse_chain(&chain)?;
        let parts = Parts::of(&parsed, &key)?;
        certificate::verify(&parsed, &parts.id, bundle.roots(), now)?;
        Ok(Self::of_parts(parts, chain, key))
    }

    fn of_parts(parts: Parts, chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Self {
        let Parts { id, not_before, not_after, serial } = parts;
        Self { id, chain, key, not_before, not_after, serial }
    }

    /// As [`new`](Self::new), from the certificates' DER one after the other, as the Workload API carries
    /// them.
    pub fn parse(chain_der: &[u8], key: PrivateKey) -> Result<Self, SvidError> {
        Self::new(certificate::split(chain_der, MAX_CHAIN)?, key)
    }

    /// Checks the whole path at `now`: every certificate's validity, every signature up to a certificate of
    /// `bundle`, names, path lengths (X509-SVID §5.1, RFC 5280 §6).
    pub fn verify(&self, bundle: &X509Bundle, now: SystemTime) -> Result<(), SvidError> {
        verify_chain(&self.chain, bundle, now).map(drop).map_err(SvidError::from)
    }

    /// The workload's ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificates, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificates' DER one after the other.
    pub fn chain_der(&self) -> Vec<u8> {
        self.chain.iter().flat_map(|der| der.iter().copied()).collect()
    }

    /// The leaf's private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// When the leaf begins to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the leaf ends to be valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the certificate that signed the leaf is valid, from and until; none where that is the root, which
    /// is not in the chain.
    pub fn issuer_validity(&self) -> Option<(SystemTime, SystemTime)> {
        let der = self.chain.get(1)?;
        Certificate::parse(der, 1).ok().map(|issuer| issuer.validity())
    }

    /// The leaf's serial number, lower-case hexadecimal.
    pub fn serial_hex(&self) -> &str {
        &self.serial
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let until = self.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        write!(f, "X509Svid({}, serial {}, until {} s)", self.id, self.serial, until.as_secs())
    }
}

/// What an SVID's leaf says.
struct Parts {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl Parts {
    fn of(chain: &[Certificate<'_>], key: &PrivateKey) -> Result<Self, SvidError> {
        let id = certificate::check_chain(chain)?;
        let leaf = chain.first().ok_or(CertificateError::Empty)?;
        if !leaf.has_key(key.public_key()) {
            return Err(SvidError::KeyMismatch(id));
        }
        let (not_before, not_after) = leaf.validity();
        Ok(Self { id, not_before, not_after, serial: leaf.serial_hex() })
    }
}

/// Validates a peer's chain, leaf first, against the bundle of its trust domain at `now`; the result is the
/// peer's ID (X509-SVID §5).
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    bundle: &X509Bundle,
    now: SystemTime,
) -> Result<SpiffeId, CertificateError> {
    certificate::verify_chain(chain, bundle.roots(), now)
}

#[cfg(test)]
mod tests;
