//! Each rule of the X509-SVID standard, named after its section, with a certificate that breaks just that
//! rule.

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair as RcgenKey, KeyUsagePurpose, SanType,
};

use super::*;
use crate::{id::TrustDomain, keys::KeyError};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// A correct CA's parameters.
fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![uri("spiffe://example.org")];
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + DAY).into();
    params
}

/// A correct leaf's parameters.
fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri("spiffe://example.org/ns/a/sa/b")];
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + DAY).into();
    params
}

struct Made {
    root: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
}

/// Root, perhaps intermediates (the root's neighbour first), leaf.
fn make(root: CertificateParams, intermediates: Vec<CertificateParams>, leaf: CertificateParams) -> Made {
    let root_key = RcgenKey::generate().unwrap();
    let root_der = root.self_signed(&root_key).unwrap().der().clone();
    let mut issuer = Issuer::new(root, root_key);
    let mut chain = Vec::new();
    for params in intermediates {
        let key = RcgenKey::generate().unwrap();
        chain.insert(0, params.signed_by(&key, &issuer).unwrap().der().clone());
        issuer = Issuer::new(params, key);
    }
    let key = RcgenKey::generate().unwrap();
    chain.insert(0, leaf.signed_by(&key, &issuer).unwrap().der().clone());
    Made { root: root_der, chain, key: PrivateKey::from_pkcs8_der(key.serialized_der()).unwrap() }
}

impl Made {
    fn svid(&self) -> Result<X509Svid, SvidError> {
        X509Svid::new(self.chain.clone(), self.key.clone())
    }

    fn verify_at(&self, now: SystemTime) -> Result<SpiffeId, CertificateError> {
        let bundle = X509Bundle::new(domain(), [self.root.clone()]).unwrap();
        verify_chain(&self.chain, &bundle, now)
    }

    fn verify(&self) -> Result<SpiffeId, CertificateError> {
        self.verify_at(SystemTime::now())
    }
}

/// What both constructor and verification say about a leaf that is wrong in one thing.
fn bad_leaf(change: impl FnOnce(&mut CertificateParams)) -> CertificateError {
    let mut params = leaf();
    change(&mut params);
    let made = make(ca("root"), vec![], params);
    let error = made.verify().unwrap_err();
    assert_eq!(made.svid().unwrap_err(), SvidError::Certificate(error.clone()));
    error
}

/// What both say about an intermediate that is wrong in one thing.
fn bad_signer(change: impl FnOnce(&mut CertificateParams)) -> CertificateError {
    let mut params = ca("intermediate");
    change(&mut params);
    let made = make(ca("root"), vec![params], leaf());
    let error = made.verify().unwrap_err();
    assert_eq!(made.svid().unwrap_err(), SvidError::Certificate(error.clone()));
    error
}

/// An extension written by hand.
fn extension(oid: &[u64], critical: bool, der: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, der.to_vec());
    extension.set_criticality(critical);
    extension
}

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SAN: &[u64] = &[2, 5, 29, 17];

fn san_der(uri: &str) -> Vec<u8> {
    let mut der = vec![0x30, uri.len() as u8 + 2, 0x86, uri.len() as u8];
    der.extend_from_slice(uri.as_bytes());
    der
}

#[test]
fn a_correct_svid() {
    for intermediates in [vec![], vec![ca("one")], vec![ca("one"), ca("two")]] {
        let made = make(ca("root"), intermediates, leaf());
        let svid = made.svid().unwrap();
        assert_eq!(svid.id().as_str(), "spiffe://example.org/ns/a/sa/b");
        assert_eq!(made.verify().unwrap(), *svid.id());
        assert_eq!(svid.chain().len(), made.chain.len());
        assert!(svid.not_before() < SystemTime::now() && SystemTime::now() < svid.not_after());
        let again = X509Svid::parse(&svid.chain_der(), svid.key().clone()).unwrap();
        assert_eq!(again.chain(), svid.chain());
        assert!(!svid.serial_hex().is_empty() && svid.serial_hex().len().is_multiple_of(2));
    }
}

#[test]
fn nothing_prints_a_key() {
    let svid = make(ca("root"), vec![], leaf()).svid().unwrap();
    assert_eq!(format!("{:?}", svid.key()), "PrivateKey(…)");
    assert!(!format!("{svid:?}").contains("PrivateKey"));
}

#[test]
fn x509_svid_2_exactly_one_uri_san() {
    let error = bad_leaf(|leaf| leaf.subject_alt_names.clear());
    assert_eq!(error, CertificateError::UriCount { count: 0 });
    let error = bad_leaf(|leaf| leaf.subject_alt_names.push(uri("https://example.org")));
    assert_eq!(error, CertificateError::UriCount { count: 2 });
    let error = bad_leaf(|leaf| leaf.subject_alt_names.push(uri("spiffe://example.org/c")));
    assert_eq!(error, CertificateError::UriCount { count: 2 });
}

#[test]
fn x509_svid_2_dns_sans_are_allowed() {
    let mut params = leaf();
    params.subject_alt_names.push(SanType::DnsName("a.example.org".try_into().unwrap()));
    assert!(make(ca("root"), vec![], params).verify().is_ok());
}

#[test]
fn x509_svid_2_uri_is_a_spiffe_id() {
    for bad in ["https://example.org/a", "spiffe://example.org/a/", "spiffe://example.org/%41", "spiffe:///a"]
    {
        let error = bad_leaf(|leaf| leaf.subject_alt_names = vec![uri(bad)]);
        assert!(matches!(error, CertificateError::Id(_)), "{bad}: {error}");
    }
}

#[test]
fn x509_svid_2_san_is_critical_exactly_when_the_subject_is_empty() {
    let mut params = leaf();
    params.distinguished_name = named("cart");
    assert!(make(ca("root"), vec![], params).verify().is_ok());

    let by_hand = |critical| {
        move |leaf: &mut CertificateParams| {
            leaf.subject_alt_names.clear();
            leaf.custom_extensions.push(extension(SAN, critical, &san_der("spiffe://example.org/a")));
        }
    };
    assert_eq!(bad_leaf(by_hand(false)), CertificateError::SanCriticality { critical: false });
    let error = bad_leaf(|leaf| {
        leaf.distinguished_name = named("cart");
        by_hand(true)(leaf);
    });
    assert_eq!(error, CertificateError::SanCriticality { critical: true });
}

#[test]
fn x509_svid_3_1_leaf_has_a_path() {
    let error = bad_leaf(|leaf| leaf.subject_alt_names = vec![uri("spiffe://example.org")]);
    assert!(matches!(error, CertificateError::RootPath(_)));
}

#[test]
fn x509_svid_3_2_signing_certificate_has_no_path_and_the_same_trust_domain() {
    let error = bad_signer(|signer| signer.subject_alt_names = vec![uri("spiffe://example.org/ca")]);
    assert!(matches!(error, CertificateError::SigningPath(_)));
    let error = bad_signer(|signer| signer.subject_alt_names = vec![uri("spiffe://other.org")]);
    assert!(matches!(error, CertificateError::OtherTrustDomain { .. }));
    let mut params = ca("intermediate");
    params.subject_alt_names.clear();
    assert!(make(ca("root"), vec![params], leaf()).verify().is_ok(), "an ID is recommended, not demanded");
}

#[test]
fn x509_svid_4_1_basic_constraints() {
    let error = bad_leaf(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(error, CertificateError::BasicConstraints { found: true, expected: false });
    let error = bad_signer(|signer| signer.is_ca = IsCa::ExplicitNoCa);
    assert_eq!(error, CertificateError::BasicConstraints { found: false, expected: true });
    let mut params = leaf();
    params.is_ca = IsCa::NoCa;
    assert!(make(ca("root"), vec![], params).verify().is_ok(), "absent says the same as false");
}

#[test]
fn x509_svid_4_3_key_usage_of_a_leaf() {
    let error = bad_leaf(|leaf| leaf.key_usages.clear());
    assert_eq!(error, CertificateError::KeyUsage("the extension is missing"));
    let error = bad_leaf(|leaf| {
        leaf.key_usages.clear();
        leaf.custom_extensions.push(extension(KEY_USAGE, false, &[3, 2, 7, 0x80]));
    });
    assert_eq!(error, CertificateError::KeyUsage("the extension is not critical"));
    let error = bad_leaf(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    assert_eq!(error, CertificateError::KeyUsage("a leaf must have digitalSignature"));
    for forbidden in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let error = bad_leaf(|leaf| leaf.key_usages.push(forbidden));
        assert_eq!(error, CertificateError::KeyUsage("a leaf must not have keyCertSign or cRLSign"));
    }
    let mut params = leaf();
    params.key_usages.extend([KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement]);
    assert!(make(ca("root"), vec![], params).verify().is_ok());
}

#[test]
fn x509_svid_4_3_key_usage_of_a_signing_certificate() {
    let error = bad_signer(|signer| signer.key_usages.clear());
    assert_eq!(error, CertificateError::KeyUsage("the extension is missing"));
    let error = bad_signer(|signer| signer.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_eq!(error, CertificateError::KeyUsage("a signing certificate must have keyCertSign"));
    let error = bad_signer(|signer| signer.key_usages.push(KeyUsagePurpose::DigitalSignature));
    assert_eq!(error, CertificateError::KeyUsage("a signing certificate has only keyCertSign and cRLSign"));
    let error = bad_signer(|signer| {
        signer.key_usages.clear();
        signer.custom_extensions.push(extension(KEY_USAGE, false, &[3, 2, 2, 0x04]));
    });
    assert_eq!(error, CertificateError::KeyUsage("the extension is not critical"));
}

#[test]
fn x509_svid_4_4_extended_key_usage() {
    let error = bad_leaf(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(error, CertificateError::ExtendedKeyUsage);
    let error = bad_leaf(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!(error, CertificateError::ExtendedKeyUsage);
    let mut params = leaf();
    params.extended_key_usages.clear();
    assert!(make(ca("root"), vec![], params).verify().is_ok(), "may be absent");
}

#[test]
fn rfc_5280_4_2_extensions() {
    let unknown = |critical| extension(&[1, 3, 6, 1, 4, 1, 99999, 1], critical, &[5, 0]);
    let error = bad_leaf(|leaf| leaf.custom_extensions.push(unknown(true)));
    assert!(matches!(error, CertificateError::Extension { problem: "is critical and not known here", .. }));
    let error = bad_leaf(|leaf| leaf.custom_extensions.extend([unknown(false), unknown(false)]));
    assert!(matches!(error, CertificateError::Extension { problem: "occurs twice", .. }));
    let mut params = leaf();
    params.custom_extensions.push(unknown(false));
    assert!(make(ca("root"), vec![], params).verify().is_ok());
}

#[test]
fn x509_svid_5_1_signature_of_each_certificate() {
    let good = make(ca("root"), vec![ca("one")], leaf());
    for position in 0..2 {
        let mut made = make(ca("root"), vec![ca("one")], leaf());
        made.root = good.root.clone();
        made.chain = good.chain.clone();
        let mut der = made.chain[position].to_vec();
        // The last byte belongs to the signature.
        *der.last_mut().unwrap() ^= 1;
        made.chain[position] = der.into();
        assert!(
            matches!(made.verify(), Err(CertificateError::Untrusted { position: at, .. }) if at == position)
        );
    }
}

#[test]
fn x509_svid_5_1_another_authority_with_the_same_name() {
    let mut made = make(ca("root"), vec![ca("one")], leaf());
    made.root = make(ca("root"), vec![], leaf()).root;
    assert!(matches!(
        made.verify(),
        Err(CertificateError::Untrusted { position: 1, signer: "the bundle", .. })
    ));
    made.root = make(ca("other"), vec![], leaf()).root;
    let reason = "no authority of that name is in it";
    assert_eq!(made.verify(), Err(CertificateError::Untrusted { position: 1, signer: "the bundle", reason }));
}

#[test]
fn x509_svid_5_1_bundle_of_the_leafs_trust_domain() {
    let mut params = ca("root");
    params.subject_alt_names.clear();
    let made = make(params, vec![], leaf());
    let bundle = X509Bundle::new("other.org".parse().unwrap(), [made.root.clone()]).unwrap();
    let error = verify_chain(&made.chain, &bundle, SystemTime::now()).unwrap_err();
    assert!(matches!(error, CertificateError::OtherTrustDomain { .. }));
}

#[test]
fn rfc_5280_6_order_and_missing_intermediate() {
    let made = make(ca("root"), vec![ca("one"), ca("two")], leaf());
    let bundle = X509Bundle::new(domain(), [made.root.clone()]).unwrap();
    let with = |order: &[usize]| {
        let chain: Vec<_> = order.iter().map(|at| made.chain[*at].clone()).collect();
        verify_chain(&chain, &bundle, SystemTime::now())
    };
    assert!(with(&[0, 1, 2]).is_ok());
    assert!(matches!(with(&[0, 2, 1]), Err(CertificateError::Untrusted { .. })));
    assert!(matches!(with(&[0, 2]), Err(CertificateError::Untrusted { .. })));
    assert!(matches!(with(&[0]), Err(CertificateError::Untrusted { .. })));
    assert!(matches!(with(&[1, 2]), Err(CertificateError::BasicConstraints { .. })), "a CA is no leaf");
    assert_eq!(with(&[]), Err(CertificateError::Empty));
}

#[test]
fn rfc_5280_4_2_1_9_path_length() {
    let limited = |name, length| {
        let mut params = ca(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        params
    };
    assert!(make(limited("root", 1), vec![limited("one", 0)], leaf()).verify().is_ok());
    let made = make(limited("root", 0), vec![ca("one")], leaf());
    assert!(matches!(made.verify(), Err(CertificateError::Untrusted { signer: "the bundle", .. })));
    let made = make(ca("root"), vec![limited("one", 0), ca("two")], leaf());
    assert!(matches!(made.verify(), Err(CertificateError::Untrusted { .. })));
}

#[test]
fn rfc_5280_4_1_2_5_validity_of_each_certificate() {
    let now = SystemTime::now();
    let made = make(ca("root"), vec![ca("one")], leaf());
    assert!(matches!(made.verify_at(now + 2 * DAY), Err(CertificateError::Validity { position: 0, .. })));
    assert!(matches!(made.verify_at(now - 2 * DAY), Err(CertificateError::Validity { position: 0, .. })));
    let mut short = ca("one");
    short.not_after = (now - DAY / 2).into();
    let made = make(ca("root"), vec![short.clone()], leaf());
    assert!(matches!(made.verify(), Err(CertificateError::Validity { position: 1, .. })));
    short.distinguished_name = named("root");
    assert!(matches!(make(short, vec![], leaf()).verify(), Err(CertificateError::Untrusted { .. })));
}

#[test]
fn the_key_is_the_leafs() {
    let made = make(ca("root"), vec![], leaf());
    let other = make(ca("root"), vec![], leaf());
    let error = X509Svid::new(made.chain, other.key).unwrap_err();
    assert!(matches!(error, SvidError::KeyMismatch(_)));
    assert!(matches!(PrivateKey::from_pkcs8_der(b"\x30\x00"), Err(KeyError::Unreadable)));
}

#[test]
fn chains_are_bounded_and_complete() {
    let made = make(ca("root"), vec![], leaf());
    let many = vec![made.chain[0].clone(); MAX_CHAIN + 1];
    assert!(matches!(
        X509Svid::new(many, made.key.clone()),
        Err(SvidError::Certificate(CertificateError::TooMany))
    ));
    assert!(matches!(
        X509Svid::new(vec![], made.key.clone()),
        Err(SvidError::Certificate(CertificateError::Empty))
    ));
    assert!(matches!(
        X509Svid::parse(&[], made.key.clone()),
        Err(SvidError::Certificate(CertificateError::Empty))
    ));
    let mut der = made.chain[0].to_vec();
    der.push(0);
    assert!(matches!(
        X509Svid::parse(&der, made.key.clone()),
        Err(SvidError::Certificate(CertificateError::Malformed { .. }))
    ));
    let joined = vec![CertificateDer::from(der)];
    assert!(matches!(
        X509Svid::new(joined, made.key),
        Err(SvidError::Certificate(CertificateError::Malformed { .. }))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = X509Bundle::from_der(domain(), &bytes);
        let _ = PrivateKey::from_pkcs8_der(&bytes);
        let _ = certificate::split(&bytes, MAX_CHAIN);
    }

    /// Whatever is changed of what was signed, the certificate does not verify; elsewhere it does not panic.
    #[test]
    fn no_changed_certificate_verifies(at in any::<proptest::sample::Index>(), flip in 1..=255u8) {
        static MADE: std::sync::LazyLock<Made> = std::sync::LazyLock::new(|| make(ca("root"), vec![], leaf()));
        let mut der = MADE.chain[0].to_vec();
        // Both sequences have a header of four bytes: tag, two bytes of length announced, two of length.
        let signed = 4..4 + 4 + usize::from(der[6]) * 256 + usize::from(der[7]);
        prop_assert_eq!((&der[..2], &der[4..6]), (&[0x30, 0x82][..], &[0x30, 0x82][..]));
        let at = at.index(der.len());
        der[at] ^= flip;
        let bundle = X509Bundle::new(domain(), [MADE.root.clone()]).unwrap();
        let verified = verify_chain(&[CertificateDer::from(der)], &bundle, SystemTime::now());
        prop_assert!(verified.is_err() || !signed.contains(&at), "byte {}", at);
    }
}
