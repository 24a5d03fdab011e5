//! What the server and the client of the example share: the peer's SPIFFE ID of a TLS connection, and reading
//! the command line's times.

use std::time::Duration;

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use spiffe::{Certificate, SpiffeId, X509Source};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A peer with an X.509-SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// The SPIFFE ID.
    pub id: SpiffeId,
    /// The SVID's serial number in hexadecimal digits.
    pub serial: String,
}

impl Party {
    /// The other end of a TLS connection, by the certificates that were verified in its handshake.
    ///
    /// # Errors
    /// If there are none: then TLS was not mutual.
    pub fn peer(chain: Option<&[CertificateDer<'_>]>) -> anyhow::Result<Self> {
        let leaf = chain.and_then(|chain| chain.first()).context("the peer has shown no certificate")?;
        Self::of(&Certificate::try_from(leaf.as_ref())?)
    }

    /// The workload itself, as of now.
    ///
    /// # Errors
    /// If it has no SVID at the moment.
    pub fn me(source: &X509Source) -> anyhow::Result<Self> {
        Self::of(source.svid()?.leaf())
    }

    fn of(certificate: &Certificate) -> anyhow::Result<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate.as_bytes()).context("not a certificate")?;
        let digits: String = parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
        // DER puts a zero byte before a number that would else be negative.
        let serial = digits.strip_prefix("00").unwrap_or(&digits).to_owned();
        Ok(Self { id: certificate.spiffe_id()?, serial })
    }
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (serial {})", self.id, self.serial)
    }
}

/// `60s` or `60`.
///
/// # Errors
/// If it is neither.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    number.parse().map(Duration::from_secs).map_err(|_| "give a number of seconds, like 60s".to_owned())
}
