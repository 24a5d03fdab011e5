//! The embedded authority: what it signs, when it rotates, what it loads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, IsCa, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;
use seamount_identity::{BundleSet, CertificateError, KeyType, PrivateKey, SvidError, TrustDomain, X509Svid};
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

mod directory;

const HOUR: u64 = 3600;

/// A clock that tests turn.
#[derive(Clone)]
struct Time(Arc<AtomicU64>);

impl Time {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_800_000_000)))
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }

    fn forward(&self, seconds: u64) -> SystemTime {
        self.0.fetch_add(seconds, Ordering::SeqCst);
        self.now()
    }

    fn clock(&self) -> Clock {
        let time = self.clone();
        Arc::new(move || time.now())
    }
}

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn config() -> EmbeddedConfig {
    EmbeddedConfig {
        trust_domain: domain(),
        template: IdTemplate::parse(IdTemplate::DEFAULT, &domain()).unwrap(),
        key_type: KeyType::EcP256,
        ca_ttl: Duration::from_secs(24 * HOUR),
        svid_ttl: Duration::from_secs(HOUR),
        directory: None,
    }
}

fn pod() -> Workload {
    Workload {
        namespace: "shop".into(),
        service_account: "cart".into(),
        pod_name: "cart-1".into(),
        pod_uid: "u".into(),
        node: "n".into(),
    }
}

fn issue(authority: &Embedded, kind: KeyType) -> X509Svid {
    let (key, csr) = new_key_and_csr(kind).unwrap();
    X509Svid::new(authority.issue(&csr, &pod()).unwrap(), key).unwrap()
}

fn issue_key(authority: &Embedded, kind: KeyType) -> X509Svid {
    let key = NewKey::generate(kind).unwrap();
    X509Svid::new(authority.issue_key(&key, &pod()).unwrap(), key.into_private_key()).unwrap()
}

fn bundle(authority: &Embedded) -> seamount_identity::X509Bundle {
    authority.bundles().borrow().own().clone()
}

#[test]
fn svids_of_every_key_type_verify() {
    let time = Time::new();
    for (ca, leaf) in [
        (KeyType::EcP256, KeyType::EcP256),
        (KeyType::EcP384, KeyType::EcP384),
        (KeyType::EcP256, KeyType::Rsa2048),
        (KeyType::Rsa2048, KeyType::EcP256),
    ] {
        let authority =
            Embedded::with_clock(EmbeddedConfig { key_type: ca, ..config() }, time.clock()).unwrap();
        for svid in [issue(&authority, leaf), issue_key(&authority, leaf)] {
            svid.verify(&bundle(&authority), time.now()).unwrap();
            assert_eq!(svid.id().as_str(), "spiffe://example.org/ns/shop/sa/cart");
            assert_eq!(svid.chain().len(), 2);
        }
    }
}

#[test]
fn what_an_svid_looks_like() {
    let time = Time::new();
    let authority = Embedded::with_clock(config(), time.clock()).unwrap();
    let svid = issue(&authority, KeyType::EcP256);
    assert_eq!(svid.not_before(), time.now() - Duration::from_secs(10));
    assert_eq!(svid.not_after(), time.now() + Duration::from_secs(HOUR));
    assert_eq!(svid.serial_hex().len(), 32, "128 bits");

    let (_, leaf) = X509Certificate::from_der(&svid.chain()[0]).unwrap();
    assert!(leaf.subject().iter().next().is_none());
    assert!(!leaf.basic_constraints().unwrap().expect("explicit (scc's X509-SVID §4.1)").value.ca);
    let usage = leaf.extended_key_usage().unwrap().unwrap();
    assert!(usage.value.server_auth && usage.value.client_auth);
    assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 1, "digitalSignature alone");
    let oid = x509_parser::oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
    assert!(leaf.get_extension_unique(&oid).unwrap().is_some());
    assert!(leaf.raw_serial()[0] < 0x80 && leaf.raw_serial().len() == 16);

    let (_, intermediate) = X509Certificate::from_der(&svid.chain()[1]).unwrap();
    assert_eq!(intermediate.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
    assert!(intermediate.raw_serial()[0] < 0x80);
    let other = issue(&authority, KeyType::EcP256);
    assert_ne!(other.serial_hex(), svid.serial_hex());
    assert_ne!(other.key().expose_pkcs8_der(), svid.key().expose_pkcs8_der());
}

/// Nothing but the key is taken from a request, however much it asks for.
#[test]
fn a_request_cannot_ask_for_anything() {
    let authority = Embedded::new(config()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::URI("spiffe://example.org/ns/kube-system/sa/admin".try_into().unwrap()),
        SanType::DnsName("evil.example.org".try_into().unwrap()),
    ];
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let csr = params.serialize_request(&key).unwrap();
    let chain = authority.issue(csr.der(), &pod()).unwrap();
    let key = PrivateKey::from_pkcs8_der(key.serialized_der()).unwrap();
    let svid = X509Svid::new(chain, key).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://example.org/ns/shop/sa/cart");
    let (_, leaf) = X509Certificate::from_der(&svid.chain()[0]).unwrap();
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
}

#[test]
fn bad_requests_are_refused() {
    let authority = Embedded::new(config()).unwrap();
    let (_, good) = new_key_and_csr(KeyType::EcP256).unwrap();
    let why = |csr: &[u8]| match authority.issue(csr, &pod()) {
        Err(AuthorityError::Request(why)) => why,
        other => panic!("{other:?}"),
    };
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(why(&forged).contains("does not verify"));
    let mut longer = good.clone();
    longer.push(0);
    assert!(why(&longer).contains("bytes follow"));
    assert!(why(b"").contains("PKCS#10"));
    assert!(why(&good[..good.len() / 2]).contains("PKCS#10"));
    assert!(why(&vec![0x30; 9000]).contains("8 KiB"));
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        assert!(why(csr.der()).contains("its key must be"));
    }
    assert!(!AuthorityError::Request(String::new()).is_retryable());
}

#[test]
fn bad_configuration_names_the_field() {
    let error = |config| Embedded::new(config).err().expect("refused").to_string();
    assert!(error(EmbeddedConfig { svid_ttl: Duration::ZERO, ..config() }).contains("svidTtl"));
    assert!(error(EmbeddedConfig { ca_ttl: Duration::from_secs(60), ..config() }).contains("caTtl"));
    let other: TrustDomain = "other.org".parse().unwrap();
    assert!(error(EmbeddedConfig { trust_domain: other, ..config() }).contains("idTemplate"));
}

/// Four simulated days: the bundle is ahead of what is signed, SVIDs always verify, nothing piles up.
#[test]
fn rotation_keeps_the_bundle_ahead() {
    let time = Time::new();
    let authority = Embedded::with_clock(config(), time.clock()).unwrap();
    let mut changes = authority.bundles();
    changes.mark_unchanged();
    let mut known = bundle(&authority);
    let (mut prepared, mut activated, mut held) = (0, 0, Vec::new());
    for _ in 0..4 * 24 * 3 {
        let now = time.forward(20 * 60);
        // What a workload knew before this tick must be enough for what is signed right after it.
        let done = authority.tick(now).unwrap();
        prepared += u32::from(done.prepared);
        activated += u32::from(done.activated);
        assert!(!(done.prepared && done.activated), "never in one step while the active one is good");
        let svid = issue(&authority, KeyType::EcP256);
        svid.verify(&known, now).expect("the old bundle knows the signer");
        assert!(svid.not_after() <= now + Duration::from_secs(HOUR));
        assert_eq!(changes.has_changed().unwrap(), done.prepared || done.pruned > 0);
        changes.mark_unchanged();
        known = bundle(&authority);
        held.push(svid);
        held.retain(|svid: &X509Svid| svid.not_after() > now);
        for svid in &held {
            svid.verify(&known, now).expect("an SVID that has not expired stays trusted");
        }
        assert!(known.authorities().len() <= 3);
    }
    // A slot is prepared half-way through its forerunner's life, so both happen every 12 h.
    assert_eq!((prepared, activated), (8, 7));
}

#[test]
fn thresholds_are_spires() {
    let time = Time::new();
    let authority = Embedded::with_clock(config(), time.clock()).unwrap();
    assert_eq!(authority.tick(time.forward(11 * HOUR)).unwrap(), Done::default());
    assert!(authority.tick(time.forward(HOUR)).unwrap().prepared);
    assert_eq!(bundle(&authority).authorities().len(), 2);
    assert_eq!(authority.tick(time.forward(7 * HOUR)).unwrap(), Done::default());
    assert!(authority.tick(time.forward(HOUR)).unwrap().activated);
    assert_eq!(bundle(&authority).authorities().len(), 2, "the old root stays for the SVIDs it signed");
    assert_eq!(authority.tick(time.forward(3 * HOUR)).unwrap(), Done::default());
    let done = authority.tick(time.forward(HOUR)).unwrap();
    assert_eq!(done, Done { prepared: true, activated: false, pruned: 1 });
    assert_eq!(bundle(&authority).authorities().len(), 2);
}

#[test]
fn long_lived_authorities_prepare_30_and_activate_7_days_ahead() {
    let day = 24 * HOUR;
    let time = Time::new();
    let config = EmbeddedConfig { ca_ttl: Duration::from_secs(365 * day), ..config() };
    let authority = Embedded::with_clock(config, time.clock()).unwrap();
    assert_eq!(authority.tick(time.forward(334 * day)).unwrap(), Done::default());
    assert!(authority.tick(time.forward(day)).unwrap().prepared);
    assert_eq!(authority.tick(time.forward(22 * day)).unwrap(), Done::default());
    assert!(authority.tick(time.forward(day)).unwrap().activated);
}

#[test]
fn svids_never_outlive_their_signer() {
    let time = Time::new();
    let authority = Embedded::with_clock(config(), time.clock()).unwrap();
    let until = authority.active_until();
    time.forward(24 * HOUR - 60);
    assert_eq!(issue(&authority, KeyType::EcP256).not_after(), until);
    time.forward(60);
    let (_, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
    assert_eq!(authority.issue(&csr, &pod()), Err(AuthorityError::Expired));
    let key = NewKey::generate(KeyType::EcP256).unwrap();
    assert_eq!(authority.issue_key(&key, &pod()), Err(AuthorityError::Expired));
    assert!(AuthorityError::Expired.is_retryable());
}

/// A machine that slept through everything works again after one tick.
#[test]
fn one_tick_after_a_long_sleep_is_enough() {
    let time = Time::new();
    let authority = Embedded::with_clock(config(), time.clock()).unwrap();
    authority.tick(time.forward(12 * HOUR)).unwrap();
    let now = time.forward(1000 * HOUR);
    let done = authority.tick(now).unwrap();
    assert!(done.prepared && done.activated);
    issue(&authority, KeyType::EcP256).verify(&bundle(&authority), now).unwrap();
    authority.tick(now).unwrap();
    assert_eq!(bundle(&authority).authorities().len(), 1);
}

#[test]
fn a_clock_that_is_set_back_leaves_no_signer_of_the_future() {
    let time = Time::new();
    let authority = Embedded::with_clock(config(), time.clock()).unwrap();
    authority.tick(time.forward(13 * HOUR)).unwrap();
    // As a node does that starts with a wrong clock: five months.
    time.0.fetch_sub(3600 * HOUR, Ordering::SeqCst);
    let done = authority.tick(time.now()).unwrap();
    assert!(done.prepared && done.activated, "{done:?}");
    let svid = issue(&authority, KeyType::EcP256);
    svid.verify(&bundle(&authority), time.now()).unwrap();
    assert_eq!(authority.tick(time.now()).unwrap(), Done::default());
    // A step as NTP makes it every day changes nothing.
    time.0.fetch_sub(5, Ordering::SeqCst);
    assert_eq!(authority.tick(time.now()).unwrap(), Done::default());
}

#[test]
fn rotation_by_hand() {
    let time = Time::new();
    let authority = Embedded::with_clock(config(), time.clock()).unwrap();
    let old = issue(&authority, KeyType::EcP256);
    authority.prepare().unwrap();
    let known = bundle(&authority);
    assert_eq!(known.authorities().len(), 2);
    assert_eq!(issue(&authority, KeyType::EcP256).chain()[1], old.chain()[1], "still the old one");
    authority.activate().unwrap();
    let new = issue(&authority, KeyType::EcP256);
    assert_ne!(new.chain()[1], old.chain()[1]);
    new.verify(&known, time.now()).unwrap();
    old.verify(&bundle(&authority), time.now()).unwrap();
    authority.prepare().unwrap();
    authority.prepare().unwrap();
    assert_eq!(bundle(&authority).authorities().len(), 3, "a root that never signed leaves at once");
    authority.activate().unwrap();
    authority.activate().unwrap();
}

/// Signing goes on while the authority rotates, and what is signed is always trusted.
#[test]
fn signing_and_rotating_at_once() {
    let authority = Embedded::new(config()).unwrap();
    let (_, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..60 {
                    let chain = authority.issue(&csr, &pod()).unwrap();
                    seamount_identity::svid::verify_chain(&chain, &bundle(&authority), SystemTime::now())
                        .unwrap();
                }
            });
        }
        scope.spawn(|| {
            (0..20).for_each(|_| {
                authority.prepare().unwrap();
                authority.activate().unwrap();
            })
        });
    });
}

#[tokio::test]
async fn the_trait_signs_and_tells_of_changes() {
    let authority: Arc<dyn Authority> = Arc::new(Embedded::new(config()).unwrap());
    let (_, csr) = new_key_and_csr(KeyType::EcP384).unwrap();
    let chain = authority.sign(&csr, &pod(), "token").await.unwrap();
    let set = authority.bundles().borrow().clone();
    seamount_identity::svid::verify_chain(&chain, set.own(), SystemTime::now()).unwrap();
    assert_eq!(authority.trust_domain(), &domain());

    let key = NewKey::generate(KeyType::EcP256).unwrap();
    let chain = authority.sign_key(&key, &pod(), "token").await.unwrap();
    X509Svid::new_verified(chain, key.into_private_key(), set.own(), SystemTime::now()).unwrap();
}

/// An authority that is not in this process is asked with a signed request.
#[tokio::test]
async fn elsewhere_a_key_is_proved_by_a_request() {
    struct Elsewhere(Embedded);

    impl Authority for Elsewhere {
        fn trust_domain(&self) -> &TrustDomain {
            self.0.trust_domain()
        }

        fn sign<'a>(
            &'a self,
            csr_der: &'a [u8],
            workload: &'a Workload,
            token: &'a str,
        ) -> BoxFuture<'a, Result<Vec<CertificateDer<'static>>, AuthorityError>> {
            self.0.sign(csr_der, workload, token)
        }

        fn bundles(&self) -> watch::Receiver<Arc<BundleSet>> {
            self.0.bundles()
        }
    }

    let authority = Elsewhere(Embedded::new(config()).unwrap());
    let key = NewKey::generate(KeyType::EcP256).unwrap();
    let chain = authority.sign_key(&key, &pod(), "token").await.unwrap();
    let set = authority.bundles().borrow().clone();
    X509Svid::new_verified(chain, key.into_private_key(), set.own(), SystemTime::now()).unwrap();
}

#[test]
fn what_is_not_valid_for_its_key_and_bundle_is_not_taken() {
    let (ours, others) = (Embedded::new(config()).unwrap(), Embedded::new(config()).unwrap());
    let now = SystemTime::now();
    let made = |key: &NewKey| ours.issue_key(key, &pod()).unwrap();
    fn take(
        chain: Vec<CertificateDer<'static>>,
        key: NewKey,
        bundle: &seamount_identity::X509Bundle,
        now: SystemTime,
    ) -> Result<(), SvidError> {
        X509Svid::new_verified(chain, key.into_private_key(), bundle, now).map(|_| ())
    }
    let key = || NewKey::generate(KeyType::EcP256).unwrap();
    let bundle = bundle(&ours);

    let (right, wrong) = (key(), key());
    assert!(matches!(take(made(&right), wrong, &bundle, now), Err(SvidError::KeyMismatch(_))));
    let untrusted = Err(SvidError::Certificate(CertificateError::Untrusted {
        position: 1,
        signer: "the bundle",
        reason: "no authority of that name is in it",
    }));
    assert_eq!(take(made(&right), right, &self::bundle(&others), now), untrusted);
    let right = key();
    let late = now + Duration::from_secs(2 * HOUR);
    assert!(matches!(
        take(made(&right), right, &bundle, late),
        Err(SvidError::Certificate(CertificateError::Validity { position: 0, .. }))
    ));
    let right = key();
    let mut chain = made(&right);
    let mut leaf = chain[0].to_vec();
    // The last byte belongs to the signature.
    *leaf.last_mut().unwrap() ^= 1;
    chain[0] = leaf.into();
    assert!(matches!(
        take(chain, right, &bundle, now),
        Err(SvidError::Certificate(CertificateError::Untrusted { position: 0, .. }))
    ));
    let right = key();
    assert_eq!(take(made(&right), right, &bundle, now), Ok(()));
    assert_eq!(format!("{:?}", key()), "NewKey(…)");
}
