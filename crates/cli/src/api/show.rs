//! What the Workload API answered, for people and programs.

use std::fmt::Write as _;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Map, Value, json};
use spiffe::{Certificate, PrivateKey, X509BundleSet, X509Context};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: an object with `svids` and `bundles`.
    Json,
    /// Certificates as PEM blocks: each SVID's chain, leaf first, then the bundles.
    Pem,
}

/// Room for an answer that holds keys, so that growing leaves no copies behind: more than a usual one takes.
const ROOM: usize = 256 * 1024;

/// The answer as JSON. Keys are only borrowed: a [`Value`] would keep copies that are never wiped.
#[derive(Serialize)]
struct Object<'a> {
    svids: Vec<SvidObject<'a>>,
    bundles: Map<String, Value>,
}

#[derive(Serialize)]
struct SvidObject<'a> {
    #[serde(flatten)]
    rest: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

/// One certificate, as far as it is shown.
struct Shape {
    subject: String,
    issuer: String,
    serial: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    key_type: String,
    pem: String,
}

/// One SVID.
pub struct Svid {
    /// Its SPIFFE ID.
    pub id: String,
    /// Its chain as PEM.
    pub chain_pem: String,
    /// The bundle of its trust domain as PEM.
    pub bundle_pem: String,
    key: PrivateKey,
    hint: Option<String>,
    trust_domain: String,
    chain: Vec<Shape>,
}

impl Svid {
    /// Its private key as PEM (`PRIVATE KEY`, RFC 7468).
    pub fn key_pem(&self) -> Zeroizing<String> {
        let der = self.key.as_bytes();
        // Room for everything, so that growing leaves no copy behind.
        let mut base64 = Zeroizing::new(String::with_capacity(der.len() * 2));
        STANDARD.encode_string(der, &mut base64);
        let mut pem = Zeroizing::new(String::with_capacity(base64.len() * 2 + 128));
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        for (i, c) in base64.chars().enumerate() {
            if i > 0 && i % 64 == 0 {
                pem.push('\n');
            }
            pem.push(c);
        }
        pem.push_str("\n-----END PRIVATE KEY-----\n");
        pem
    }
}

struct Bundle {
    trust_domain: String,
    authorities: Vec<Shape>,
}

/// An answer, ready to be printed or written.
pub struct Shown {
    /// The SVIDs, the default one first. None if bundles were asked for.
    pub svids: Vec<Svid>,
    bundles: Vec<Bundle>,
    now: OffsetDateTime,
}

impl Shown {
    /// An answer to FetchX509SVID.
    ///
    /// # Errors
    /// If a certificate cannot be parsed.
    pub fn of(context: &X509Context) -> anyhow::Result<Self> {
        let mut shown = Self::of_bundles(context.bundle_set())?;
        for svid in context.svids() {
            let chain = shapes(svid.cert_chain())
                .with_context(|| format!("cannot read the certificates of {}", svid.spiffe_id()))?;
            let trust_domain = svid.spiffe_id().trust_domain().to_string();
            shown.svids.push(Svid {
                id: svid.spiffe_id().to_string(),
                chain_pem: concat(&chain),
                bundle_pem: shown.bundle_pem(&trust_domain),
                key: svid.private_key().clone(),
                hint: svid.hint().map(ToOwned::to_owned),
                trust_domain,
                chain,
            });
        }
        Ok(shown)
    }

    /// An answer to FetchX509Bundles.
    ///
    /// # Errors
    /// If a certificate cannot be parsed.
    pub fn of_bundles(bundles: &X509BundleSet) -> anyhow::Result<Self> {
        let mut shown = Vec::new();
        for (trust_domain, bundle) in bundles.iter() {
            let authorities = shapes(bundle.authorities())
                .with_context(|| format!("cannot read the bundle of {trust_domain}"))?;
            shown.push(Bundle { trust_domain: trust_domain.to_string(), authorities });
        }
        shown.sort_by(|a, b| a.trust_domain.cmp(&b.trust_domain));
        Ok(Self { svids: Vec::new(), bundles: shown, now: OffsetDateTime::now_utc() })
    }

    /// The bundle of one trust domain as PEM; empty if there is none.
    fn bundle_pem(&self, trust_domain: &str) -> String {
        self.bundles
            .iter()
            .filter(|b| b.trust_domain == trust_domain)
            .map(|b| concat(&b.authorities))
            .collect()
    }

    /// The bundles of the other trust domains as PEM, in the order of their names.
    pub fn foreign_bundles(&self, svid: &Svid) -> Vec<String> {
        let foreign = self.bundles.iter().filter(|b| b.trust_domain != svid.trust_domain);
        foreign.map(|b| concat(&b.authorities)).collect()
    }

    /// The answer as text. JSON and PEM have private keys only if `include_key` says so. `one_line`: one line
    /// for each SVID, or one JSON object in one line, as a stream of updates wants it.
    ///
    /// # Errors
    /// If JSON cannot be made of it.
    pub fn render(
        &self,
        format: Format,
        include_key: bool,
        one_line: bool,
    ) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        Ok(Zeroizing::new(match format {
            Format::Text if one_line => self.lines().into_bytes(),
            Format::Text => self.text().into_bytes(),
            Format::Pem => return Ok(self.pem(include_key)),
            Format::Json => return self.json(include_key, one_line),
        }))
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for (i, svid) in self.svids.iter().enumerate() {
            if i > 0 {
                out.push('\n');
            }
            row(&mut out, "SPIFFE ID", &svid.id);
            if let Some(hint) = &svid.hint {
                row(&mut out, "Hint", hint);
            }
            if let Some((leaf, issuers)) = svid.chain.split_first() {
                row(&mut out, "Serial", &leaf.serial);
                row(&mut out, "Valid", &format!("{} to {}", utc(leaf.not_before), utc(leaf.not_after)));
                row(&mut out, "Remaining", &self.remaining(leaf));
                row(&mut out, "Key", &leaf.key_type);
                for (i, issuer) in issuers.iter().enumerate() {
                    row(&mut out, if i == 0 { "Issued by" } else { "" }, &self.authority(issuer));
                }
                let root = issuers.last().unwrap_or(leaf);
                row(&mut out, if issuers.is_empty() { "Issued by" } else { "" }, &root.issuer);
            }
        }
        if !self.svids.is_empty() {
            out.push('\n');
        }
        for bundle in &self.bundles {
            let count = bundle.authorities.len();
            let roots = if count == 1 { "authority" } else { "authorities" };
            row(&mut out, "Bundle", &format!("{}: {count} {roots}", bundle.trust_domain));
            for authority in &bundle.authorities {
                row(&mut out, "", &self.authority(authority));
            }
        }
        out
    }

    fn lines(&self) -> String {
        let authorities: usize = self.bundles.iter().map(|b| b.authorities.len()).sum();
        let mut out = String::new();
        for svid in &self.svids {
            if let Some(leaf) = svid.chain.first() {
                let _ = writeln!(
                    out,
                    "{} {} serial {} until {} ({}), trust domains: {}, authorities: {authorities}",
                    utc(self.now),
                    svid.id,
                    leaf.serial,
                    utc(leaf.not_after),
                    self.remaining(leaf),
                    self.bundles.len(),
                );
            }
        }
        out
    }

    fn pem(&self, include_key: bool) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(ROOM));
        for svid in &self.svids {
            out.extend_from_slice(svid.chain_pem.as_bytes());
            if include_key {
                out.extend_from_slice(svid.key_pem().as_bytes());
            }
        }
        for bundle in &self.bundles {
            out.extend_from_slice(concat(&bundle.authorities).as_bytes());
        }
        out
    }

    fn json(&self, include_key: bool, one_line: bool) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        let keys: Vec<_> = self.svids.iter().map(|svid| include_key.then(|| svid.key_pem())).collect();
        let svids = self.svids.iter().zip(&keys).map(|(svid, key)| SvidObject {
            rest: self.svid_json(svid),
            key: key.as_ref().map(|key| key.as_str()),
        });
        let bundles = self.bundles.iter().map(|bundle| {
            let authorities: Vec<_> = bundle.authorities.iter().map(Shape::json).collect();
            (bundle.trust_domain.clone(), json!({"authorities": authorities}))
        });
        let object = Object { svids: svids.collect(), bundles: bundles.collect() };
        let mut out = Zeroizing::new(Vec::with_capacity(ROOM));
        if one_line {
            serde_json::to_writer(&mut *out, &object)?;
        } else {
            serde_json::to_writer_pretty(&mut *out, &object)?;
        }
        out.push(b'\n');
        Ok(out)
    }

    fn svid_json(&self, svid: &Svid) -> Map<String, Value> {
        let chain: Vec<_> = svid.chain.iter().map(Shape::json).collect();
        let remaining =
            svid.chain.first().map_or(0, |leaf| (leaf.not_after - self.now).whole_seconds().max(0));
        let mut object = Map::new();
        for (name, value) in [
            ("spiffeId", json!(svid.id)),
            ("trustDomain", json!(svid.trust_domain)),
            ("remainingSeconds", json!(remaining)),
            ("chain", json!(chain)),
        ] {
            object.insert(name.to_owned(), value);
        }
        if let Some(hint) = &svid.hint {
            object.insert("hint".to_owned(), json!(hint));
        }
        object
    }

    fn authority(&self, shape: &Shape) -> String {
        format!(
            "{}, serial {}, {}, until {} ({})",
            shape.subject,
            shape.serial,
            shape.key_type,
            utc(shape.not_after),
            self.remaining(shape)
        )
    }

    fn remaining(&self, shape: &Shape) -> String {
        let seconds = (shape.not_after - self.now).whole_seconds();
        if seconds <= 0 {
            return "EXPIRED".to_owned();
        }
        let (days, hours, minutes, seconds) =
            (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => format!("{seconds} s left"),
            (0, 0, _) => format!("{minutes} min {seconds} s left"),
            (0, _, _) => format!("{hours} h {minutes} min left"),
            _ => format!("{days} d {hours} h left"),
        }
    }
}

impl Shape {
    fn json(&self) -> Value {
        json!({
            "subject": self.subject,
            "issuer": self.issuer,
            "serial": self.serial,
            "notBefore": utc(self.not_before),
            "notAfter": utc(self.not_after),
            "keyType": self.key_type,
            "pem": self.pem,
        })
    }
}

fn row(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name:<12}{value}");
}

fn utc(time: OffsetDateTime) -> String {
    time.replace_nanosecond(0).ok().and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_default()
}

fn concat(shapes: &[Shape]) -> String {
    shapes.iter().map(|shape| shape.pem.as_str()).collect()
}

fn shapes(certificates: &[Certificate]) -> anyhow::Result<Vec<Shape>> {
    certificates.iter().map(|certificate| shape(certificate.as_bytes())).collect()
}

fn shape(der: &[u8]) -> anyhow::Result<Shape> {
    let (_, certificate) = X509Certificate::from_der(der).context("not an X.509 certificate")?;
    let time = |asn1: x509_parser::time::ASN1Time| {
        OffsetDateTime::from_unix_timestamp(asn1.timestamp()).context("a time out of range")
    };
    let serial: String = certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    let name = |name: String| if name.is_empty() { "(no name)".to_owned() } else { name };
    Ok(Shape {
        subject: name(certificate.subject().to_string()),
        issuer: name(certificate.issuer().to_string()),
        serial: serial.strip_prefix("00").filter(|rest| !rest.is_empty()).unwrap_or(&serial).to_owned(),
        not_before: time(certificate.validity().not_before)?,
        not_after: time(certificate.validity().not_after)?,
        key_type: key_type(&certificate),
        pem: pem::encode_config(
            &pem::Pem::new("CERTIFICATE", der),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        ),
    })
}

fn key_type(certificate: &X509Certificate<'_>) -> String {
    let key = certificate.public_key();
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            match curve.map(|oid| oid.to_id_string()).as_deref() {
                Some("1.2.840.10045.3.1.7") => "EC P-256".to_owned(),
                Some("1.3.132.0.34") => "EC P-384".to_owned(),
                Some("1.3.132.0.35") => "EC P-521".to_owned(),
                other => format!("EC {}", other.unwrap_or("(unnamed curve)")),
            }
        }
        _ => key.algorithm.algorithm.to_id_string(),
    }
}
