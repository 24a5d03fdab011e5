//! A root from a directory: every form that is read, every mistake that is named.

use std::{fs, path::Path};

use aws_lc_rs::{
    encoding::{AsDer, EcPrivateKeyRfc5915Der},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use rcgen::{BasicConstraints, DistinguishedName, DnType, Issuer, KeyPair as RcgenKey};
use tempfile::TempDir;

use super::*;

fn ca() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Ärzte & Söhne");
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // As cert-manager makes them.
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    params.not_after = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + 30 * 24 * HOUR)).into();
    params
}

fn put(directory: &Path, certificate: &str, key: &str) {
    fs::write(directory.join("tls.crt"), certificate).unwrap();
    fs::write(directory.join("tls.key"), key).unwrap();
}

fn directory(params: &CertificateParams, key: &RcgenKey) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), &params.self_signed(key).unwrap().pem(), &key.serialize_pem());
    directory
}

fn open(directory: &Path, time: &Time) -> Result<Embedded, AuthorityError> {
    Embedded::with_clock(EmbeddedConfig { directory: Some(directory.into()), ..config() }, time.clock())
}

/// The error for a directory; every one must name its file.
fn error(directory: &Path, file: &str) -> String {
    match open(directory, &Time::new()) {
        Err(error @ AuthorityError::Directory { .. }) => {
            let text = error.to_string();
            assert!(text.contains(&directory.join(file).display().to_string()), "{text}");
            text
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn signs_below_the_loaded_root() {
    let time = Time::new();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256]
    {
        let key = RcgenKey::generate_for(algorithm).unwrap();
        let directory = directory(&ca(), &key);
        let authority = open(directory.path(), &time).unwrap();
        let pem = fs::read_to_string(directory.path().join("tls.crt")).unwrap();
        let root = seamount_identity::X509Bundle::from_pem(domain(), &pem).unwrap();
        assert_eq!(bundle(&authority), root);
        issue(&authority, KeyType::EcP256).verify(&root, time.now()).unwrap();
    }
}

#[test]
fn reads_sec1_and_pkcs1_keys() {
    let pem = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
    let key = RcgenKey::generate().unwrap();
    let made = directory(&ca(), &key);
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.serialized_der()).unwrap();
    let sec1: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
    // As OpenSSL writes it, with the parameters before the key.
    let parameters = pem("EC PARAMETERS", &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]);
    fs::write(made.path().join("tls.key"), parameters + &pem("EC PRIVATE KEY", sec1.as_ref())).unwrap();
    open(made.path(), &Time::new()).unwrap();

    let key = RcgenKey::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let made = directory(&ca(), &key);
    // PKCS#8 of RSA is 26 bytes of header before PKCS#1.
    fs::write(made.path().join("tls.key"), pem("RSA PRIVATE KEY", &key.serialized_der()[26..])).unwrap();
    open(made.path(), &Time::new()).unwrap();
}

#[test]
fn rotation_keeps_the_loaded_root_and_finds_a_new_one() {
    let time = Time::new();
    let made = directory(&ca(), &RcgenKey::generate().unwrap());
    let authority = open(made.path(), &time).unwrap();
    let first = issue(&authority, KeyType::EcP256);
    authority.tick(time.forward(12 * HOUR)).unwrap();
    assert!(authority.tick(time.forward(8 * HOUR)).unwrap().activated);
    assert_eq!(bundle(&authority).authorities().len(), 1, "one root all along");
    assert_ne!(issue(&authority, KeyType::EcP256).chain()[1], first.chain()[1]);

    let key = RcgenKey::generate().unwrap();
    put(made.path(), &ca().self_signed(&key).unwrap().pem(), &key.serialize_pem());
    assert!(authority.tick(time.forward(12 * HOUR)).unwrap().prepared);
    let known = bundle(&authority);
    assert_eq!(known.authorities().len(), 2);
    assert!(authority.tick(time.forward(8 * HOUR)).unwrap().activated);
    issue(&authority, KeyType::EcP256).verify(&known, time.now()).unwrap();
}

/// A directory that breaks later changes nothing: the last good authority signs on.
#[test]
fn a_broken_directory_keeps_the_last_good_authority() {
    let time = Time::new();
    let made = directory(&ca(), &RcgenKey::generate().unwrap());
    let authority = open(made.path(), &time).unwrap();
    fs::write(made.path().join("tls.crt"), "rubbish").unwrap();
    assert!(matches!(authority.tick(time.forward(12 * HOUR)), Err(AuthorityError::Directory { .. })));
    issue(&authority, KeyType::EcP256).verify(&bundle(&authority), time.now()).unwrap();
}

#[test]
fn the_intermediate_ends_with_the_root() {
    let time = Time::new();
    let mut params = ca();
    params.not_after = (time.now() + Duration::from_secs(2 * HOUR)).into();
    let made = directory(&params, &RcgenKey::generate().unwrap());
    assert_eq!(open(made.path(), &time).unwrap().active_until(), time.now() + Duration::from_secs(2 * HOUR));
}

#[test]
fn missing_and_unreadable_files() {
    let empty = tempfile::tempdir().unwrap();
    let text = error(empty.path(), "tls.crt");
    assert!(text.contains("No such file") && text.contains("mount a Secret"), "{text}");
    let made = directory(&ca(), &RcgenKey::generate().unwrap());
    fs::remove_file(made.path().join("tls.key")).unwrap();
    assert!(error(made.path(), "tls.key").contains("mount a Secret"));
    fs::write(made.path().join("tls.key"), vec![b'x'; 300 * 1024]).unwrap();
    assert!(error(made.path(), "tls.key").contains("larger than"));
}

#[test]
fn bad_certificates() {
    let now = Time::new().now();
    let key = RcgenKey::generate().unwrap();
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = ca();
        change(&mut params);
        error(directory(&params, &key).path(), "tls.crt")
    };
    let san = |uri: &str| vec![SanType::URI(uri.try_into().unwrap())];
    assert!(with(&|p| p.is_ca = IsCa::ExplicitNoCa).contains("make a CA certificate"));
    assert!(with(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]).contains("keyCertSign"));
    assert!(with(&|p| p.subject_alt_names = san("spiffe://other.org")).contains("other.org"));
    assert!(with(&|p| p.subject_alt_names = san("spiffe://example.org/x")).contains("has a path"));
    assert!(with(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))).contains("path length of 1"));
    assert!(with(&|p| p.not_after = now.into()).contains("has expired"));
    assert!(with(&|p| p.not_before = (now + Duration::from_secs(60)).into()).contains("not valid yet"));
}

/// Their key files alone would say it, too, but of the one the certificate was refused first, as "not
/// self-signed".
#[test]
fn a_key_of_another_kind_is_named_whatever_its_kind() {
    let good = RcgenKey::generate().unwrap();
    let said = [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512].map(|kind| {
        let key = RcgenKey::generate_for(kind).unwrap();
        let made = directory(&ca(), &key);
        let text = error(made.path(), "tls.crt").replace(&made.path().display().to_string(), "");
        // The one that is to sign next is refused before it does.
        let next = ca().self_signed(&key).unwrap().pem();
        put(made.path(), &(ca().self_signed(&good).unwrap().pem() + &next), &good.serialize_pem());
        assert!(error(made.path(), "tls.crt").contains("certificate 2 in it: its key is neither P-256"));
        text
    });
    assert!(said[0].contains("its key is neither P-256, P-384 nor RSA"), "{}", said[0]);
    assert_eq!(said[0], said[1]);
}

#[test]
fn bad_pem_in_the_certificate_file() {
    let key = RcgenKey::generate().unwrap();
    let made = directory(&ca(), &key);
    let file = made.path().join("tls.crt");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.repeat(17)).unwrap();
    assert!(error(made.path(), "tls.crt").contains("17 PEM blocks"));
    fs::write(&file, "hello").unwrap();
    assert!(error(made.path(), "tls.crt").contains("0 PEM blocks"));
    fs::write(&file, key.serialize_pem()).unwrap();
    assert!(error(made.path(), "tls.crt").contains("\"PRIVATE KEY\""));
    fs::write(&file, pem::encode(&pem::Pem::new("CERTIFICATE", b"x".to_vec()))).unwrap();
    assert!(error(made.path(), "tls.crt").contains("self-signed CA certificate"));
    // Signed by another CA: an intermediate is no root.
    let root_key = RcgenKey::generate().unwrap();
    let mut below = ca();
    below.distinguished_name.push(DnType::LocalityName, "below");
    let signed = below.signed_by(&key, &Issuer::new(ca(), root_key)).unwrap();
    fs::write(&file, signed.pem()).unwrap();
    assert!(error(made.path(), "tls.crt").contains("not self-signed"));
}

#[test]
fn bad_keys() {
    let key = RcgenKey::generate().unwrap();
    let made = directory(&ca(), &key);
    let file = made.path().join("tls.key");
    let with = |text: &str| {
        fs::write(&file, text).unwrap();
        error(made.path(), "tls.key")
    };
    assert!(with(&RcgenKey::generate().unwrap().serialize_pem()).contains("does not belong"));
    assert!(with("").contains("0 private keys"));
    assert!(with(&(key.serialize_pem() + &key.serialize_pem())).contains("2 private keys"));
    assert!(with(&pem::encode(&pem::Pem::new("PRIVATE KEY", b"x".to_vec()))).contains("cannot be read"));
    let encrypted = pem::encode(&pem::Pem::new("ENCRYPTED PRIVATE KEY", b"x".to_vec()));
    assert!(with(&encrypted).contains("unencrypted"));
    let ed = RcgenKey::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert!(with(&ed.serialize_pem()).contains("P-256, P-384 or RSA"));
    // What is wrong in a key file is never quoted.
    let secret = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PUBLIC KEY-----\n";
    assert!(!with(secret).contains("c2VjcmV0"));
}

#[test]
fn a_root_is_replaced_without_a_gap() {
    let time = Time::new();
    let (old, new) = (RcgenKey::generate().unwrap(), RcgenKey::generate().unwrap());
    let certificate = |key: &RcgenKey, name: &str| {
        let mut params = ca();
        params.distinguished_name.push(DnType::CommonName, name);
        params.self_signed(key).unwrap().pem()
    };
    let (of_old, of_new) = (certificate(&old, "old"), certificate(&new, "new"));
    let dir = tempfile::tempdir().unwrap();
    let signed = |authority: &Embedded| {
        let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
        X509Svid::new(authority.issue(&csr, &pod()).unwrap(), key).unwrap()
    };
    let trusts = |authority: &Embedded, svid: &X509Svid| {
        svid.verify(authority.bundles().borrow().own(), time.now()).is_ok()
    };
    // Nodes are never all of one step at the same time: each understands those of the step before and after
    // it.
    let steps: Vec<_> = [
        (of_old.clone(), &old),
        (format!("{of_old}{of_new}"), &old),
        (format!("{of_new}{of_old}"), &new),
        (of_new.clone(), &new),
    ]
    .into_iter()
    .map(|(certificates, key)| {
        put(dir.path(), &certificates, &key.serialize_pem());
        open(dir.path(), &time).unwrap()
    })
    .collect();
    for pair in steps.windows(2) {
        let (before, after) = (signed(&pair[0]), signed(&pair[1]));
        assert!(trusts(&pair[0], &after) && trusts(&pair[1], &before));
    }
    assert!(!trusts(&steps[3], &signed(&steps[0])), "the old root is out in the end");
    // The key is the first one's; whatever is beside it must be a root, too.
    put(dir.path(), &format!("{of_old}{of_new}"), &new.serialize_pem());
    assert!(error(dir.path(), "tls.key").contains("does not belong"));
    let mut foreign = ca();
    foreign.subject_alt_names = vec![SanType::URI("spiffe://elsewhere.org".try_into().unwrap())];
    let foreign = foreign.self_signed(&new).unwrap().pem();
    put(dir.path(), &format!("{of_old}{foreign}"), &old.serialize_pem());
    assert!(error(dir.path(), "tls.crt").contains("certificate 2"));
}
