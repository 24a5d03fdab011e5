//! Why a token proves nothing.

/// The longest token that is looked at, in bytes. Kubernetes makes about 1.2 KiB.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Why a token proves nothing. Never holds a part of the token other than names that it claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN`].
    #[error("token has {0} bytes, more than {MAX_TOKEN}: not a service-account token")]
    TooLong(usize),
    /// Not three base64url parts of JSON.
    #[error("token is malformed: {0}: not a service-account token")]
    Malformed(&'static str),
    /// An algorithm that is not allowed: `none`, HMAC, anything unknown.
    #[error(
        "token is signed with an algorithm that is not allowed: only RS256/384/512, PS256/384/512 and ES256/384 are"
    )]
    Algorithm,
    /// A header that changes what the signature means.
    #[error("token has the header `{0}`, which is not supported")]
    Header(&'static str),
    /// No key of the issuer has the token's key id.
    #[error(
        "token is signed with a key that the issuer does not publish: it is forged, or the keys (`token.keys`) are not the issuer's"
    )]
    UnknownKey,
    /// The signature is wrong.
    #[error("token's signature is wrong: it is forged or damaged")]
    Signature,
    /// Another issuer.
    #[error(
        "token is of another issuer than {expected} (`token.issuers`, by default that of the agent's own token): compare \
         with the API server's --service-account-issuer, and list both while it changes"
    )]
    Issuer {
        /// Those that are taken, quoted.
        expected: String,
    },
    /// Not made for us.
    #[error(
        "token is for another audience than {expected:?}: compare `token.audience` with the CSIDriver's tokenRequests"
    )]
    Audience {
        /// What the configuration says.
        expected: String,
    },
    /// Too old.
    #[error(
        "token expired {0} s ago: the kubelet sends a new one with the next republish; compare the clocks"
    )]
    Expired(u64),
    /// From the future.
    #[error("token is not valid before {0} s from now: compare the clocks of node and API server")]
    NotYetValid(u64),
    /// A claim that every bound token of Kubernetes 1.32 and later has is missing, empty or of another form.
    #[error(
        "token has no valid claim `{0}`: only tokens bound to a pod on a node prove a pod (CSIDriver tokenRequests)"
    )]
    Claim(&'static str),
    /// The issuer's keys, or its name, could not be read, ever or for too long.
    #[error("the issuer's keys are not available: {0}")]
    KeysUnavailable(String),
}
