//! Reads the authority's root from a directory: `tls.crt` and `tls.key`, as a Kubernetes TLS Secret is
//! mounted.
//!
//! `tls.crt` may hold several roots. The first, whose key is there, signs; the others are trusted too. So a
//! root is replaced without a gap: first every node trusts the new one, then it signs, then the old one
//! leaves.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustls_pki_types::CertificateDer;
use seamount_identity::{Certificate, KeyPair, TrustDomain};
use zeroize::Zeroizing;

use crate::{error::AuthorityError, signing_key::SigningKey};

/// Larger files are no key or certificate.
const MAX_FILE: u64 = 256 * 1024;

/// More roots than this are a mistake.
const MAX_ROOTS: usize = 16;

/// A root with its key.
pub(super) struct Root {
    pub(super) der: CertificateDer<'static>,
    /// What is trusted beside it, and until when.
    pub(super) others: Vec<(CertificateDer<'static>, SystemTime)>,
    pub(super) issuer: rcgen::Issuer<'static, SigningKey>,
    pub(super) not_after: SystemTime,
}

/// Reads and validates the root. Every error names the file and the remedy.
pub(super) fn load(
    directory: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Root, AuthorityError> {
    let crt = directory.join("tls.crt");
    let key = directory.join("tls.key");
    let (der, others) = certificates_of(&crt, trust_domain, now)?;
    let pair = key_of(&key)?;

    let parsed = Certificate::parse(&der, 0)
        .map_err(|error| fail(&crt, error, "put CA certificates as PEM there, that of tls.key first"))?;
    if !parsed.has_key(pair.public_key()) {
        let problem = "it does not belong to the certificate in tls.crt";
        return Err(fail(&key, problem, "put certificate and key of the same authority there"));
    }
    let (_, not_after) = parsed.validity();
    let issuer = rcgen::Issuer::from_ca_cert_der(&der, SigningKey(pair))
        .map_err(|error| fail(&crt, error, "use a certificate with a plain subject name"))?;
    Ok(Root { issuer, not_after, der, others })
}

/// The root that signs, and the others that are valid, or will be.
#[allow(clippy::type_complexity, reason = "used once")]
fn certificates_of(
    file: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(CertificateDer<'static>, Vec<(CertificateDer<'static>, SystemTime)>), AuthorityError> {
    const REMEDY: &str = "put self-signed CA certificates as PEM there, that of tls.key first";
    let text = read(file)?;
    let blocks = pem::parse_many(text.as_slice()).map_err(|error| fail(file, error, REMEDY))?;
    if blocks.is_empty() || blocks.len() > MAX_ROOTS {
        return Err(fail(file, format!("it holds {} PEM blocks", blocks.len()), REMEDY));
    }
    let mut found = Vec::new();
    for (position, block) in blocks.iter().enumerate() {
        if block.tag() != "CERTIFICATE" {
            return Err(fail(file, format!("it holds a block {:?}", block.tag()), REMEDY));
        }
        let der = CertificateDer::from(block.contents().to_vec());
        let (not_before, not_after) = root_validity(file, &der, trust_domain, position)?;
        if position == 0 && now < not_before {
            return Err(fail(file, "it is not valid yet", "check the clock of this machine"));
        }
        if position == 0 && now >= not_after {
            return Err(fail(file, "it has expired", "put a new authority there"));
        }
        // One that is trusted no more may stay in the file for a while.
        if now < not_after {
            found.push((der, not_after));
        }
    }
    let (first, _) = found.remove(0);
    Ok((first, found))
}

/// A root's validity, if it is one of this trust domain.
fn root_validity(
    file: &Path,
    der: &CertificateDer<'static>,
    trust_domain: &TrustDomain,
    position: usize,
) -> Result<(SystemTime, SystemTime), AuthorityError> {
    let which = |why: String| match position {
        0 => why,
        _ => format!("certificate {} in it: {why}", position + 1),
    };
    let remedy = "put self-signed CA certificates as PEM there, that of tls.key first";
    let root =
        Certificate::parse(der, position).map_err(|error| fail(file, which(error.to_string()), remedy))?;
    root.check_root(trust_domain).map_err(|error| {
        fail(file, which(error.to_string()), "make a CA certificate for this trust domain")
    })?;
    // Before the signature, which of such a key cannot be verified; and also of a root that is only to sign
    // later.
    if !root.has_supported_key() {
        let problem = "its key is neither P-256, P-384 nor RSA".to_owned();
        return Err(fail(file, which(problem), "make a CA certificate with a key of one of these kinds"));
    }
    root.is_signed_by(&root).map_err(|why| {
        fail(file, which(format!("it is not self-signed, or cannot be shown to be: {why}")), remedy)
    })?;
    if position == 0 && root.path_length() == Some(0) {
        let problem = "its pathLenConstraint is 0, so that it cannot sign the intermediate certificate";
        return Err(fail(file, problem, "make it with a path length of 1 or without one"));
    }
    Ok(root.validity())
}

fn key_of(file: &Path) -> Result<KeyPair, AuthorityError> {
    const REMEDY: &str =
        "put one unencrypted private key as PEM there (PKCS#8, SEC 1 or PKCS#1; P-256, P-384 or RSA)";
    let text = read(file)?;
    // The parser's own words could quote the key.
    let blocks = pem::parse_many(text.as_slice()).map_err(|_| fail(file, "it is not PEM", REMEDY))?;
    let mut keys = Vec::new();
    for block in blocks {
        match block.tag() {
            "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" => {
                keys.push(Zeroizing::new(block.into_contents()));
            }
            "EC PARAMETERS" => {}
            other => return Err(fail(file, format!("it holds a block {other:?}"), REMEDY)),
        }
    }
    let [key] = keys.as_slice() else {
        return Err(fail(file, format!("it holds {} private keys", keys.len()), REMEDY));
    };
    KeyPair::from_any_der(key).map_err(|_| fail(file, "its key cannot be read", REMEDY))
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
    let remedy = "mount a Secret with tls.crt and tls.key there, readable by the agent";
    let error = |error: std::io::Error| fail(file, error, remedy);
    let open = File::open(file).map_err(error)?;
    // All at once, so that no half-grown buffer is left behind unwiped.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
    open.take(MAX_FILE + 1).read_to_end(&mut text).map_err(error)?;
    if text.len() as u64 > MAX_FILE {
        return Err(fail(file, format!("it is larger than {MAX_FILE} bytes"), remedy));
    }
    Ok(text)
}

fn fail(file: &Path, problem: impl ToString, remedy: &str) -> AuthorityError {
    AuthorityError::Directory {
        file: PathBuf::from(file),
        problem: problem.to_string(),
        remedy: remedy.to_owned(),
    }
}
