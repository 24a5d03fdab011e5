//! Service-account tokens as the API server makes them, and forgeries of them.
//!
//! The claims are those of bound service-account tokens (Kubernetes: "Managing Service Accounts", bound
//! tokens; `kubernetes.io` claims with pod and node since 1.32), the header has `alg` and `kid` only, and the
//! key set has the form of `/openid/v1/jwks`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, KeyPair as _};
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What a token says.
#[derive(Debug, Clone)]
pub struct Claims {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The node's name.
    pub node: String,
    /// The `aud` claim.
    pub audience: Vec<String>,
    /// From `iat` to `exp`.
    pub lifetime: Duration,
    /// The `iat` and `nbf` claims.
    pub issued_at: SystemTime,
}

impl Default for Claims {
    /// Pod `pod` of service account `default` in namespace `default` on `node-1`, for `seamount.dev`, from
    /// now for an hour.
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            service_account: "default".into(),
            pod_name: "pod".into(),
            pod_uid: crate::uuid_of("pod"),
            node: "node-1".into(),
            audience: vec!["seamount.dev".into()],
            lifetime: Duration::from_secs(3600),
            issued_at: SystemTime::now(),
        }
    }
}

/// How an issuer signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA with 2048 bits, as most clusters do.
    Rs256,
    /// ECDSA on P-256.
    Es256,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
        })
    }
}

enum Key {
    Rsa(Box<signature::RsaKeyPair>),
    Ec(Box<signature::EcdsaKeyPair>),
}

/// The API server's part: makes tokens and publishes the keys that verify them. Its key lives as long as it
/// does.
pub struct TokenIssuer {
    issuer: String,
    key: Key,
    kid: String,
}

impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenIssuer")
            .field("issuer", &self.issuer)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl TokenIssuer {
    /// An issuer with a new RSA key.
    ///
    /// # Panics
    /// If the library cannot make a key, which is a lack of memory or of random numbers.
    pub fn new(issuer: &str) -> Self {
        Self::with_algorithm(issuer, Algorithm::Rs256)
    }

    /// An issuer with a new key of the given kind.
    ///
    /// # Panics
    /// Like [`TokenIssuer::new`].
    #[allow(clippy::expect_used, reason = "fails only without memory or random numbers")]
    pub fn with_algorithm(issuer: &str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::Rs256 => Key::Rsa(Box::new(
                signature::RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).expect("an RSA key"),
            )),
            Algorithm::Es256 => Key::Ec(Box::new(
                signature::EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING)
                    .expect("an elliptic-curve key"),
            )),
        };
        // The API server's key id: the digest of the public key's SubjectPublicKeyInfo.
        let kid = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &spki(&key)));
        Self { issuer: issuer.to_owned(), key, kid }
    }

    /// The `iss` claim of its tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The key's id in the key set and in the tokens' headers.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key set (RFC 7517) that verifies the tokens, as `/openid/v1/jwks` shows it.
    pub fn jwks_json(&self) -> String {
        let (kid, alg) = (&self.kid, self.algorithm().to_string());
        let jwk = match &self.key {
            Key::Rsa(key) => {
                let public = key.public_key();
                let n = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
                let e = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
                json!({"use": "sig", "kty": "RSA", "kid": kid, "alg": alg, "n": n, "e": e})
            }
            Key::Ec(key) => {
                // 0x04, then x and y of 32 bytes each (SEC 1, 2.3.3).
                let point = key.public_key().as_ref();
                let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(32).unwrap_or_default();
                let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
                json!({"use": "sig", "kty": "EC", "kid": kid, "alg": alg, "crv": "P-256", "x": x, "y": y})
            }
        };
        json!({"keys": [jwk]}).to_string()
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Claims) -> String {
        self.token_from_json(&self.claims_json(claims))
    }

    /// What the kubelet puts into `csi.storage.k8s.io/serviceAccount.tokens` for a driver that asks for the
    /// claims' audiences: a token of its own for each of them.
    pub fn tokens_json(&self, claims: &Claims) -> String {
        let expires = OffsetDateTime::from(claims.issued_at + claims.lifetime)
            .replace_nanosecond(0)
            .ok()
            .and_then(|t| t.format(&Rfc3339).ok())
            .unwrap_or_default();
        let tokens: serde_json::Map<_, _> = claims
            .audience
            .iter()
            .map(|audience| {
                let token = self.token(&Claims { audience: vec![audience.clone()], ..claims.clone() });
                (audience.clone(), json!({"token": token, "expirationTimestamp": expires}))
            })
            .collect();
        Value::Object(tokens).to_string()
    }

    /// The claims as JSON, to change one and sign the rest with [`TokenIssuer::token_from_json`].
    pub fn claims_json(&self, claims: &Claims) -> Value {
        let issued_at = seconds(claims.issued_at);
        json!({
            "aud": claims.audience,
            "exp": seconds(claims.issued_at + claims.lifetime),
            "iat": issued_at,
            "iss": self.issuer,
            "jti": crate::uuid(),
            "kubernetes.io": {
                "namespace": claims.namespace,
                "node": {"name": claims.node, "uid": crate::uuid_of(&claims.node)},
                "pod": {"name": claims.pod_name, "uid": claims.pod_uid},
                "serviceaccount": {
                    "name": claims.service_account,
                    "uid": crate::uuid_of(&format!("{}/{}", claims.namespace, claims.service_account)),
                },
            },
            "nbf": issued_at,
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account),
        })
    }

    /// Any claims, correctly signed.
    pub fn token_from_json(&self, claims: &Value) -> String {
        self.token_with_header(&json!({"alg": self.algorithm().to_string(), "kid": self.kid}), claims)
    }

    /// Any header and claims, signed with the key whatever the header says.
    pub fn token_with_header(&self, header: &Value, claims: &Value) -> String {
        self.token_of_parts(header.to_string().as_bytes(), claims.to_string().as_bytes())
    }

    /// Any bytes in the places of header and claims, signed with the key.
    pub fn token_of_parts(&self, header: &[u8], claims: &[u8]) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.sign(input.as_bytes());
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A forgery with another key that claims to be this one: same header, another key.
    pub fn forged_with_other_key(&self, claims: &Claims) -> String {
        let other = Self::with_algorithm(&self.issuer, self.algorithm());
        let header = json!({"alg": self.algorithm().to_string(), "kid": self.kid});
        other.token_with_header(&header, &self.claims_json(claims))
    }

    /// The forgery without a signature (`alg: none`, RFC 8725, 2.1).
    pub fn forged_without_signature(&self, claims: &Claims) -> String {
        let header = json!({"alg": "none", "kid": self.kid});
        format!("{}.", signing_input(&header, &self.claims_json(claims)))
    }

    /// The forgery that takes the public key for a shared secret (`alg: HS256`, RFC 8725, 2.1).
    pub fn forged_with_public_key_as_secret(&self, claims: &Claims) -> String {
        let header = json!({"alg": "HS256", "kid": self.kid});
        let input = signing_input(&header, &self.claims_json(claims));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.public_key_pem().as_bytes());
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&secret, input.as_bytes())))
    }

    /// The forgery that keeps a true token's signature and changes its claims.
    pub fn forged_with_changed_claims(&self, claims: &Claims, change: impl FnOnce(&mut Value)) -> String {
        let header = json!({"alg": self.algorithm().to_string(), "kid": self.kid});
        let mut value = self.claims_json(claims);
        let signature = self.sign(signing_input(&header, &value).as_bytes());
        change(&mut value);
        format!("{}.{}", signing_input(&header, &value), URL_SAFE_NO_PAD.encode(signature))
    }

    /// A true token that expired an hour ago.
    pub fn expired(&self, claims: &Claims) -> String {
        let issued_at = SystemTime::now() - claims.lifetime - Duration::from_secs(3600);
        self.token(&Claims { issued_at, ..claims.clone() })
    }

    /// A true token that begins in an hour.
    pub fn not_yet_valid(&self, claims: &Claims) -> String {
        self.token(&Claims { issued_at: SystemTime::now() + Duration::from_secs(3600), ..claims.clone() })
    }

    /// The public key as PEM (`PUBLIC KEY`, RFC 7468).
    pub fn public_key_pem(&self) -> String {
        let base64 = STANDARD.encode(spki(&self.key));
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for (i, c) in base64.chars().enumerate() {
            if i > 0 && i % 64 == 0 {
                pem.push('\n');
            }
            pem.push(c);
        }
        pem.push_str("\n-----END PUBLIC KEY-----\n");
        pem
    }

    fn algorithm(&self) -> Algorithm {
        match self.key {
            Key::Rsa(_) => Algorithm::Rs256,
            Key::Ec(_) => Algorithm::Es256,
        }
    }

    #[allow(
        clippy::expect_used,
        reason = "signing with a fresh key fails only without memory or random numbers"
    )]
    fn sign(&self, input: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &random, input, &mut signature)
                    .expect("an RSA signature");
                signature
            }
            Key::Ec(key) => key.sign(&random, input).expect("an ECDSA signature").as_ref().to_vec(),
        }
    }
}

/// The public key's SubjectPublicKeyInfo.
fn spki(key: &Key) -> Vec<u8> {
    let encoded: Result<aws_lc_rs::encoding::PublicKeyX509Der<'_>, _> = match key {
        Key::Rsa(key) => key.public_key().as_der(),
        Key::Ec(key) => key.public_key().as_der(),
    };
    encoded.map(|der| der.as_ref().to_vec()).unwrap_or_default()
}

fn signing_input(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
