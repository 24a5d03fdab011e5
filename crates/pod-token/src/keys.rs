//! The issuer's public keys: a JSON Web Key Set (RFC 7517).

use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::error::TokenError;

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

/// The algorithms of API servers (RS256, ES256) and their stronger kin (RFC 7518 §3.1). No HMAC: the public
/// key would be the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of RFC 7518")]
pub(super) enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
}

impl Algorithm {
    /// The one of this name, if it is allowed.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::RS256,
            "RS384" => Self::RS384,
            "RS512" => Self::RS512,
            "PS256" => Self::PS256,
            "PS384" => Self::PS384,
            "PS512" => Self::PS512,
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            _ => return None,
        })
    }
}

/// What an RSA key may be used with.
const RSA: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::RS256, &RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::RS384, &RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::RS512, &RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::PS256, &RSA_PSS_2048_8192_SHA256),
    (Algorithm::PS384, &RSA_PSS_2048_8192_SHA384),
    (Algorithm::PS512, &RSA_PSS_2048_8192_SHA512),
];

/// Usable signature keys.
#[derive(Clone)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    /// For each algorithm that it may be used with: the key decides that, never the token alone, so that no
    /// key can be taken for another's (RFC 8725 §3.1). Parsed once: else aws-lc works out an RSA key's
    /// Montgomery context anew for each token.
    uses: Vec<(Algorithm, Arc<ParsedPublicKey>)>,
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
    /// Reads a key set. Keys of other kinds, too weak ones and those for encryption are passed over; one
    /// usable key has to remain.
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
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Signature);
        for key in self.keys.iter().filter(|k| k.id.as_deref() == id) {
            let Some((_, key)) = key.uses.iter().find(|(with, _)| *with == algorithm) else {
                if error == TokenError::UnknownKey {
                    error = TokenError::Algorithm;
                }
                continue;
            };
            match &signature {
                Ok(signature) if key.verify_sig(message.as_bytes(), signature).is_ok() => return Ok(()),
                _ => error = TokenError::Signature,
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
        Some(name) => Some(Algorithm::named(name).ok_or("`alg` is not one of those allowed")?),
    };
    let mut uses = match jwk.kty.as_deref() {
        Some("RSA") => rsa(jwk.n.as_deref(), jwk.e.as_deref())?,
        Some("EC") => {
            let (algorithm, with, bytes): (_, &'static dyn VerificationAlgorithm, _) =
                match jwk.crv.as_deref() {
                    Some("P-256") => (Algorithm::ES256, &ECDSA_P256_SHA256_FIXED, 32),
                    Some("P-384") => (Algorithm::ES384, &ECDSA_P384_SHA384_FIXED, 48),
                    _ => return Err("`crv` is neither P-256 nor P-384"),
                };
            vec![(algorithm, Arc::new(ec(jwk.x.as_deref(), jwk.y.as_deref(), bytes, with)?))]
        }
        _ => return Err("`kty` is neither RSA nor EC"),
    };
    uses.retain(|(with, _)| only.is_none_or(|only| only == *with));
    if uses.is_empty() {
        return Err("`alg` does not fit the key");
    }
    Ok(Key { id: jwk.kid, uses })
}

fn rsa(n: Option<&str>, e: Option<&str>) -> Result<Vec<(Algorithm, Arc<ParsedPublicKey>)>, &'static str> {
    let decode = |part: Option<&str>| URL_SAFE_NO_PAD.decode(part.unwrap_or_default());
    let (Ok(n), Ok(e)) = (decode(n), decode(e)) else { return Err("`n` or `e` is not base64url") };
    // RFC 7518 §6.3.1.1 has no leading zero octets; some issuers send one.
    let [n, e] = [n, e].map(|part| part.into_iter().skip_while(|b| *b == 0).collect::<Vec<u8>>());
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if bits < 2048 {
        return Err("RSA key is shorter than 2048 bits (RFC 7518 §3.3)");
    }
    if bits > 8192 {
        return Err("RSA key is longer than 8192 bits");
    }
    if e.is_empty() {
        return Err("`e` is missing or zero");
    }
    let components = RsaPublicKeyComponents { n, e };
    let use_with = |(algorithm, with)| {
        let key = components.to_parsed_public_key(with).map_err(|_| "`n` and `e` are no key")?;
        Ok((algorithm, Arc::new(key)))
    };
    RSA.into_iter().map(use_with).collect()
}

fn ec(
    x: Option<&str>,
    y: Option<&str>,
    bytes: usize,
    with: &'static dyn VerificationAlgorithm,
) -> Result<ParsedPublicKey, &'static str> {
    let decode = |part: Option<&str>| URL_SAFE_NO_PAD.decode(part.unwrap_or_default()).ok();
    let fits = |part: &Vec<u8>| part.len() == bytes;
    let (Some(x), Some(y)) = (decode(x).filter(fits), decode(y).filter(fits)) else {
        return Err("`x` or `y` is not base64url of the curve's length (RFC 7518 §6.2.1.2)");
    };
    // SEC 1, 2.3.3: an uncompressed point.
    ParsedPublicKey::new(with, [&[4][..], &x, &y].concat()).map_err(|_| "`x` and `y` are no key")
}
