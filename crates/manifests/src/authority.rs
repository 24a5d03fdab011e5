//! The authority's root as a Secret, made once and never printed again.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::options::{Options, Source};
use crate::{Error, Problem};

/// YAML of the Secret with a fresh root: certificate and private key. It cannot be printed by accident.
pub struct AuthoritySecret(Zeroizing<String>);

impl AuthoritySecret {
    /// Writes the YAML, private key included.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(self.0.as_bytes())?;
        out.flush()
    }
}

impl fmt::Debug for AuthoritySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthoritySecret(…)")
    }
}

/// Makes a new root (P-256, X.509-SVID §3 and §4: a CA whose only URI is the trust domain's) and its Secret.
///
/// Apart from [`crate::objects`] on purpose: applying a new root over the old one would break every identity
/// in use, so the caller gives the result to `kubectl create`, which refuses to overwrite.
pub fn authority_secret(options: &Options, lifetime: Duration) -> Result<AuthoritySecret, Error> {
    options.check()?;
    let Source::Authority { secret } = &options.source else {
        return Err(Error::Options(vec![Problem {
            option: "source-directory",
            reason: "identities of a directory come from another authority, so there is no root to make; leave one out".to_owned(),
        }]));
    };
    let trust_domain = &options.trust_domain;
    let fail = |source| Error::Root { trust_domain: trust_domain.clone(), source };

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(fail)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Seamount");
    params.distinguished_name.push(DnType::CommonName, "Seamount root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let uri = format!("spiffe://{trust_domain}").as_str().try_into().map_err(fail)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    // A minute back, for nodes whose clock is a little behind.
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
    params.not_after = params.not_before + Duration::from_secs(60) + lifetime;
    let certificate = params.self_signed(&key).map_err(fail)?.pem();
    let key = Zeroizing::new(key.serialize_pem());

    let mut yaml = Zeroizing::new(String::with_capacity(4096));
    // By hand: a serializer would leave copies of the key in memory.
    for line in [
        "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: ",
        secret,
        "\n  namespace: ",
        &options.namespace,
        "\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n",
    ] {
        yaml.push_str(line);
    }
    indent(&mut yaml, &certificate);
    yaml.push_str("  tls.key: |\n");
    indent(&mut yaml, &key);
    Ok(AuthoritySecret(yaml))
}

fn indent(out: &mut String, text: &str) {
    for line in text.lines() {
        out.push_str("    ");
        out.push_str(line);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { trust_domain: "example.org".into(), ..Options::default() }
    }

    fn secret() -> serde_json::Value {
        let mut text = Vec::new();
        authority_secret(&options(), Duration::from_hours(24)).unwrap().write_to(&mut text).unwrap();
        serde_saphyr::from_str(std::str::from_utf8(&text).unwrap()).unwrap()
    }

    #[test]
    fn the_root_is_a_ca_of_the_trust_domain_and_fits_its_key() {
        let secret = secret();
        assert_eq!(secret["metadata"]["name"], "seamount-authority");
        assert_eq!(secret["metadata"]["namespace"], "seamount-system");
        assert_eq!(secret["type"], "kubernetes.io/tls");
        let certificate = secret["stringData"]["tls.crt"].as_str().unwrap();
        let key = KeyPair::from_pem(secret["stringData"]["tls.key"].as_str().unwrap()).unwrap();

        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
        let root = pem.parse_x509().unwrap();
        assert!(root.is_ca());
        assert!(root.key_usage().unwrap().unwrap().value.key_cert_sign());
        let names = &root.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(format!("{names:?}"), r#"[URI("spiffe://example.org")]"#);
        assert_eq!(root.public_key().subject_public_key.data, key.public_key_raw());
        let life = root.validity().not_after.timestamp() - root.validity().not_before.timestamp();
        assert_eq!(life, 24 * 3600 + 60);
    }

    #[test]
    fn each_call_makes_another_key() {
        assert_ne!(secret()["stringData"]["tls.key"], secret()["stringData"]["tls.key"]);
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let secret = authority_secret(&options(), Duration::from_hours(1)).unwrap();
        assert_eq!(format!("{secret:?}"), "AuthoritySecret(…)");
    }

    #[test]
    fn a_foreign_authority_has_no_root_of_ours() {
        let options =
            Options { source: Source::Directory { host_path: "/run/spire/sockets".into() }, ..options() };
        let error = authority_secret(&options, Duration::from_hours(1)).unwrap_err().to_string();
        assert!(error.contains("--source-directory"), "{error}");
    }
}
