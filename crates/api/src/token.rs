//! Where the public keys of a token issuer are: `token.keys` of agent.yaml, and what verifies tokens.

use std::path::PathBuf;

/// `token.keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// A JSON Web Key Set in a file, read again when it changes.
    File(PathBuf),
    /// The API server's `/openid/v1/jwks`.
    ApiServer(ApiServer),
}

/// `token.keys.apiServer`.
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
