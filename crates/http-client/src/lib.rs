//! A small client for `GET` and `POST` of JSON at an https endpoint.
//!
//! The agent asks a few servers a few times an hour: the API server for its keys, a provider for secrets. So
//! each request has its own connection (HTTP/1.1 over TLS), and everything that a server can make long has a
//! bound ([`Limits`]): the whole exchange, the head and the body. Certificates are verified against a given
//! CA bundle and nothing else. Redirects are answers, unless a request asks to follow them. An address that
//! the [`AddressPolicy`] refuses is never connected to, whatever name leads there.
//!
//! Errors name the URL without its query, say why and what to do, and keep their source.

mod address;
mod ca;
mod causes;
mod client;
mod error;
pub mod file;
mod proxy;
mod request;
mod url;

pub use address::AddressPolicy;
pub use ca::{CaBundle, CaError};
pub use causes::causes;
pub use client::Client;
pub use error::Error;
pub use proxy::{NoProxy, Proxy, ProxyError};
pub use request::{Limits, Request, Response};
pub use url::{Url, UrlError};

#[cfg(test)]
mod tests;
