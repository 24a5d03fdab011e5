//! Trust bundles: the CA certificates of a trust domain (SPIFFE Trust Domain and Bundle standard).

use std::{collections::BTreeMap, fmt, sync::Arc, time::SystemTime};

use rustls_pki_types::CertificateDer;

use crate::{
    certificate::{self, Certificate, CertificateError, Roots},
    id::TrustDomain,
};

/// Most certificates in one bundle; more is an attack or an accident.
pub const MAX_AUTHORITIES: usize = 256;

/// Why certificates are not a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Nothing in it: with such a bundle no peer can be verified.
    #[error("the bundle of {0} holds no certificate: give at least one CA certificate")]
    Empty(TrustDomain),
    /// One of the certificates is no certificate authority of this trust domain.
    #[error("certificate {position} of the bundle of {trust_domain} is no CA certificate: {reason}")]
    Certificate {
        /// The bundle's trust domain.
        trust_domain: TrustDomain,
        /// Counted from 0.
        position: usize,
        /// What is wrong with it.
        reason: CertificateError,
    },
    /// Not readable as certificates.
    #[error("the bundle of {trust_domain} cannot be read: {reason}")]
    Malformed {
        /// The bundle's trust domain.
        trust_domain: TrustDomain,
        /// What the parser says.
        reason: String,
    },
    /// X.509-SVID response: federated bundles must not contain the own trust domain.
    #[error("{0} is the own trust domain and cannot be federated with itself")]
    OwnFederated(TrustDomain),
}

/// The CA certificates of one trust domain: at least one, each with cA, none twice.
#[derive(Clone, PartialEq, Eq)]
pub struct X509Bundle {
    trust_domain: TrustDomain,
    authorities: Vec<CertificateDer<'static>>,
}

impl X509Bundle {
    /// A bundle of these certificates; doubles are dropped, the order stays.
    pub fn new(
        trust_domain: TrustDomain,
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut authorities: Vec<CertificateDer<'static>> = Vec::new();
        for (position, der) in certificates.into_iter().enumerate() {
            if position >= MAX_AUTHORITIES {
                let reason = format!("it holds more than {MAX_AUTHORITIES} certificates");
                return Err(BundleError::Malformed { trust_domain, reason });
            }
            let checked = Certificate::parse(&der, position)
                .and_then(|certificate| certificate.check_root(&trust_domain));
            if let Err(reason) = checked {
                return Err(BundleError::Certificate { trust_domain, position, reason });
            }
            if !authorities.contains(&der) {
                authorities.push(der);
            }
        }
        if authorities.is_empty() {
            return Err(BundleError::Empty(trust_domain));
        }
        Ok(Self { trust_domain, authorities })
    }

    /// From certificates' DER one after the other, as the Workload API carries them.
    pub fn from_der(trust_domain: TrustDomain, der: &[u8]) -> Result<Self, BundleError> {
        match certificate::split(der, MAX_AUTHORITIES) {
            Ok(certificates) => Self::new(trust_domain, certificates),
            Err(error) => Err(BundleError::Malformed { trust_domain, reason: error.to_string() }),
        }
    }

    /// From PEM; blocks that are no certificates are refused.
    pub fn from_pem(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        let malformed = |reason| BundleError::Malformed { trust_domain: trust_domain.clone(), reason };
        let blocks = pem::parse_many(text).map_err(|error| malformed(error.to_string()))?;
        if let Some(other) = blocks.iter().find(|block| block.tag() != "CERTIFICATE") {
            return Err(malformed(format!(
                "it holds a block {:?}; only CERTIFICATE is allowed",
                other.tag()
            )));
        }
        let certificates =
            blocks.into_iter().map(|block| CertificateDer::from(block.into_contents())).collect::<Vec<_>>();
        Self::new(trust_domain, certificates)
    }

    /// The trust domain whose certificates these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What a chain has to lead to.
    pub(crate) fn roots(&self) -> Roots<'_> {
        Roots { trust_domain: &self.trust_domain, authorities: &self.authorities }
    }

    /// The CA certificates.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// When each of them is valid, from and until.
    pub fn validities(&self) -> Vec<(SystemTime, SystemTime)> {
        let parsed =
            self.authorities().iter().enumerate().filter_map(|(i, der)| Certificate::parse(der, i).ok());
        parsed.map(|certificate| certificate.validity()).collect()
    }

    /// The certificates' DER one after the other.
    pub fn der(&self) -> Vec<u8> {
        self.authorities.iter().flat_map(|der| der.iter().copied()).collect()
    }

    /// The certificates as PEM.
    pub fn pem(&self) -> String {
        let blocks: Vec<_> =
            self.authorities.iter().map(|der| pem::Pem::new("CERTIFICATE", der.to_vec())).collect();
        pem::encode_many_config(&blocks, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
    }
}

impl fmt::Debug for X509Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Bundle({}, {} authorities)", self.trust_domain, self.authorities.len())
    }
}

/// The bundle of the own trust domain and those of federated ones, of which none is the own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleSet {
    own: Arc<X509Bundle>,
    /// Shared: every volume's answer holds a copy of the set.
    federated: Arc<BTreeMap<TrustDomain, Arc<X509Bundle>>>,
}

impl BundleSet {
    /// A set of the own bundle alone.
    pub fn new(own: impl Into<Arc<X509Bundle>>) -> Self {
        Self { own: own.into(), federated: Arc::default() }
    }

    /// Adds or replaces a federated bundle.
    pub fn with_federated(mut self, bundle: impl Into<Arc<X509Bundle>>) -> Result<Self, BundleError> {
        let bundle = bundle.into();
        if bundle.trust_domain == self.own.trust_domain {
            return Err(BundleError::OwnFederated(bundle.trust_domain.clone()));
        }
        Arc::make_mut(&mut self.federated).insert(bundle.trust_domain.clone(), bundle);
        Ok(self)
    }

    /// The own trust domain's bundle.
    pub fn own(&self) -> &X509Bundle {
        &self.own
    }

    /// The other trust domains' bundles, in the order of their names.
    pub fn federated(&self) -> impl Iterator<Item = &X509Bundle> {
        self.federated.values().map(AsRef::as_ref)
    }

    /// A trust domain's bundle, the own or a federated one.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&X509Bundle> {
        if self.own.trust_domain == *trust_domain {
            return Some(&self.own);
        }
        self.federated.get(trust_domain).map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests;
