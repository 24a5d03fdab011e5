//! Where a request goes. Pure.

use std::fmt;
use std::net::Ipv4Addr;

use http::Uri;

/// Why a text is no URL of an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// Not a URL at all.
    #[error("{text:?} is not a URL ({source}); write https://<host>[:<port>][/<path>]")]
    Form {
        /// What was given.
        text: String,
        /// Why.
        source: http::uri::InvalidUri,
    },
    /// A scheme without TLS, no host, or no port.
    #[error("{text:?} {what}; write https://<host>[:<port>][/<path>]")]
    Part {
        /// What was given.
        text: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It would stand in logs, so it is not shown here either.
    #[error("the URL has user information; write https://<host>[:<port>][/<path>]")]
    User,
}

/// An https URL: host, port, and path with query.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
    target: String,
}

impl Url {
    /// Reads `https://<host>[:<port>][/<path>][?<query>]`.
    ///
    /// # Errors
    /// Any other scheme, an `@` (user information would stand in logs), no host, or a port that is none.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.contains('@') {
            return Err(UrlError::User);
        }
        let part = |what| UrlError::Part { text: shown(text), what };
        let uri: Uri = text.parse().map_err(|source| UrlError::Form { text: shown(text), source })?;
        if uri.scheme_str() != Some("https") {
            return Err(part("has another scheme than https"));
        }
        let authority = uri.authority().ok_or_else(|| part("has no host"))?;
        // `port()` is none both without a port and with one that is no number.
        let port = match authority.port() {
            Some(port) => Some(port.as_u16()),
            None => authority.as_str().ends_with(authority.host()).then_some(443),
        };
        let port = port.filter(|port| *port != 0).ok_or_else(|| part("has a port that is none"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(part("has no host"));
        }
        // Resolvers read `2130706433` and `0x7f.1` as addresses, which no policy would have looked at.
        let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        let number =
            last.starts_with("0x") || last.starts_with("0X") || last.bytes().all(|b| b.is_ascii_digit());
        if number && !host.contains(':') && host.parse::<Ipv4Addr>().is_err() {
            return Err(part("has a number that is no address as its host"));
        }
        let target = match (uri.path(), uri.query()) {
            ("", None) => "/".to_owned(),
            (path, None) => path.to_owned(),
            ("", Some(query)) => format!("/?{query}"),
            (path, Some(query)) => format!("{path}?{query}"),
        };
        Ok(Self { host: host.to_owned(), port, target })
    }

    /// From its parts; `host` without brackets, `path` with its leading slash.
    ///
    /// # Errors
    /// Where they are not the parts of a URL.
    pub fn of(host: &str, port: u16, path: &str) -> Result<Self, UrlError> {
        Self::parse(&format!("https://{}:{port}{path}", bracketed(host)))
    }

    /// Host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// `<host>:<port>`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        format!("{}:{}", bracketed(&self.host), self.port)
    }

    /// Where a `Location` of this URL's answer leads.
    pub(crate) fn join(&self, location: &str) -> Result<Self, UrlError> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Self::of(&self.host, self.port, location);
        }
        Self::parse(location)
    }

    /// Whether both are of one server.
    pub(crate) fn same_server(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(&other.host) && self.port == other.port
    }
}

/// What of a text may stand in logs: without its query, which may be a secret, and not longer than a line.
fn shown(text: &str) -> String {
    const MAX: usize = 200;
    let head = text.split('?').next().unwrap_or_default();
    head.get(..head.floor_char_boundary(MAX)).unwrap_or_default().to_owned()
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Without the query, which may be a secret.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "https://{}{path}", self.authority())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_https_with_a_host_and_without_a_user() {
        for (text, shown) in [
            ("https://a.example", "https://a.example:443/"),
            ("https://a.example:8200/v1/x?token=y", "https://a.example:8200/v1/x"),
            ("https://[fd00::1]:6443", "https://[fd00::1]:6443/"),
            ("https://10.96.0.1/", "https://10.96.0.1:443/"),
            ("https://a.example?x", "https://a.example:443/"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "a.example",
            "/v1",
            "http://a.example",
            "https://",
            "https://:443",
            "https://a:0",
            "https://a:99999",
            "https://a:x",
            "https://a b",
            "https://2130706433/",
            "https://127.1/",
            "https://0x7f000001",
            "https://0.0x0",
        ] {
            let error = Url::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("write https://"), "{error}");
        }
        let error = Url::parse("http://a/x?signature=word").unwrap_err().to_string();
        assert!(error.contains("http://a/x") && !error.contains("word"), "{error}");
        let long = Url::parse(&format!("http://a/{}", "x".repeat(60_000))).unwrap_err().to_string();
        assert!(long.len() < 400, "{}", long.len());
        let error = Url::parse("https://user:word@a.example").unwrap_err().to_string();
        assert!(!error.contains("word"), "{error}");
    }

    #[test]
    fn a_location_is_absolute_or_a_path() {
        let url = Url::parse("https://a:8443/x?y").unwrap();
        assert_eq!(url.join("/z").unwrap(), Url::parse("https://a:8443/z").unwrap());
        assert_eq!(url.join("https://b/z").unwrap(), Url::parse("https://b/z").unwrap());
        for bad in ["", "z", "//b/z", "http://b/z"] {
            assert!(url.join(bad).is_err(), "{bad}");
        }
        assert!(url.same_server(&Url::parse("https://A:8443/").unwrap()));
        assert!(!url.same_server(&Url::parse("https://a/").unwrap()));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_can_be_written(text in "(https://)?.{0,30}") {
            if let Ok(url) = Url::parse(&text) {
                prop_assert_eq!(Url::parse(&url.to_string()).unwrap().to_string(), url.to_string());
            }
        }
    }
}
