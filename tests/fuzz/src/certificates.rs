//! Certificates: a bundle is what it was made of, and no chain passes whose leaf the authority has not
//! signed.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arbitrary::Unstructured;
use rustls_pki_types::CertificateDer;
use seamount_authority::new_key_and_csr;
use seamount_identity::KeyType;
use seamount_identity::svid::{MAX_CHAIN, verify_chain};
use seamount_identity::{PrivateKey, TrustDomain, X509Bundle, X509Svid};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::input::{self, Patches};

/// Made once by `fixtures/make.sh`, valid until 2126; the keys are gone.
const ROOT: &[u8] = include_bytes!("../fixtures/root.der");
const SIGNER: &[u8] = include_bytes!("../fixtures/signer.der");
const LEAF: &[u8] = include_bytes!("../fixtures/leaf.der");

static KEY: LazyLock<PrivateKey> = LazyLock::new(|| new_key_and_csr(KeyType::EcP256).unwrap().0);
static BUNDLE: LazyLock<X509Bundle> =
    LazyLock::new(|| X509Bundle::new(domain(), [CertificateDer::from(ROOT)]).unwrap());

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

/// 2030.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_893_456_000)
}

/// 0: DER of a bundle. 1: PEM. 2: DER of a chain. 3: the good chain, changed. 4: a private key.
pub fn run(data: &[u8]) {
    let (kind, rest) = input::kind(data, 5);
    match kind {
        0 => bundle(X509Bundle::from_der(domain(), rest).ok()),
        1 => {
            if let Ok(text) = str::from_utf8(rest) {
                bundle(X509Bundle::from_pem(domain(), text).ok());
            }
        }
        2 => chain(rest),
        3 => drop(changed(&mut Unstructured::new(rest))),
        _ => {
            if let Ok(key) = PrivateKey::from_pkcs8_der(rest) {
                assert_eq!(key.expose_pkcs8_der(), rest);
                assert_eq!(format!("{key:?}"), "PrivateKey(…)");
            }
        }
    }
}

fn bundle(bundle: Option<X509Bundle>) {
    let Some(bundle) = bundle else { return };
    assert!((1..=256).contains(&bundle.authorities().len()));
    assert_eq!(X509Bundle::from_der(domain(), &bundle.der()).as_ref(), Ok(&bundle));
    assert_eq!(X509Bundle::from_pem(domain(), &bundle.pem()).as_ref(), Ok(&bundle));
    for der in bundle.authorities() {
        let (rest, certificate) = X509Certificate::from_der(der).unwrap();
        assert!(rest.is_empty() && certificate.is_ca());
    }
}

/// The chain without a key that fits; and against the bundle.
fn chain(der: &[u8]) {
    // Our key is not the leaf's: all rules are checked before that is found out.
    let why =
        X509Svid::parse(der, KEY.clone()).expect_err("nobody has a certificate for this key").to_string();
    assert!(!why.is_empty() && why.len() < 4096, "{} bytes", why.len());
    let mut certificates = Vec::new();
    let mut rest = der;
    while let Ok((after, certificate)) = X509Certificate::from_der(rest) {
        certificates.push(CertificateDer::from(certificate.as_raw().to_vec()));
        if after.is_empty() || certificates.len() > MAX_CHAIN + 1 {
            break;
        }
        rest = after;
    }
    check(&certificates);
}

/// A chain that passes has a leaf that was signed, word for word.
fn check(certificates: &[CertificateDer<'_>]) {
    let verified = verify_chain(certificates, &BUNDLE, now());
    // What was verified is remembered: it must not matter.
    assert_eq!(verify_chain(certificates, &BUNDLE, now()), verified);
    let Ok(id) = verified else { return };
    assert!(certificates.len() <= MAX_CHAIN);
    let signed = |der: &[u8]| X509Certificate::from_der(der).unwrap().1.tbs_certificate.as_ref().to_vec();
    assert_eq!(signed(&certificates[0]), signed(LEAF), "a leaf that nobody signed");
    assert_eq!(id.as_str(), "spiffe://example.org/ns/shop/sa/cart");
    for long_ago in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(6_000_000_000)] {
        assert!(verify_chain(certificates, &BUNDLE, long_ago).is_err());
    }
    let other = X509Bundle::new("example.com".parse().unwrap(), [CertificateDer::from(ROOT)]);
    assert!(other.is_err() || verify_chain(certificates, &other.unwrap(), now()).is_err());
}

fn changed(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut parts = [LEAF.to_vec(), SIGNER.to_vec(), ROOT.to_vec()];
    let count = u.int_in_range(1..=3)?;
    for part in &mut parts {
        u.arbitrary::<Patches>()?.apply(part);
    }
    let parts: Vec<_> = parts.iter().take(count).map(|der| CertificateDer::from(der.as_slice())).collect();
    if parts.iter().all(|der| X509Certificate::from_der(der).is_ok()) {
        check(&parts);
    }
    chain(&parts.iter().flat_map(|der| der.iter().copied()).collect::<Vec<u8>>());
    Ok(())
}
