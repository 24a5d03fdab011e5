//! The issuer's public keys: a JSON Web Key Set (RFC 7517).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use super::check::{TokenError, allowed};

/// The longest key set that is read, in bytes.
pub const MAX_JWKS: usize = 256 * 1024;

/// More keys than any issuer publishes.
const MAX_KEYS: usize = 64;

/// Why a key set was refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not JSON of the form of RFC 7517 §5.
    #[error("not a JSON Web Key Set: {0}")]
    Json(String),
    /// More keys than are looked at.
    #[error("{0} keys, more than {MAX_KEYS}: not an API server's key set")]
    TooMany(usize),
    /// Nothing usable in it.
    #[error("no usable key among {total}; the last one: {reason}")]
    NoneUsable {
        /// How many entries there are.
        total: usize,
        /// Why the last one was passed over.
        reason: &'static str,
    },
}

/// Usable signature keys.
#[derive(Clone)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    kind: Kind,
    /// The only algorithm that the key may be used with, where the set says one.
    only: Option<Algorithm>,
    key: DecodingKey,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
}

impl Kind {
    /// The key decides what it is used for, never the token alone: no key can be taken for another's (RFC 8725 §3.1).
    fn fits(self, algorithm: Algorithm) -> bool {
        match self {
            Self::Rsa => matches!(
                algorithm,
                Algorithm::RS256
                    | Algorithm::RS384
                    | Algorithm::RS512
                    | Algorithm::PS256
                    | Algorithm::PS384
                    | Algorithm::PS512
            ),
            Self::P256 => algorithm == Algorithm::ES256,
            Self::P384 => algorithm == Algorithm::ES384,
        }
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

/// RFC 7517 §4, RFC 7518 §6.
#[derive(Deserialize)]
struct Jwk {
    kty: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl KeySet {
    /// Reads a key set. Keys of other kinds, too weak ones and those for encryption are passed over; one usable key
    /// has to remain.
    pub fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        let set: Set = serde_json::from_slice(json).map_err(|e| KeySetError::Json(e.to_string()))?;
        let total = set.keys.len();
        if total > MAX_KEYS {
            return Err(KeySetError::TooMany(total));
        }
        let mut reason = "the set is empty";
        let mut keys = Vec::with_capacity(total);
        for jwk in set.keys {
            match usable(jwk) {
                Ok(key) => keys.push(key),
                Err(why) => reason = why,
            }
        }
        if keys.is_empty() { Err(KeySetError::NoneUsable { total, reason }) } else { Ok(Self { keys }) }
    }

    /// How many keys are usable.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never true: [`KeySet::parse`] refuses an empty set.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks a JWS signature. A token without key id is checked with keys without key id only.
    pub(super) fn verify(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
        message: &str,
        signature: &str,
    ) -> Result<(), TokenError> {
        let mut error = TokenError::UnknownKey;
        for key in self.keys.iter().filter(|k| k.id.as_deref() == id) {
            if !key.kind.fits(algorithm) || key.only.is_some_and(|only| only != algorithm) {
                if error == TokenError::UnknownKey {
                    error = TokenError::Algorithm;
                }
                continue;
            }
            match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, algorithm) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(_) => error = TokenError::Signature,
            }
        }
        Err(error)
    }
}

fn usable(jwk: Jwk) -> Result<Key, &'static str> {
    if jwk.usage.as_deref().is_some_and(|u| u != "sig") {
        return Err("`use` is not `sig`");
    }
    if jwk.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
        return Err("`key_ops` has no `verify`");
    }
    let only = match jwk.alg.as_deref() {
        None => None,
        Some(name) => Some(allowed(name).ok_or("`alg` is not one of those allowed")?),
    };
    let (kind, key) = match jwk.kty.as_deref() {
        Some("RSA") => (Kind::Rsa, rsa(jwk.n.as_deref(), jwk.e.as_deref())?),
        Some("EC") => {
            let (kind, bytes) = match jwk.crv.as_deref() {
                Some("P-256") => (Kind::P256, 32),
                Some("P-384") => (Kind::P384, 48),
                _ => return Err("`crv` is neither P-256 nor P-384"),
            };
            (kind, ec(jwk.x.as_deref(), jwk.y.as_deref(), bytes)?)
        }
        _ => return Err("`kty` is neither RSA nor EC"),
    };
    if only.is_some_and(|only| !kind.fits(only)) {
        return Err("`alg` does not fit the key");
    }
    Ok(Key { id: jwk.kid, kind, only, key })
}

fn rsa(n: Option<&str>, e: Option<&str>) -> Result<DecodingKey, &'static str> {
    let decode = |part: Option<&str>| URL_SAFE_NO_PAD.decode(part.unwrap_or_default());
    let (Ok(n), Ok(e)) = (decode(n), decode(e)) else { return Err("`n` or `e` is not base64url") };
    // RFC 7518 §6.3.1.1 has no leading zero octets; some issuers send one.
    let n: Vec<u8> = n.into_iter().skip_while(|b| *b == 0).collect();
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if bits < 2048 {
        return Err("RSA key is shorter than 2048 bits (RFC 7518 §3.3)");
    }
    if bits > 8192 {
        return Err("RSA key is longer than 8192 bits");
    }
    if e.iter().all(|b| *b == 0) {
        return Err("`e` is missing or zero");
    }
    Ok(DecodingKey::from_rsa_raw_components(&n, &e))
}

fn ec(x: Option<&str>, y: Option<&str>, bytes: usize) -> Result<DecodingKey, &'static str> {
    let (x, y) = (x.unwrap_or_default(), y.unwrap_or_default());
    let fits = |part: &str| URL_SAFE_NO_PAD.decode(part).is_ok_and(|raw| raw.len() == bytes);
    if !fits(x) || !fits(y) {
        return Err("`x` or `y` is not base64url of the curve's length (RFC 7518 §6.2.1.2)");
    }
    DecodingKey::from_ec_components(x, y).map_err(|_| "`x` and `y` are no key")
}
