//! What is asked, within which bounds, and what came.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::url::Url;

/// Bounds of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the whole exchange: name, connection, TLS, answer, and all redirects.
    pub deadline: Duration,
    /// Bytes of the answer's headers.
    pub head: usize,
    /// Bytes of the answer's body.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), head: 64 * 1024, body: 1024 * 1024 }
    }
}

/// A request. Its `Debug` shows neither headers nor body: both may hold secrets.
#[derive(Clone)]
pub struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) limits: Limits,
    pub(crate) redirects: u8,
}

impl Request {
    fn new(method: Method, url: Url) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Self { method, url, headers, body: Bytes::new(), limits: Limits::default(), redirects: 0 }
    }

    /// `GET`.
    pub fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }

    /// `POST` of this as JSON.
    ///
    /// # Errors
    /// Where it cannot be written as JSON.
    pub fn post(url: Url, body: &impl Serialize) -> Result<Self, Error> {
        let write = |source| Error::Write { url: url.to_string(), source };
        let body = serde_json::to_vec(body).map_err(write)?;
        let mut request = Self::new(Method::POST, url);
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request.body = body.into();
        Ok(request)
    }

    /// Another media type than `application/json` to accept.
    #[must_use]
    pub fn accept(self, kinds: &'static str) -> Self {
        self.public(ACCEPT, HeaderValue::from_static(kinds))
    }

    /// A header that is no secret.
    #[must_use]
    pub fn public(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// A header that is a secret: it is shown nowhere.
    ///
    /// # Errors
    /// Where the value cannot stand in a header.
    pub fn secret(mut self, name: &'static str, value: &str) -> Result<Self, Error> {
        let error = || Error::Header { url: self.url.to_string(), name };
        let mut value = HeaderValue::from_str(value).map_err(|_| error())?;
        value.set_sensitive(true);
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| error())?;
        self.headers.insert(name, value);
        Ok(self)
    }

    /// `Authorization: Bearer <token>`.
    ///
    /// # Errors
    /// Where the token cannot stand in a header.
    pub fn bearer(self, token: &str) -> Result<Self, Error> {
        self.secret("authorization", &Zeroizing::new(format!("Bearer {token}")))
    }

    /// Other bounds than [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Follows so many redirects, of a `GET` alone. At another server no header of this request is shown but
    /// `Accept`.
    #[must_use]
    pub fn follow_redirects(mut self, most: u8) -> Self {
        self.redirects = most;
        self
    }

    /// The same at the place that a redirect names.
    pub(crate) fn redirected(&self, url: Url) -> Self {
        let mut next = self.clone();
        if !self.url.same_server(&url) {
            next.headers.clear();
            if let Some(accept) = self.headers.get(ACCEPT) {
                next.headers.insert(ACCEPT, accept.clone());
            }
        }
        next.url = url;
        next
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({} {})", self.method, self.url)
    }
}

/// An answer, of any status. Its `Debug` shows no body: it may be a secret, and is wiped on drop.
pub struct Response {
    /// What was asked for last, if redirects were followed.
    pub url: Url,
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

impl Response {
    /// The body as JSON.
    ///
    /// # Errors
    /// Where it is not of that form.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|e| Error::json(self.url.to_string(), &e))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} of {}, {} bytes)", self.status, self.url, self.body.len())
    }
}
