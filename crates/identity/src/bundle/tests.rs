//! Bundles: the rules of the SPIFFE Trust Domain and Bundle standard that concern X.509.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

use super::*;

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn certificate(is_ca: IsCa) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
}

fn ca() -> CertificateDer<'static> {
    certificate(IsCa::Ca(BasicConstraints::Unconstrained))
}

#[test]
fn round_trips() {
    let bundle = X509Bundle::new(domain("example.org"), [ca(), ca()]).unwrap();
    assert_eq!(X509Bundle::from_der(domain("example.org"), &bundle.der()).unwrap(), bundle);
    assert_eq!(X509Bundle::from_pem(domain("example.org"), &bundle.pem()).unwrap(), bundle);
    assert_eq!(bundle.pem().matches("BEGIN CERTIFICATE").count(), 2);
}

#[test]
fn doubles_are_dropped() {
    let one = ca();
    let bundle = X509Bundle::new(domain("td"), [one.clone(), ca(), one]).unwrap();
    assert_eq!(bundle.authorities().len(), 2);
}

#[test]
fn only_certificate_authorities() {
    let error = X509Bundle::new(domain("td"), [ca(), certificate(IsCa::ExplicitNoCa)]).unwrap_err();
    assert!(matches!(error, BundleError::Certificate { position: 1, .. }), "{error}");
    assert_eq!(X509Bundle::new(domain("td"), []), Err(BundleError::Empty(domain("td"))));
    assert_eq!(X509Bundle::from_der(domain("td"), &[]), Err(BundleError::Empty(domain("td"))));
    assert!(X509Bundle::from_der(domain("td"), &[0x30, 1]).is_err());
}

#[test]
fn pem_of_something_else_is_refused_by_name() {
    let key = KeyPair::generate().unwrap().serialize_pem();
    let error = X509Bundle::from_pem(domain("td"), &key).unwrap_err().to_string();
    assert!(error.contains("PRIVATE KEY") && error.contains("only CERTIFICATE"), "{error}");
    assert!(X509Bundle::from_pem(domain("td"), "").is_err());
}

#[test]
fn bundles_are_bounded() {
    let error = X509Bundle::new(domain("td"), vec![ca(); MAX_AUTHORITIES + 1]).unwrap_err();
    assert!(matches!(error, BundleError::Malformed { .. }));
}

#[test]
fn federated_never_holds_the_own_trust_domain() {
    let own = X509Bundle::new(domain("own"), [ca()]).unwrap();
    let other = X509Bundle::new(domain("other"), [ca()]).unwrap();
    let set = BundleSet::new(own.clone()).with_federated(other.clone()).unwrap();
    assert_eq!(set.get(&domain("own")), Some(&own));
    assert_eq!(set.get(&domain("other")), Some(&other));
    assert_eq!(set.get(&domain("third")), None);
    assert_eq!(set.federated().count(), 1);
    assert_eq!(set.with_federated(own), Err(BundleError::OwnFederated(domain("own"))));
}
