//! Asks the API server for its keys: `GET /openid/v1/jwks` (Kubernetes, service account issuer discovery).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use seamount_sys::watch::explain;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::MAX_TOKEN;
use super::keys::{KeySet, KeySetError, MAX_JWKS};
use crate::config::ApiServer;

/// For the whole exchange.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Of the API server's discovery document for keys.
const JWKS_PATH: &str = "/openid/v1/jwks";

/// Why there are no (new) keys.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A local file cannot be read.
    #[error("{field} {path}: {reason}: check the mounted service account and the file's mode")]
    File {
        /// The field of the configuration.
        field: &'static str,
        /// The file.
        path: String,
        /// Why.
        reason: String,
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
    /// No connection, no TLS, no HTTP, or too late.
    #[error("API server {server}: {reason}: check token.keys.apiServer, the network and the API server")]
    Server {
        /// Host and port.
        server: String,
        /// Why.
        reason: String,
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
    let fail = |reason: String| FetchError::File {
        field: "token.keys.file",
        path: path.display().to_string(),
        reason,
    };
    let bytes = read(path, MAX_JWKS).map_err(fail)?;
    KeySet::parse(&bytes).map_err(|source| FetchError::Keys { origin: path.display().to_string(), source })
}

/// Reads the API server's key set. CA and token are read each time: both are rotated below us.
pub(super) async fn from_server(server: &ApiServer) -> Result<KeySet, FetchError> {
    let name = format!("{}:{}", server.host, server.port);
    let fail = |reason: String| FetchError::Server { server: name.clone(), reason };
    let tls = tls(&server.ca_file)?;
    let authorization = bearer(&server.token_file)?;
    let exchange = exchange(server, tls, authorization);
    let (status, body) = tokio::time::timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| fail(format!("no answer within {} s", TIMEOUT.as_secs())))?
        .map_err(fail)?;
    if status != StatusCode::OK {
        return Err(FetchError::Status { server: name, status });
    }
    KeySet::parse(&body).map_err(|source| FetchError::Keys { origin: name, source })
}

/// The whole cause, not only its head: hyper and rustls keep the reason in `source`.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

async fn exchange(
    server: &ApiServer,
    tls: Arc<ClientConfig>,
    authorization: HeaderValue,
) -> Result<(StatusCode, Bytes), String> {
    let name = ServerName::try_from(server.host.clone()).map_err(|e| causes(&e))?;
    let tcp =
        TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|e| causes(&explain(e)))?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(|e| causes(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| causes(&e))?;
    let host = if server.host.contains(':') { format!("[{}]", server.host) } else { server.host.clone() };
    let request = Request::get(format!("{}{JWKS_PATH}", server.path))
        .header(HOST, format!("{host}:{}", server.port))
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(AUTHORIZATION, authorization)
        .body(Empty::<Bytes>::new())
        .map_err(|e| causes(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| causes(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_JWKS).collect().await.map_err(|e| causes(&*e))?;
        Ok((status, body.to_bytes()))
    };
    // The connection does the work while the answer waits for it; both are dropped together.
    tokio::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        // Everything that came has been handed over already, so the answer may still be whole (a server that
        // leaves without TLS's farewell, for instance); if it is not, the connection knows why.
        closed = connection => answer.await.map_err(|why| closed.err().map_or(why, |closed| causes(&closed))),
    }
}

fn tls(ca: &Path) -> Result<Arc<ClientConfig>, FetchError> {
    let fail = |reason: String| FetchError::File {
        field: "token.keys.apiServer.caFile",
        path: ca.display().to_string(),
        reason,
    };
    let pem = read(ca, 1024 * 1024).map_err(fail)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| fail(format!("not PEM: {e}")))?;
        roots.add(certificate).map_err(|e| fail(format!("not a CA certificate: {e}")))?;
    }
    if roots.is_empty() {
        return Err(fail("has no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// `Bearer <token>`, marked sensitive so that nobody prints it.
fn bearer(path: &Path) -> Result<HeaderValue, FetchError> {
    let fail = |reason: &str| FetchError::File {
        field: "token.keys.apiServer.tokenFile",
        path: path.display().to_string(),
        reason: reason.to_owned(),
    };
    let bytes = read(path, MAX_TOKEN).map_err(|e| fail(&e))?;
    let token = std::str::from_utf8(&bytes).map_err(|_| fail("not text"))?.trim();
    if token.is_empty() {
        return Err(fail("is empty"));
    }
    let header = Zeroizing::new(format!("Bearer {token}"));
    let mut value = HeaderValue::from_str(&header).map_err(|_| fail("not a token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A bounded regular file; the buffer does not move and is wiped.
pub(super) fn read(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    if !file.metadata().map_err(|e| e.to_string())?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(max + 1));
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() > max {
        return Err(format!("longer than {max} bytes"));
    }
    Ok(bytes)
}
