//! One request after the other, each on a connection of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HOST, LOCATION};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use seamount_sys::watch::explain;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use crate::address::AddressPolicy;
use crate::ca::CaBundle;
use crate::error::Error;
use crate::proxy::Proxy;
use crate::request::{Limits, Request, Response};
use crate::url::Url;

/// The least that hyper takes as the bound of a head.
const LEAST_HEAD: usize = 8 * 1024;

/// How requests go out; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    ca: CaBundle,
    proxy: Option<Arc<Proxy>>,
    policy: AddressPolicy,
}

impl Client {
    /// Servers are verified against this CA bundle. Without a proxy, to every address.
    pub fn new(ca: CaBundle) -> Self {
        Self { ca, proxy: None, policy: AddressPolicy::any() }
    }

    /// Goes through this proxy, but for its exceptions.
    #[must_use]
    pub fn with_proxy(mut self, proxy: Proxy) -> Self {
        self.proxy = Some(Arc::new(proxy));
        self
    }

    /// Connects only to what this allows.
    #[must_use]
    pub fn with_address_policy(mut self, policy: AddressPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sends a request; the answer may be of any status. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where there is no whole answer within the request's limits.
    pub async fn send(&self, request: &Request) -> Result<Response, Error> {
        let deadline = request.limits.deadline;
        let late = |_| Error::Timeout { url: request.url.to_string(), seconds: deadline.as_secs() };
        tokio::time::timeout(deadline, self.follow(request)).await.map_err(late)?
    }

    async fn follow(&self, first: &Request) -> Result<Response, Error> {
        let mut request = first.clone();
        let mut left = first.redirects;
        loop {
            let response = self.exchange(&request).await?;
            let Some(location) = redirect(&request, &response) else { return Ok(response) };
            let url = request.url.to_string();
            if first.redirects == 0 {
                return Ok(response);
            }
            left = left
                .checked_sub(1)
                .ok_or_else(|| Error::Redirects { url: url.clone(), most: first.redirects })?;
            let next = request.url.join(location).map_err(|source| Error::Redirect { url, source })?;
            request = request.redirected(next);
        }
    }

    async fn exchange(&self, request: &Request) -> Result<Response, Error> {
        let url = &request.url;
        let http = |source| failed(url, request.limits, source);
        let stream = self.connect(url).await?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(request.limits.head.max(LEAST_HEAD))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(http)?;
        let mut message = http::Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        // A URL that was parsed has a target that can be parsed.
        *message.uri_mut() = url.target().parse().unwrap_or_default();
        *message.headers_mut() = request.headers.clone();
        let host = http::HeaderValue::from_str(&url.authority())
            .map_err(|_| Error::Header { url: url.to_string(), name: "host" })?;
        message.headers_mut().insert(HOST, host);
        let answer = async {
            let (head, body) = sender.send_request(message).await.map_err(http)?.into_parts();
            // hyper's bound is one of its buffer, which a last read may pass.
            if head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
                > request.limits.head
            {
                return Err(too_long(url, "head", request.limits.head));
            }
            let body = collect(url, body, request.limits).await?;
            Ok(Response { url: url.clone(), status: head.status, headers: head.headers, body })
        };
        // The connection does the work while the answer waits for it; both are dropped together.
        tokio::pin!(answer);
        tokio::select! {
            answered = &mut answer => answered,
            // Everything that came has been handed over already, so the answer may still be whole (a server
            // that leaves without TLS's farewell, for instance); if it is not, the connection knows why.
            closed = connection => answer.await.map_err(|why| match (why, closed) {
                (Error::Http { .. }, Err(closed)) => http(closed),
                (why, _) => why,
            }),
        }
    }

    async fn connect(&self, url: &Url) -> Result<TlsStream<TcpStream>, Error> {
        let tcp = match self.proxy.as_ref().filter(|proxy| proxy.takes(url)) {
            None => self.direct(url).await?,
            Some(proxy) => {
                if let Ok(address) = url.host().parse() {
                    self.allowed(url, SocketAddr::new(address, url.port()))?;
                }
                proxy.connect(url).await.map_err(|source| Error::Proxy { url: url.to_string(), source })?
            }
        };
        let tls = |source| Error::Tls { url: url.to_string(), source };
        let name = ServerName::try_from(url.host().to_owned()).map_err(|e| tls(std::io::Error::other(e)))?;
        TlsConnector::from(Arc::clone(&self.ca.0)).connect(name, tcp).await.map_err(tls)
    }

    /// To the first address that takes the connection. What may not be connected to is passed over, and is
    /// the error where nothing else is there.
    async fn direct(&self, url: &Url) -> Result<TcpStream, Error> {
        let resolve = |source| Error::Resolve {
            url: url.to_string(),
            host: url.host().to_owned(),
            source: explain(source),
        };
        let found = tokio::net::lookup_host((url.host(), url.port())).await.map_err(resolve)?;
        let mut last = None;
        for address in found {
            if let Err(refused) = self.allowed(url, address) {
                last.get_or_insert(refused);
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(e) => last = Some(Error::Connect { url: url.to_string(), source: explain(e) }),
            }
        }
        Err(last.unwrap_or_else(|| resolve(std::io::Error::from(std::io::ErrorKind::NotFound))))
    }

    fn allowed(&self, url: &Url, address: SocketAddr) -> Result<(), Error> {
        let address = address.ip();
        self.policy.check(address).map_err(|why| Error::Refused { url: url.to_string(), address, why })
    }
}

/// Where a redirect of a `GET` leads.
fn redirect<'a>(request: &Request, response: &'a Response) -> Option<&'a str> {
    let statuses = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    let is = request.method == Method::GET && statuses.contains(&response.status);
    is.then(|| response.headers.get(LOCATION)?.to_str().ok()).flatten()
}

async fn collect(url: &Url, mut body: Incoming, limits: Limits) -> Result<Zeroizing<Vec<u8>>, Error> {
    let most = limits.body;
    let too_long = || too_long(url, "body", most);
    let told = body.size_hint().exact().map(usize::try_from);
    let told = told.transpose().map_err(|_| too_long())?;
    if told.is_some_and(|told| told > most) {
        return Err(too_long());
    }
    // A buffer that grows leaves copies behind, which nothing wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(told.unwrap_or(most)));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| failed(url, limits, source))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > most {
            return Err(too_long());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn failed(url: &Url, limits: Limits, source: hyper::Error) -> Error {
    if source.is_parse_too_large() {
        return too_long(url, "head", limits.head);
    }
    Error::Http { url: url.to_string(), source }
}

fn too_long(url: &Url, part: &'static str, limit: usize) -> Error {
    Error::TooLong { url: url.to_string(), part, limit }
}
