//! Why a request has no answer.

use std::io;
use std::net::IpAddr;

use serde_json::error::Category;

use crate::causes::causes;
use crate::proxy::ProxyError;
use crate::url::UrlError;

/// Why a request has no answer. `url` is without its query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be written.
    #[error("{url}: the header {name} has a value that is none; look at what it is made from")]
    Header {
        /// Where it would have gone.
        url: String,
        /// The header.
        name: &'static str,
    },
    /// The body to send is no JSON.
    #[error("{url}: the request cannot be written as JSON: {source}")]
    Write {
        /// Where it would have gone.
        url: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The name has no address.
    #[error("{url}: {host} has no address: {source}; check the name and the DNS of this pod")]
    Resolve {
        /// What was asked for.
        url: String,
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The address may not be connected to.
    #[error("{url}: the address {address} {why}; write the address of the service itself")]
    Refused {
        /// What was asked for.
        url: String,
        /// The address.
        address: IpAddr,
        /// What the policy says.
        why: &'static str,
    },
    /// No connection.
    #[error("{url}: no connection: {source}; check the address, the network and its policies")]
    Connect {
        /// What was asked for.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy gives no connection.
    #[error("{url}: {source}")]
    Proxy {
        /// What was asked for.
        url: String,
        /// Why.
        source: ProxyError,
    },
    /// No TLS: most often the certificate.
    #[error("{url}: no TLS: {}; check the name in the URL and the CA bundle", causes(.source))]
    Tls {
        /// What was asked for.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// What came is no answer of HTTP, or the connection broke.
    #[error("{url}: no answer: {}; check what serves there", causes(.source))]
    Http {
        /// What was asked for.
        url: String,
        /// Why.
        source: hyper::Error,
    },
    /// The head or the body is longer than allowed.
    #[error("{url}: the {part} of the answer is longer than {limit} bytes; check what serves there")]
    TooLong {
        /// What was asked for.
        url: String,
        /// `head` or `body`.
        part: &'static str,
        /// The bound.
        limit: usize,
    },
    /// Too late.
    #[error("{url}: no answer within {seconds} s; check the network and the server's load")]
    Timeout {
        /// What was asked for.
        url: String,
        /// The deadline.
        seconds: u64,
    },
    /// A redirect that leads nowhere.
    #[error("{url}: it redirects to what is no https URL: {source}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Why.
        source: UrlError,
    },
    /// One redirect too many.
    #[error("{url}: more than {most} redirects; write the URL that they lead to")]
    Redirects {
        /// What was asked for last.
        url: String,
        /// How many were allowed.
        most: u8,
    },
    /// The body is not JSON of the expected form.
    #[error(
        "{url}: the answer is not the expected JSON ({what} at line {line}, column {column}); check what serves there"
    )]
    Json {
        /// What was asked for.
        url: String,
        /// `syntax`, `data`, `end` or `reading`: serde_json's own words may quote a value, which may be a
        /// secret.
        what: &'static str,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
}

impl Error {
    /// The answer of this URL is no JSON, or not of that form.
    pub(crate) fn json(url: String, source: &serde_json::Error) -> Self {
        let what = match source.classify() {
            Category::Io => "reading",
            Category::Syntax => "syntax",
            Category::Data => "data",
            Category::Eof => "end",
        };
        Self::Json { url, what, line: source.line(), column: source.column() }
    }
}
