//! The authority inside this process.
//!
//! A *slot* is a root and an intermediate below it; leaves are signed by the active slot's intermediate. In
//! memory each slot has a root of its own whose key is forgotten as soon as the intermediate is signed. With
//! a directory the root is the one that is there (read again for each slot), and only intermediates are made.
//!
//! Rotation follows SPIRE's server: the next slot is *prepared* when at most half of the active one's life is
//! left (or 30 days), which puts its root into the bundle; it is *activated* when at most a sixth is left (or
//! 7 days). In between, every workload learns the new root before anything is signed below it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use seamount_identity::{BundleSet, Certificate, KeyPair, KeyType, SpiffeId, TrustDomain, X509Bundle};
use time::OffsetDateTime;
use tokio::sync::watch;
use x509_parser::{
    certification_request::X509CertificationRequest, oid_registry, prelude::FromDer, public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use crate::{
    error::AuthorityError,
    interface::{Authority, BoxFuture},
    load,
    new_key::NewKey,
    signing_key::SigningKey,
    template::IdTemplate,
    workload::Workload,
};

/// Certificates begin to be valid this long before now, for clocks that are a little late.
const BACKDATE: Duration = Duration::from_secs(10);
/// A root is prepared at the latest when this is left of the active one.
const PREPARE_AT_MOST: Duration = Duration::from_secs(30 * 24 * 3600);
/// It is activated at the latest when this is left.
const ACTIVATE_AT_MOST: Duration = Duration::from_secs(7 * 24 * 3600);
/// A signing request is some hundred bytes; with an RSA key of 4096 bits, 1.2 KB.
const MAX_CSR: usize = 8 * 1024;

/// What time it is. Tests pass their own.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What an [`Embedded`] authority is made of.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// The trust domain of the IDs that it signs.
    pub trust_domain: TrustDomain,
    /// How IDs are made.
    pub template: IdTemplate,
    /// Of the CA keys. An SVID's key comes with the request for it.
    pub key_type: KeyType,
    /// Lifetime of an intermediate, and of a root in memory; 24 h by default. A loaded root caps it.
    pub ca_ttl: Duration,
    /// Lifetime of an SVID; 1 h by default. The intermediate's caps it.
    pub svid_ttl: Duration,
    /// Holds `tls.crt` and `tls.key` (PEM) of the root; none: a root in memory, which ends with the process.
    pub directory: Option<PathBuf>,
}

/// What a [`tick`](Embedded::tick) did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// The next slot is ready and its root is in the bundle.
    pub prepared: bool,
    /// The next slot signs now.
    pub activated: bool,
    /// So many expired roots left the bundle.
    pub pruned: usize,
}

struct Slot {
    issuer: Issuer<'static, SigningKey>,
    intermediate: CertificateDer<'static>,
    root: CertificateDer<'static>,
    root_not_after: SystemTime,
    /// Trusted beside it.
    others: Vec<(CertificateDer<'static>, SystemTime)>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Slot {
    /// Whether nothing that it signs can be valid: it has expired, or the clock was set back to before its
    /// time.
    fn is_useless(&self, now: SystemTime) -> bool {
        now >= self.not_after || now < self.not_before
    }

    /// Whether at most `lifetime / part`, or `at_most`, is left.
    fn nears_end(&self, now: SystemTime, part: u32, at_most: Duration) -> bool {
        let lifetime = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let left = self.not_after.duration_since(now).unwrap_or_default();
        left <= (lifetime / part).min(at_most)
    }
}

struct State {
    active: Arc<Slot>,
    prepared: Option<Arc<Slot>>,
    /// Roots of former slots, oldest first, for as long as they are valid.
    retired: Vec<(CertificateDer<'static>, SystemTime)>,
}

/// An authority in this process. It does not look at the pod's token, which its caller has verified.
///
/// Order of locks: `rotation`, then `state`, then the watch's own. Signing reads `state` for as long as it
/// takes to clone an `Arc` and signs without a lock. `bundles` is sent while `state` is locked for writing,
/// so that bundles are told in the order in which they came into force; a slot signs only after the bundle
/// with its root was sent.
pub struct Embedded {
    config: EmbeddedConfig,
    clock: Clock,
    state: RwLock<State>,
    /// One rotation step at a time; signing goes on meanwhile.
    rotation: Mutex<()>,
    bundles: watch::Sender<Arc<BundleSet>>,
}

impl Embedded {
    /// Makes or loads the authority. Key generation and reading files block for a moment.
    pub fn new(config: EmbeddedConfig) -> Result<Self, AuthorityError> {
        Self::with_clock(config, Arc::new(SystemTime::now))
    }

    /// As [`new`](Self::new), with another clock.
    pub fn with_clock(config: EmbeddedConfig, clock: Clock) -> Result<Self, AuthorityError> {
        check_lifetimes(&config)?;
        if config.template.trust_domain() != &config.trust_domain {
            let problem = "is of another trust domain".to_owned();
            return Err(AuthorityError::Config { field: "idTemplate", problem });
        }
        let active = Arc::new(new_slot(&config, clock())?);
        let state = State { active, prepared: None, retired: Vec::new() };
        let (bundles, _) = watch::channel(Arc::new(bundle_of(&config.trust_domain, &state)?));
        Ok(Self { config, clock, state: RwLock::new(state), rotation: Mutex::new(()), bundles })
    }

    /// The same authority with other lifetimes: its roots stay, and with them everything that was issued. An
    /// SVID gets its new lifetime at once, as far as the intermediate lives; the intermediate and a root in
    /// memory get theirs when they are replaced next.
    pub fn with_lifetimes(&self, ca_ttl: Duration, svid_ttl: Duration) -> Result<Self, AuthorityError> {
        let config = EmbeddedConfig { ca_ttl, svid_ttl, ..self.config.clone() };
        check_lifetimes(&config)?;
        // Not in the middle of a step.
        let _one = self.rotating();
        let state = self.read(|state| State {
            active: Arc::clone(&state.active),
            prepared: state.prepared.clone(),
            retired: state.retired.clone(),
        });
        let (bundles, _) = watch::channel(Arc::new(bundle_of(&config.trust_domain, &state)?));
        let clock = Arc::clone(&self.clock);
        Ok(Self { config, clock, state: RwLock::new(state), rotation: Mutex::new(()), bundles })
    }

    /// Makes the next slot and puts its root into the bundle; a slot that was prepared before is replaced
    /// (its root leaves the bundle, for nothing was signed below it). With a directory, the root is read
    /// again.
    pub fn prepare(&self) -> Result<(), AuthorityError> {
        let _one = self.rotating();
        self.prepare_at((self.clock)())
    }

    /// Lets the prepared slot sign; prepares one if there is none. The former root stays in the bundle until
    /// it expires.
    pub fn activate(&self) -> Result<(), AuthorityError> {
        let _one = self.rotating();
        if self.read(|state| state.prepared.is_none()) {
            self.prepare_at((self.clock)())?;
        }
        self.activate_prepared()
    }

    /// Does what is due at `now`; to be called every few seconds. Preparing and activating happen in
    /// different calls, so that the bundle is known before it is needed, unless the active slot is of no use
    /// any more.
    pub fn tick(&self, now: SystemTime) -> Result<Done, AuthorityError> {
        let _one = self.rotating();
        let mut done = Done { pruned: self.prune(now)?, ..Done::default() };
        let (active, prepared) = self.read(|state| (state.active.clone(), state.prepared.clone()));
        let useless = active.is_useless(now);
        if prepared.is_none() && (useless || active.nears_end(now, 2, PREPARE_AT_MOST)) {
            self.prepare_at(now)?;
            done.prepared = true;
        }
        let ready = prepared.is_some() || (done.prepared && useless);
        if ready && (useless || active.nears_end(now, 6, ACTIVATE_AT_MOST)) {
            self.activate_prepared()?;
            done.activated = true;
        }
        Ok(done)
    }

    /// When the certificate that signs now ends.
    pub fn active_until(&self) -> SystemTime {
        self.read(|state| state.active.not_after)
    }

    /// Signs a request for a pod: the chain, leaf first, without the root. See [`Authority::sign`].
    pub fn issue(
        &self,
        csr_der: &[u8],
        workload: &Workload,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let id = self.config.template.render(workload)?;
        self.issue_to(&id, &verify_request(csr_der)?)
    }

    /// Signs for a key of this process, which needs no proof of possession. See [`Authority::sign_key`].
    pub fn issue_key(
        &self,
        key: &NewKey,
        workload: &Workload,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        self.issue_to(&self.config.template.render(workload)?, key.public())
    }

    fn issue_to(
        &self,
        id: &SpiffeId,
        key: &impl rcgen::PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let now = (self.clock)();
        let slot = self.read(|state| state.active.clone());
        if now >= slot.not_after {
            return Err(AuthorityError::Expired);
        }
        let until = (now + self.config.svid_ttl).min(slot.not_after);
        let leaf = leaf_params(id, now, until)?
            .signed_by(key, &slot.issuer)
            .map_err(|_| AuthorityError::Crypto("signing an SVID"))?;
        // Not the buffer that it was written into, which is larger.
        Ok(vec![leaf.der().to_vec().into(), slot.intermediate.clone()])
    }

    fn rotating(&self) -> MutexGuard<'_, ()> {
        self.rotation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state and tells the receivers if the bundle is another one.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, AuthorityError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        let set = bundle_of(&self.config.trust_domain, &state)?;
        self.bundles.send_if_modified(|current| {
            let other = **current != set;
            if other {
                *current = Arc::new(set);
            }
            other
        });
        Ok(result)
    }

    fn prepare_at(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let slot = Arc::new(new_slot(&self.config, now)?);
        self.change(|state| state.prepared = Some(slot))
    }

    fn activate_prepared(&self) -> Result<(), AuthorityError> {
        self.change(|state| {
            if let Some(next) = state.prepared.take() {
                let former = std::mem::replace(&mut state.active, next);
                if former.root != state.active.root {
                    state.retired.push((former.root.clone(), former.root_not_after));
                }
            }
        })
    }

    /// Drops expired roots, and a prepared slot that expired between two ticks (a suspended machine) or is of
    /// a time that the clock was set back from.
    fn prune(&self, now: SystemTime) -> Result<usize, AuthorityError> {
        let stale = |state: &State| {
            state.prepared.as_ref().is_some_and(|slot| slot.is_useless(now))
                || state.retired.iter().any(|(_, until)| now >= *until)
        };
        if !self.read(stale) {
            return Ok(0);
        }
        self.change(|state| {
            let before = state.retired.len();
            state.retired.retain(|(_, until)| now < *until);
            state.prepared.take_if(|slot| slot.is_useless(now));
            before - state.retired.len()
        })
    }
}

impl Authority for Embedded {
    fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    fn sign<'a>(
        &'a self,
        csr_der: &'a [u8],
        workload: &'a Workload,
        _token: &'a str,
    ) -> BoxFuture<'a, Result<Vec<CertificateDer<'static>>, AuthorityError>> {
        Box::pin(async move { self.issue(csr_der, workload) })
    }

    fn sign_key<'a>(
        &'a self,
        key: &'a NewKey,
        workload: &'a Workload,
        _token: &'a str,
    ) -> BoxFuture<'a, Result<Vec<CertificateDer<'static>>, AuthorityError>> {
        Box::pin(async move { self.issue_key(key, workload) })
    }

    fn bundles(&self) -> watch::Receiver<Arc<BundleSet>> {
        self.bundles.subscribe()
    }
}

/// Oldest root first, so that an activation, which changes nothing in the set, is no change in its bytes
/// either.
fn bundle_of(trust_domain: &TrustDomain, state: &State) -> Result<BundleSet, AuthorityError> {
    let retired = state.retired.iter().map(|(root, _)| root.clone());
    let current = [Some(&state.active), state.prepared.as_ref()].into_iter().flatten();
    let beside: Vec<_> =
        current.clone().flat_map(|slot| &slot.others).map(|(root, _)| root.clone()).collect();
    let roots: Vec<_> = retired.chain(current.map(|slot| slot.root.clone())).chain(beside).collect();
    Ok(BundleSet::new(X509Bundle::new(trust_domain.clone(), roots)?))
}

fn check_lifetimes(config: &EmbeddedConfig) -> Result<(), AuthorityError> {
    let problem = |field, problem: &str| {
        Err(AuthorityError::Config { field, problem: format!("{problem}; defaults are 24h and 1h") })
    };
    if config.svid_ttl < Duration::from_secs(1) {
        return problem("svidTtl", "must be at least 1 s");
    }
    if config.ca_ttl < config.svid_ttl {
        return problem("caTtl", "must not be shorter than svidTtl");
    }
    Ok(())
}

/// A new intermediate below a new or the loaded root.
fn new_slot(config: &EmbeddedConfig, now: SystemTime) -> Result<Slot, AuthorityError> {
    let until = now + config.ca_ttl;
    let root = match &config.directory {
        Some(directory) => load::load(directory, &config.trust_domain, now)?,
        None => new_root(config, now, until)?,
    };
    let not_after = until.min(root.not_after);
    let key = new_key(config.key_type)?;
    let params =
        ca_params("intermediate", BasicConstraints::Constrained(0), &config.trust_domain, now, not_after)?;
    let intermediate: CertificateDer<'static> = params
        .signed_by(&key, &root.issuer)
        .map_err(|_| AuthorityError::Crypto("signing the intermediate certificate"))?
        .into();
    // A loaded root may have a name that does not come through unchanged; better now than in every client.
    let (not_before, not_after) = {
        let signed = Certificate::parse(&intermediate, 1)?;
        let signer = Certificate::parse(&root.der, 2)?;
        if let Err(why) = signed.is_signed_by(&signer) {
            let problem = format!("its certificate cannot sign: {why}; make a new authority");
            return Err(AuthorityError::Config { field: "directory", problem });
        }
        signed.check_signing(&config.trust_domain)?;
        signed.validity()
    };
    Ok(Slot {
        issuer: Issuer::new(params, key),
        intermediate,
        root: root.der,
        root_not_after: root.not_after,
        others: root.others,
        not_before,
        not_after,
    })
}

/// A root in memory. Its key lives as long as the result.
fn new_root(
    config: &EmbeddedConfig,
    now: SystemTime,
    until: SystemTime,
) -> Result<load::Root, AuthorityError> {
    let key = new_key(config.key_type)?;
    let params = ca_params("root", BasicConstraints::Unconstrained, &config.trust_domain, now, until)?;
    let der: CertificateDer<'static> =
        params.self_signed(&key).map_err(|_| AuthorityError::Crypto("signing the root certificate"))?.into();
    let (_, not_after) = Certificate::parse(&der, 0)?.validity();
    Ok(load::Root { issuer: Issuer::new(params, key), der, not_after, others: Vec::new() })
}

fn new_key(kind: KeyType) -> Result<SigningKey, AuthorityError> {
    KeyPair::generate(kind)
        .map(|(pair, _)| SigningKey(pair))
        .map_err(|_| AuthorityError::Crypto("key generation"))
}

/// A signing certificate: X509-SVID §3.2, §4.1, §4.3.
fn ca_params(
    what: &str,
    constraints: BasicConstraints,
    trust_domain: &TrustDomain,
    now: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = base_params(&trust_domain.id(), now, until)?;
    let mut mark = [0; 4];
    aws_lc_rs::rand::fill(&mut mark).map_err(|_| AuthorityError::Crypto("randomness"))?;
    // Each with a name of its own: verifiers look an issuer up by its name.
    params.distinguished_name.push(DnType::OrganizationName, "Seamount");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Seamount {what} {:08x}", u32::from_be_bytes(mark)));
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// An SVID: X509-SVID §2, §4; the subject is empty, therefore the SAN is critical.
fn leaf_params(
    id: &SpiffeId,
    now: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = base_params(id, now, until)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn base_params(
    id: &SpiffeId,
    now: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(new_serial()?);
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(until);
    let uri = id.as_str().try_into().map_err(|_| AuthorityError::Crypto("encoding a SPIFFE ID"))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 128 bits of which the first two are 01: positive, and of the same length always (RFC 5280 §4.1.2.2).
fn new_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| AuthorityError::Crypto("randomness"))?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

/// A public key from a request, for rcgen.
struct RequestKey {
    algorithm: &'static SignatureAlgorithm,
    bytes: Vec<u8>,
}

impl rcgen::PublicKeyData for RequestKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// Checks that the asker has the private key, and that the key is of a kind that we sign.
fn verify_request(csr_der: &[u8]) -> Result<RequestKey, AuthorityError> {
    let refuse = |why: &str| Err(AuthorityError::Request(why.to_owned()));
    if csr_der.len() > MAX_CSR {
        return refuse("it is larger than 8 KiB");
    }
    let csr = match X509CertificationRequest::from_der(csr_der) {
        Ok(([], csr)) => csr,
        Ok(_) => return refuse("bytes follow it"),
        Err(_) => return refuse("it is not PKCS#10 DER"),
    };
    let info = &csr.certification_request_info.subject_pki;
    let Some(algorithm) = allowed_key(info) else {
        return refuse("its key must be ECDSA P-256, ECDSA P-384 or RSA of 2048 to 4096 bits");
    };
    let signature = &csr.signature_algorithm.algorithm;
    if *signature == oid_registry::OID_PKCS1_SHA1WITHRSA || *signature == oid_registry::OID_SHA1_WITH_RSA {
        return refuse("its signature uses SHA-1");
    }
    if csr.verify_signature().is_err() {
        return refuse("its signature does not verify, so the asker may not hold the private key");
    }
    Ok(RequestKey { algorithm, bytes: info.subject_public_key.data.to_vec() })
}

fn allowed_key(info: &SubjectPublicKeyInfo<'_>) -> Option<&'static SignatureAlgorithm> {
    if info.algorithm.algorithm == oid_registry::OID_PKCS1_RSAENCRYPTION {
        return match info.parsed().ok()? {
            PublicKey::RSA(key) if (2048..=4096).contains(&key.key_size()) => Some(&rcgen::PKCS_RSA_SHA256),
            _ => None,
        };
    }
    if info.algorithm.algorithm != oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY {
        return None;
    }
    let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
    // 0x04: the uncompressed form, the only one that every verifier reads.
    match (info.subject_public_key.data.first(), info.subject_public_key.data.len()) {
        (Some(4), 65) if curve == oid_registry::OID_EC_P256 => Some(&rcgen::PKCS_ECDSA_P256_SHA256),
        (Some(4), 97) if curve == oid_registry::OID_NIST_EC_P384 => Some(&rcgen::PKCS_ECDSA_P384_SHA384),
        _ => None,
    }
}
