//! Whose tokens are taken, for which audience, and which keys prove them.

use std::path::PathBuf;
use std::time::Duration;

/// What a verifier judges by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What the tokens must be for; the same as in the CSIDriver's `tokenRequests`.
    pub audience: String,
    /// Whose tokens are taken: the API server's `--service-account-issuer`, several while it changes. Empty:
    /// that of the program's own token, which the API server of [`Keys::ApiServer`] made.
    pub issuers: Vec<String>,
    /// Where the issuer's public keys are.
    pub keys: Keys,
    /// How long the last good keys are used where no new ones can be read.
    pub keys_max_age: Duration,
}

/// Where the issuer's public keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// A JSON Web Key Set in a file, read again when it changes.
    File(PathBuf),
    /// The API server's `/openid/v1/jwks`.
    ApiServer(ApiServer),
}

/// The API server that publishes the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiServer {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path before `/openid/v1/jwks`, without a slash at its end; mostly empty.
    pub path: String,
    /// PEM certificates of the API server's authority.
    pub ca_file: PathBuf,
    /// The program's own token, read for each request.
    pub token_file: PathBuf,
}
