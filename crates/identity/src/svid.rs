//! X.509-SVIDs (X509-SVID standard).

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;
use zeroize::Zeroizing;

use crate::{
    bundle::X509Bundle,
    certificate::{self, CertificateError},
    id::SpiffeId,
    keys::KeyPair,
};

pub use crate::certificate::MAX_CHAIN;

/// Why certificates and a key are not an X.509-SVID, or not a trusted one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The certificates.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The key is not a PKCS#8 key of a kind that we know.
    #[error("the private key is not PKCS#8 DER of an ECDSA P-256, ECDSA P-384 or RSA key")]
    Key,
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the leaf certificate of {0}")]
    KeyMismatch(SpiffeId),
}

/// A private key as PKCS#8 DER. It cannot be printed and is wiped when dropped.
#[derive(Clone)]
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    /// The public half as a certificate holds it: reading the private one again costs as much as signing.
    public: Box<[u8]>,
}

impl PrivateKey {
    /// Takes unencrypted PKCS#8 DER of an ECDSA P-256, ECDSA P-384 or RSA key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, SvidError> {
        let pair = KeyPair::from_pkcs8(der).map_err(|_| SvidError::Key)?;
        Ok(Self::of_pair(&pair, Zeroizing::new(der.to_vec())))
    }

    /// The PKCS#8 DER of a key pair that is at hand.
    pub(crate) fn of_pair(pair: &KeyPair, pkcs8: Zeroizing<Vec<u8>>) -> Self {
        Self { pkcs8, public: pair.public_key().into() }
    }

    /// The public key as it stands in a certificate's `subjectPublicKey`.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// The PKCS#8 DER. Whoever copies it wipes the copy.
    pub fn expose_pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
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

    /// Who this is.
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
        certificate::parse(der, 1).ok().map(|issuer| certificate::validity(&issuer))
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
    fn of(chain: &[X509Certificate<'_>], key: &PrivateKey) -> Result<Self, SvidError> {
        let id = certificate::check_chain(chain)?;
        let leaf = chain.first().ok_or(CertificateError::Empty)?;
        if !certificate::has_key(leaf, key.public_key()) {
            return Err(SvidError::KeyMismatch(id));
        }
        let (not_before, not_after) = certificate::validity(leaf);
        Ok(Self { id, not_before, not_after, serial: certificate::serial_hex(leaf) })
    }
}

/// Validates a peer's chain, leaf first, against the bundle of its trust domain at `now` and says who the
/// peer is (X509-SVID §5).
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    bundle: &X509Bundle,
    now: SystemTime,
) -> Result<SpiffeId, CertificateError> {
    certificate::verify_chain(chain, bundle.roots(), now)
}

#[cfg(test)]
mod tests;
