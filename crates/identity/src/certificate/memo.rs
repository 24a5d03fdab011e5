//! Signatures of intermediate certificates that were verified before.
//!
//! Whether a key made a signature never changes, and every SVID of an hour has the same intermediate:
//! verifying it again for each took a quarter of the time of issuing one. Only what was signed by a bundle's
//! authority is remembered, so that no other certificate can push it out.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use super::Certificate;

/// Intermediates that are in use at once: of this slot and the next, of a few trust domains.
const MOST: usize = 8;

struct Signed {
    /// With signature and algorithm.
    certificate: Box<[u8]>,
    /// The signer's SubjectPublicKeyInfo.
    key: Box<[u8]>,
}

/// Held for a search or a push, never over a verification: two that verify the same one at once remember it
/// twice, which costs a place and nothing else.
static VERIFIED: Mutex<VecDeque<Signed>> = Mutex::new(VecDeque::new());

/// [`Certificate::is_signed_by`] for a certificate authority's certificate.
pub(super) fn is_signed_by(
    certificate: &Certificate<'_>,
    issuer: &Certificate<'_>,
) -> Result<(), &'static str> {
    let (der, key) = (certificate.0.as_raw(), issuer.0.public_key().raw);
    let verified = || VERIFIED.lock().unwrap_or_else(PoisonError::into_inner);
    // The same bytes have the same issuer's name, so this says all that the full check does.
    let same_name = certificate.0.issuer().as_raw() == issuer.0.subject().as_raw();
    if same_name && verified().iter().any(|known| *known.certificate == *der && *known.key == *key) {
        return Ok(());
    }
    certificate.is_signed_by(issuer)?;
    let mut verified = verified();
    if verified.len() >= MOST {
        verified.pop_front();
    }
    verified.push_back(Signed { certificate: der.into(), key: key.into() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    fn named(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    #[test]
    fn what_was_verified_says_nothing_about_other_bytes_keys_and_names() {
        let root = |name| CertifiedIssuer::self_signed(named(name), KeyPair::generate().unwrap()).unwrap();
        let (ours, same_name, other_name) = (root("root"), root("root"), root("other"));
        let signed = named("intermediate").signed_by(&KeyPair::generate().unwrap(), &ours).unwrap();
        let mut forged = signed.der().to_vec();
        // The last byte belongs to the signature.
        *forged.last_mut().unwrap() ^= 1;
        let certificate = Certificate::parse(signed.der(), 0).unwrap();
        let forged = Certificate::parse(&forged, 0).unwrap();
        for _ in 0..2 {
            assert_eq!(is_signed_by(&certificate, &Certificate::parse(ours.der(), 0).unwrap()), Ok(()));
            assert!(is_signed_by(&forged, &Certificate::parse(ours.der(), 0).unwrap()).is_err());
            assert!(is_signed_by(&certificate, &Certificate::parse(same_name.der(), 0).unwrap()).is_err());
            assert!(is_signed_by(&certificate, &Certificate::parse(other_name.der(), 0).unwrap()).is_err());
        }
    }

    #[test]
    fn it_does_not_grow() {
        let root = CertifiedIssuer::self_signed(named("root"), KeyPair::generate().unwrap()).unwrap();
        let signer = Certificate::parse(root.der(), 0).unwrap();
        for i in 0..2 * MOST {
            let key = KeyPair::generate().unwrap();
            let signed = named(&format!("intermediate {i}")).signed_by(&key, &root).unwrap();
            assert_eq!(is_signed_by(&Certificate::parse(signed.der(), 0).unwrap(), &signer), Ok(()));
        }
        assert!(VERIFIED.lock().unwrap().len() <= MOST);
    }
}
