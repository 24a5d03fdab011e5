//! Asks the API server for its keys: `GET /openid/v1/jwks` (Kubernetes, service account issuer discovery).

use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use seamount_http_client::file::{self, FileError};
use seamount_http_client::{CaBundle, CaError, Client, Error, Limits, Request, Url, UrlError};
use zeroize::Zeroizing;

use super::MAX_TOKEN;
use super::keys::{KeySet, KeySetError, MAX_JWKS};
use super::options::ApiServer;

/// For the whole exchange.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Of the API server's discovery document for keys.
const JWKS_PATH: &str = "/openid/v1/jwks";

/// Why there are no (new) keys.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A local file cannot be read.
    #[error("{field} {path}: {source}: check the mounted service account and the file's mode")]
    File {
        /// The field of the configuration.
        field: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: FileError,
    },
    /// The CA bundle cannot be used.
    #[error(
        "token.keys.apiServer.caFile {path}: {source}: check the mounted service account and the file's mode"
    )]
    Ca {
        /// The file.
        path: String,
        /// Why.
        source: CaError,
    },
    /// The agent's own token cannot be shown to the API server.
    #[error("token.keys.apiServer.tokenFile {path}: {reason}: check the mounted service account")]
    Token {
        /// The file.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// The agent's own token does not tell the issuer.
    #[error(
        "token.keys.apiServer.tokenFile {path}: {reason}: mount the agent's service-account token, or write token.issuers"
    )]
    Issuer {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Host, port and path make no URL.
    #[error("token.keys.apiServer.url: {0}")]
    Url(#[from] UrlError),
    /// No answer of the API server.
    #[error("API server {server}: {source}, and token.keys.apiServer")]
    Server {
        /// Host and port.
        server: String,
        /// Why.
        source: Error,
    },
    /// An answer other than 200.
    #[error(
        "API server {server}: {status} for {JWKS_PATH}: the agent's service account needs the ClusterRole \
         system:service-account-issuer-discovery"
    )]
    Status {
        /// Host and port.
        server: String,
        /// HTTP status.
        status: StatusCode,
    },
    /// What came is no key set.
    #[error("keys of {origin}: {source}")]
    Keys {
        /// File or server.
        origin: String,
        /// What is wrong.
        source: KeySetError,
    },
}

/// Reads a key set from a file.
pub(super) fn from_file(path: &Path) -> Result<KeySet, FetchError> {
    let origin = || path.display().to_string();
    let fail = |source| FetchError::File { field: "token.keys.file", path: origin(), source };
    let bytes = file::read(path, MAX_JWKS).map_err(fail)?;
    KeySet::parse(&bytes).map_err(|source| FetchError::Keys { origin: origin(), source })
}

/// Reads the API server's key set. CA and token are read each time: both are rotated below us.
pub(super) async fn from_server(server: &ApiServer) -> Result<KeySet, FetchError> {
    let url = Url::of(&server.host, server.port, &format!("{}{JWKS_PATH}", server.path))?;
    let name = url.authority();
    let ca = CaBundle::file(&server.ca_file)
        .map_err(|source| FetchError::Ca { path: server.ca_file.display().to_string(), source })?;
    let token = token(&server.token_file)?;
    let limits = Limits { deadline: TIMEOUT, body: MAX_JWKS, ..Limits::default() };
    let request = Request::get(url).accept("application/jwk-set+json, application/json").limits(limits);
    let unfit =
        |_| FetchError::Token { path: server.token_file.display().to_string(), reason: "not a token" };
    let request = request.bearer(token.trim()).map_err(unfit)?;
    let answer = Client::new(ca)
        .send(&request)
        .await
        .map_err(|source| FetchError::Server { server: name.clone(), source })?;
    if answer.status != StatusCode::OK {
        return Err(FetchError::Status { server: name, status: answer.status });
    }
    KeySet::parse(&answer.body).map_err(|source| FetchError::Keys { origin: name, source })
}

/// The agent's own token, as the file has it.
fn token(path: &Path) -> Result<Zeroizing<String>, FetchError> {
    let place = || path.display().to_string();
    let unreadable =
        |source| FetchError::File { field: "token.keys.apiServer.tokenFile", path: place(), source };
    let bytes = file::read(path, MAX_TOKEN).map_err(unreadable)?;
    let fail = |reason| FetchError::Token { path: place(), reason };
    let text = std::str::from_utf8(&bytes).map_err(|_| fail("not text"))?;
    if text.trim().is_empty() {
        return Err(fail("is empty"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}
