//! A pod's service-account token: the proof of who a pod is (everything else in a CSI request can be forged
//! by the pod's author). Kubernetes projected tokens are JWS compact serialisations (RFC 7515 §7.1) of a JWT
//! (RFC 7519).

mod check;
mod error;
mod fetch;
mod issuers;
mod keys;
mod metrics;
mod options;
mod stamp;
mod verifier;

pub use check::{Claims, LEEWAY};
pub use error::{MAX_TOKEN, TokenError};
pub use keys::{KeySet, KeySetError, MAX_JWKS};
pub use metrics::Metrics;
pub use options::{ApiServer, Keys, Options};
pub use verifier::{Clock, KEYS_REFRESH, KEYS_STALE, READINESS, TokenVerifier, UNKNOWN_KEY_PAUSE};

use std::fmt;
use std::time::SystemTime;

use zeroize::Zeroizing;

/// A token as it came, not verified. Has no `Display`, and a `Debug` that hides it; wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes the text over; the caller keeps no copy.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The token itself, to be sent to an authority or stored in the state tmpfs, never logged.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A token with the times that its claims give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatedToken {
    /// The token.
    pub token: Token,
    /// When it was issued.
    pub issued: SystemTime,
    /// When it expires.
    pub expires: SystemTime,
}

impl DatedToken {
    /// The token that has these claims.
    pub fn new(token: Token, claims: &Claims) -> Self {
        Self { token, issued: claims.issued, expires: claims.expires }
    }

    /// Whether it was issued after the other one. The kubelet repeats a token until it has a newer one, and
    /// what arrives late must not take a newer one's place.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.issued, self.expires) > (other.issued, other.expires)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod verifier_tests;
