//! The X509-SVID standard's rules for certificates. Times are passed in.

mod error;
mod memo;

pub use error::{CertificateError, MAX_CHAIN};

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::{
    error::X509Error,
    extensions::{GeneralName, KeyUsage, ParsedExtension, X509Extension},
    oid_registry,
    prelude::{FromDer, X509Certificate},
};

use crate::id::{SpiffeId, TrustDomain};

/// What a chain has to lead to.
#[derive(Clone, Copy)]
pub(crate) struct Roots<'a> {
    /// Theirs, and so the leaf's.
    pub trust_domain: &'a TrustDomain,
    /// Self-signed certificates that [`Certificate::check_root`] has passed.
    pub authorities: &'a [CertificateDer<'static>],
}

/// A certificate that was read as a whole. Reading checks no rule; each rule is a method.
pub struct Certificate<'a>(X509Certificate<'a>);

impl<'a> Certificate<'a> {
    /// Reads one certificate that fills `der` completely.
    pub fn parse(der: &'a [u8], position: usize) -> Result<Self, CertificateError> {
        let malformed = |reason: String| CertificateError::Malformed { position, reason };
        // The parser takes other tags for a sequence's, and these bytes are outside the signature.
        if der.first() != Some(&0x30) {
            return Err(malformed("it is no DER sequence".to_owned()));
        }
        match X509Certificate::from_der(der) {
            Ok(([], certificate))
                if certificate.signature_algorithm != certificate.tbs_certificate.signature =>
            {
                // RFC 5280 §4.1.1.2.
                Err(malformed("it names two signature algorithms".to_owned()))
            }
            Ok(([], certificate)) => Ok(Self(certificate)),
            Ok((rest, _)) => Err(malformed(format!("{} bytes follow it", rest.len()))),
            Err(error) => Err(malformed(error.to_string())),
        }
    }
}

impl Certificate<'_> {
    /// The rules for a leaf: X509-SVID §2 (ID, SAN), §4.1 (basic constraints), §4.3 (key usage), §4.4
    /// (extended key usage), §5.2 (what a validator must reject). basicConstraints may be absent, which says
    /// the same as cA false.
    fn check_leaf(&self) -> Result<SpiffeId, CertificateError> {
        let leaf = &self.0;
        check_extensions(leaf)?;
        let found = is_ca(leaf)?;
        if found {
            return Err(CertificateError::BasicConstraints { found, expected: false });
        }
        let usage = key_usage(leaf)?.ok_or(CertificateError::KeyUsage("the extension is missing"))?;
        if !usage.critical {
            return Err(CertificateError::KeyUsage("the extension is not critical"));
        }
        if usage.bits.key_cert_sign() || usage.bits.crl_sign() {
            return Err(CertificateError::KeyUsage("a leaf must not have keyCertSign or cRLSign"));
        }
        if !usage.bits.digital_signature() {
            return Err(CertificateError::KeyUsage("a leaf must have digitalSignature"));
        }
        check_extended_usage(leaf)?;
        let (id, critical) = uri_san(leaf)?.ok_or(CertificateError::UriCount { count: 0 })?;
        if critical != (leaf.subject().iter().next().is_none()) {
            return Err(CertificateError::SanCriticality { critical });
        }
        if id.is_trust_domain() {
            return Err(CertificateError::RootPath(id));
        }
        Ok(id)
    }

    /// The rules for a signing certificate between leaf and root: X509-SVID §3.2, §4.1, §4.3. An ID is
    /// recommended, not demanded; if there is one, it is the trust domain's.
    pub fn check_signing(&self, trust_domain: &TrustDomain) -> Result<(), CertificateError> {
        self.check_root(trust_domain)?;
        let usage = key_usage(&self.0)?.ok_or(CertificateError::KeyUsage("the extension is missing"))?;
        if !usage.critical {
            return Err(CertificateError::KeyUsage("the extension is not critical"));
        }
        // Bits 5 and 6 are keyCertSign and cRLSign (RFC 5280 §4.2.1.3).
        if usage.bits.flags & !0b110_0000 != 0 {
            return Err(CertificateError::KeyUsage("a signing certificate has only keyCertSign and cRLSign"));
        }
        Ok(())
    }

    /// The rules for a trust anchor. They are those of [`check_signing`](Self::check_signing) as far as
    /// other tools' roots can be expected to keep them: key usage may be missing or hold more than
    /// keyCertSign.
    pub fn check_root(&self, trust_domain: &TrustDomain) -> Result<(), CertificateError> {
        let root = &self.0;
        check_extensions(root)?;
        let found = is_ca(root)?;
        if !found {
            return Err(CertificateError::BasicConstraints { found, expected: true });
        }
        if key_usage(root)?.is_some_and(|usage| !usage.bits.key_cert_sign()) {
            return Err(CertificateError::KeyUsage("a signing certificate must have keyCertSign"));
        }
        if let Some((id, _)) = uri_san(root)? {
            if !id.is_trust_domain() {
                return Err(CertificateError::SigningPath(id));
            }
            if id.trust_domain() != trust_domain {
                let (expected, found) = (trust_domain.clone(), id.trust_domain().clone());
                return Err(CertificateError::OtherTrustDomain { expected, found });
            }
        }
        Ok(())
    }

    /// basicConstraints' pathLenConstraint.
    pub fn path_length(&self) -> Option<u32> {
        self.0
            .basic_constraints()
            .ok()
            .flatten()
            .and_then(|constraints| constraints.value.path_len_constraint)
    }

    /// Whether the certificate is for this key.
    pub fn has_key(&self, public_key: &[u8]) -> bool {
        &*self.0.public_key().subject_public_key.data == public_key
    }

    /// Whether the key is of a kind that this program signs and verifies with: P-256, P-384 or RSA.
    pub fn has_supported_key(&self) -> bool {
        let kind = &self.0.public_key().algorithm;
        if kind.algorithm == oid_registry::OID_PKCS1_RSAENCRYPTION {
            return true;
        }
        let curve = || kind.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        kind.algorithm == oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY
            && curve().is_some_and(|c| c == oid_registry::OID_EC_P256 || c == oid_registry::OID_NIST_EC_P384)
    }

    /// Not before, not after. Times before 1970 become 1970.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        let time = |seconds: i64| {
            let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            SystemTime::UNIX_EPOCH.checked_add(seconds).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let validity = self.0.validity();
        (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()))
    }

    /// The serial number, lower-case hexadecimal without a leading zero byte.
    pub(crate) fn serial_hex(&self) -> String {
        let raw = self.0.raw_serial();
        let raw = match raw {
            [0, rest @ ..] if !rest.is_empty() => rest,
            _ => raw,
        };
        raw.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn check_validity(&self, position: usize, now: SystemTime) -> Result<(), CertificateError> {
        let (not_before, not_after) = self.validity();
        let problem = if now < not_before {
            "it is not valid yet; check the clocks"
        } else if now > not_after {
            "it has expired"
        } else {
            return Ok(());
        };
        Err(CertificateError::Validity { position, problem })
    }

    /// Whether `issuer`'s key made this signature; else why not. SHA-1 is refused, which the parser's library
    /// still accepts.
    pub fn is_signed_by(&self, issuer: &Certificate<'_>) -> Result<(), &'static str> {
        if self.0.issuer().as_raw() != issuer.0.subject().as_raw() {
            return Err("its issuer is another name");
        }
        let algorithm = &self.0.signature_algorithm.algorithm;
        if *algorithm == oid_registry::OID_PKCS1_SHA1WITHRSA || *algorithm == oid_registry::OID_SHA1_WITH_RSA
        {
            return Err("the signature uses SHA-1");
        }
        self.0.verify_signature(Some(issuer.0.public_key())).map_err(|why| match why {
            // Nothing was verified: it is not forged.
            X509Error::SignatureUnsupportedAlgorithm => {
                "the signature is of a kind that is not supported (ECDSA on P-256 or P-384, and RSA, are)"
            }
            _ => "the signature does not verify",
        })
    }
}

/// Cuts certificates that follow one another. Each is read once, so that garbage is refused here.
pub(crate) fn split(mut der: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let mut found = Vec::new();
    while !der.is_empty() {
        if found.len() == most {
            return Err(CertificateError::TooMany);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| {
            CertificateError::Malformed { position: found.len(), reason: error.to_string() }
        })?;
        found.push(CertificateDer::from(certificate.as_raw().to_vec()));
        der = rest;
    }
    Ok(found)
}

/// RFC 5280 §4.2: no extension twice, no unknown critical one, none that cannot be read.
fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
    let fail = |extension: &X509Extension<'_>, problem| {
        Err(CertificateError::Extension { oid: extension.oid.to_id_string(), problem })
    };
    let extensions = certificate.extensions();
    for (index, extension) in extensions.iter().enumerate() {
        if extensions.iter().take(index).any(|other| other.oid == extension.oid) {
            return fail(extension, "occurs twice");
        }
        match extension.parsed_extension() {
            ParsedExtension::ParseError { .. } => return fail(extension, "cannot be read"),
            // Name and policy constraints are not evaluated here, so a critical one must not be passed over.
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_)
            | ParsedExtension::SubjectKeyIdentifier(_)
            | ParsedExtension::AuthorityKeyIdentifier(_) => {}
            _ if extension.critical => return fail(extension, "is critical and not known here"),
            _ => {}
        }
    }
    Ok(())
}

/// basicConstraints' cA.
fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, CertificateError> {
    let constraints = certificate.basic_constraints().map_err(|_| CertificateError::Extension {
        oid: oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS.to_id_string(),
        problem: "cannot be read",
    })?;
    Ok(constraints.is_some_and(|constraints| constraints.value.ca))
}

struct Usage<'a> {
    bits: &'a KeyUsage,
    critical: bool,
}

fn key_usage<'a>(certificate: &'a X509Certificate<'_>) -> Result<Option<Usage<'a>>, CertificateError> {
    let usage =
        certificate.key_usage().map_err(|_| CertificateError::KeyUsage("the extension cannot be read"))?;
    Ok(usage.map(|usage| Usage { bits: usage.value, critical: usage.critical }))
}

fn check_extended_usage(leaf: &X509Certificate<'_>) -> Result<(), CertificateError> {
    match leaf.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.server_auth && usage.value.client_auth => Ok(()),
        _ => Err(CertificateError::ExtendedKeyUsage),
    }
}

/// The one URI SAN with the extension's criticality; `None` when there is no URI at all.
fn uri_san(certificate: &X509Certificate<'_>) -> Result<Option<(SpiffeId, bool)>, CertificateError> {
    let san = certificate.subject_alternative_name().map_err(|_| CertificateError::Extension {
        oid: oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME.to_id_string(),
        problem: "cannot be read",
    })?;
    let Some(san) = san else { return Ok(None) };
    let mut uris = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (None, _) => Ok(None),
        (Some(uri), 0) => Ok(Some((uri.parse()?, san.critical))),
        (Some(_), more) => Err(CertificateError::UriCount { count: more + 1 }),
    }
}

/// Reads a chain, leaf first.
pub(crate) fn parse_chain<'a>(
    chain: &'a [CertificateDer<'_>],
) -> Result<Vec<Certificate<'a>>, CertificateError> {
    if chain.len() > MAX_CHAIN {
        return Err(CertificateError::TooMany);
    }
    chain.iter().enumerate().map(|(position, der)| Certificate::parse(der, position)).collect()
}

/// The rules for a leaf and for those that sign it; the leaf's ID.
pub(crate) fn check_chain(chain: &[Certificate<'_>]) -> Result<SpiffeId, CertificateError> {
    let (leaf, signers) = chain.split_first().ok_or(CertificateError::Empty)?;
    let id = leaf.check_leaf()?;
    signers.iter().try_for_each(|signer| signer.check_signing(id.trust_domain()))?;
    Ok(id)
}

/// See [`crate::svid::verify_chain`].
pub(crate) fn verify_chain(
    chain: &[CertificateDer<'_>],
    roots: Roots<'_>,
    now: SystemTime,
) -> Result<SpiffeId, CertificateError> {
    let parsed = parse_chain(chain)?;
    let id = check_chain(&parsed)?;
    verify(&parsed, &id, roots, now)?;
    Ok(id)
}

/// The path of a chain that [`check_chain`] has found to be this ID's.
pub(crate) fn verify(
    parsed: &[Certificate<'_>],
    id: &SpiffeId,
    roots: Roots<'_>,
    now: SystemTime,
) -> Result<(), CertificateError> {
    if id.trust_domain() != roots.trust_domain {
        let (expected, found) = (roots.trust_domain.clone(), id.trust_domain().clone());
        return Err(CertificateError::OtherTrustDomain { expected, found });
    }
    for (position, certificate) in parsed.iter().enumerate() {
        certificate.check_validity(position, now)?;
        // Between this one and the leaf stand `position - 1` signing certificates (RFC 5280 §4.2.1.9).
        if position > 0 && certificate.path_length().is_some_and(|most| position - 1 > most as usize) {
            let reason = "the signer's pathLenConstraint allows no such chain";
            return Err(CertificateError::Untrusted {
                position: position - 1,
                signer: "the next one",
                reason,
            });
        }
    }
    for (position, (certificate, issuer)) in parsed.iter().zip(parsed.iter().skip(1)).enumerate() {
        certificate.is_signed_by(issuer).map_err(|reason| CertificateError::Untrusted {
            position,
            signer: "the next one",
            reason,
        })?;
    }
    let last = parsed.last().ok_or(CertificateError::Empty)?;
    let position = parsed.len() - 1;
    if position > 0 && roots.authorities.iter().any(|root| root.as_ref() == last.0.as_raw()) {
        return Ok(());
    }
    let mut reason = "no authority of that name is in it";
    for (index, root) in roots.authorities.iter().enumerate() {
        let root = Certificate::parse(root, index)?;
        if root.0.subject().as_raw() != last.0.issuer().as_raw() {
            continue;
        }
        // A leaf is another one each time; its signer is the same for hours.
        let signed = if position > 0 { memo::is_signed_by(last, &root) } else { last.is_signed_by(&root) };
        let checked = signed.and_then(|()| {
            if root.check_validity(index, now).is_err() {
                Err("the authority is not valid now")
            } else if root.path_length().is_some_and(|most| position > most as usize) {
                Err("the authority's pathLenConstraint allows no such chain")
            } else {
                Ok(())
            }
        });
        match checked {
            Ok(()) => return Ok(()),
            Err(why) => reason = why,
        }
    }
    Err(CertificateError::Untrusted { position, signer: "the bundle", reason })
}
