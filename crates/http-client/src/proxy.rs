//! The way through a proxy: `CONNECT` over HTTP/1.1 (RFC 9110 §9.3.6).

use std::fmt;
use std::io;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use seamount_sys::watch::explain;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::causes::causes;
use crate::url::Url;

/// The longest head of a proxy's answer: the least that hyper takes.
const HEAD: usize = 8 * 1024;

/// Why there is no way through a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The proxy's own URL.
    #[error("the proxy's URL {what}; write http://[<user>:<password>@]<host>:<port>")]
    Url {
        /// What is wrong with it. The URL is not shown: it may have a password.
        what: &'static str,
    },
    /// An entry of the list of exceptions.
    #[error("the proxy's exception {entry:?} is none; write a name, .<domain>, an address, a network, or *")]
    Exception {
        /// The entry.
        entry: String,
    },
    /// No connection to the proxy.
    #[error("the proxy {proxy} cannot be reached: {source}; check its address and the network's policies")]
    Connect {
        /// The proxy.
        proxy: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy broke the connection, or speaks no HTTP.
    #[error("the proxy {proxy} does not answer CONNECT: {}; check that it is an HTTP proxy", causes(.source))]
    Http {
        /// The proxy.
        proxy: String,
        /// Why.
        source: hyper::Error,
    },
    /// The proxy says no.
    #[error("the proxy {proxy} answers {status}; check what it lets through, and its user and password")]
    Status {
        /// The proxy.
        proxy: String,
        /// Its answer.
        status: StatusCode,
    },
    /// The proxy sent something before the server could have.
    #[error("the proxy {proxy} sends more than its answer to CONNECT; check that it is an HTTP proxy")]
    Early {
        /// The proxy.
        proxy: String,
    },
}

/// An HTTP proxy, and what is asked without it.
#[derive(Clone)]
pub struct Proxy {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
    except: NoProxy,
}

impl Proxy {
    /// Reads `http://[<user>:<password>@]<host>:<port>`, as `HTTPS_PROXY` has it.
    ///
    /// # Errors
    /// Any other scheme (TLS to the proxy itself is not supported), a missing host or port.
    pub fn parse(text: &str, except: NoProxy) -> Result<Self, ProxyError> {
        let wrong = |what| ProxyError::Url { what };
        let uri: Uri = text.parse().map_err(|_| wrong("is none"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("has another scheme than http"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        let (user, _) = authority.as_str().rsplit_once('@').unwrap_or_default();
        let authorization = match user {
            "" => None,
            user => Some(basic(user).ok_or_else(|| wrong("has a user or password that is none"))?),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().filter(|port| *port != 0).ok_or_else(|| wrong("has no port"))?;
        if host.is_empty() {
            return Err(wrong("has no host"));
        }
        Ok(Self { host, port, authorization, except })
    }

    /// Whether this goes through the proxy.
    pub(crate) fn takes(&self, url: &Url) -> bool {
        !self.except.has(url.host(), url.port())
    }

    /// A connection to the server of this URL, on which TLS begins.
    pub(crate) async fn connect(&self, url: &Url) -> Result<TcpStream, ProxyError> {
        let proxy = self.to_string();
        let connect = |source| ProxyError::Connect { proxy: proxy.clone(), source: explain(source) };
        let http = |source| ProxyError::Http { proxy: proxy.clone(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(connect)?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD)
            .handshake(TokioIo::new(tcp))
            .await
            .map_err(http)?;
        let authority = url.authority();
        let mut request =
            Request::builder().method(Method::CONNECT).uri(authority.as_str()).header(HOST, &authority);
        if let Some(authorization) = &self.authorization {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|_| ProxyError::Url { what: "cannot be asked for that host" })?;
        let tunnel = async {
            let response = sender.send_request(request).await.map_err(http)?;
            let status = response.status();
            if !status.is_success() {
                return Err(ProxyError::Status { proxy: proxy.clone(), status });
            }
            hyper::upgrade::on(response).await.map_err(http)
        };
        // The connection does the work while the tunnel waits for it; it ends when the tunnel is there.
        let connection = connection.with_upgrades();
        tokio::pin!(tunnel, connection);
        let upgraded = tokio::select! {
            upgraded = &mut tunnel => upgraded,
            closed = &mut connection => tunnel.await.map_err(|why| closed.err().map_or(why, http)),
        }?;
        let parts = upgraded
            .downcast::<TokioIo<TcpStream>>()
            .map_err(|_| ProxyError::Early { proxy: proxy.clone() })?;
        // A server says nothing before the client's hello.
        if !parts.read_buf.is_empty() {
            return Err(ProxyError::Early { proxy: proxy.clone() });
        }
        Ok(parts.io.into_inner())
    }
}

/// Without user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

fn basic(user: &str) -> Option<HeaderValue> {
    let mut pair = Zeroizing::new(decoded(user)?);
    // RFC 7617: the colon is there also without a password.
    if !user.contains(':') {
        pair.push(b':');
    }
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(&*pair)));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `%xx` of a URL's user information.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(out)
}

/// What is asked without the proxy, as Go programs read `NO_PROXY`: a comma-separated list of `*`,
/// `<domain>` (with all below it), `.<domain>` (only what is below it), addresses, networks, each but a
/// network with `:<port>` if wished. What is on the node itself never goes through the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Name { name: String, itself: bool, port: Option<u16> },
    Address(IpAddr, Option<u16>),
    Network(IpAddr, u8),
}

impl NoProxy {
    /// Reads the list; empty entries are passed over.
    ///
    /// # Errors
    /// With the first entry that is none of these.
    pub fn parse(text: &str) -> Result<Self, ProxyError> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let read =
            |entry: &str| exception(entry).ok_or_else(|| ProxyError::Exception { entry: entry.to_owned() });
        entries.map(read).collect::<Result<_, _>>().map(Self)
    }

    fn has(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let same = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        self.0.iter().any(|exception| match exception {
            Exception::All => true,
            Exception::Address(wanted, at) => address == Some(*wanted) && same(at),
            Exception::Network(network, bits) => address.is_some_and(|a| within(a, *network, *bits)),
            Exception::Name { name, itself, port } => {
                let below = host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
                address.is_none() && same(port) && (below || (*itself && host == *name))
            }
        })
    }
}

fn exception(entry: &str) -> Option<Exception> {
    if entry == "*" {
        return Some(Exception::All);
    }
    if let Some((network, bits)) = entry.split_once('/') {
        let network: IpAddr = network.parse().ok()?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        return Some(Exception::Network(network, bits.parse().ok().filter(|bits| *bits <= most)?));
    }
    if let Ok(address) = entry.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Some(Exception::Address(address.to_canonical(), None));
    }
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (entry, None),
    };
    if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Some(Exception::Address(address.to_canonical(), port));
    }
    let name = name.strip_prefix('*').unwrap_or(name).trim_end_matches('.').to_ascii_lowercase();
    let itself = !name.starts_with('.');
    let name = name.strip_prefix('.').unwrap_or(&name).to_owned();
    let good = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '_'].contains(&c);
    (!name.is_empty() && name.chars().all(good)).then_some(Exception::Name { name, itself, port })
}

fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let high = |value: u128, width: u32| value.checked_shr(width - u32::from(bits)).unwrap_or(0);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => high(a.to_bits().into(), 32) == high(n.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => high(a.to_bits(), 128) == high(n.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        let parse = |text: &str| Proxy::parse(text, NoProxy::default());
        assert_eq!(parse("http://proxy.example:3128").unwrap().to_string(), "proxy.example:3128");
        assert_eq!(parse("http://[fd00::1]:3128/").unwrap().to_string(), "[fd00::1]:3128");
        let user = parse("http://me:p%40ss@proxy:3128").unwrap();
        assert_eq!(user.authorization.as_ref().unwrap(), &format!("Basic {}", STANDARD.encode("me:p@ss")));
        let alone = parse("http://me@proxy:3128").unwrap();
        assert_eq!(alone.authorization.as_ref().unwrap(), &format!("Basic {}", STANDARD.encode("me:")));
        assert_eq!(format!("{user:?} {user}"), "Proxy(proxy:3128) proxy:3128");
        for bad in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "socks5://proxy:1080",
            "http://proxy",
            "http://proxy:0",
            "http://:3128",
            "http://me:secret%4@proxy:3128",
            "http://me:secret%zz@proxy:3128",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("write http://") && !error.contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        let list = "a.example, .below.example,*.star.example,10.0.0.0/8,192.0.2.1,[fd00::1]:8443,fd01::/16,p.example:8443,,";
        let list = NoProxy::parse(list).unwrap();
        for (host, port) in [
            ("a.example", 443),
            ("A.Example.", 443),
            ("x.a.example", 1),
            ("x.below.example", 443),
            ("x.star.example", 443),
            ("10.96.0.1", 443),
            ("::ffff:10.96.0.1", 443),
            ("192.0.2.1", 443),
            ("fd00::1", 8443),
            ("fd01:2::3", 443),
            ("x.p.example", 8443),
            ("localhost", 443),
            ("127.0.0.1", 443),
            ("::1", 443),
        ] {
            assert!(list.has(host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("ba.example", 443),
            ("below.example", 443),
            ("star.example", 443),
            ("11.0.0.1", 443),
            ("192.0.2.10", 443),
            ("fd00::1", 443),
            ("fd02::1", 443),
            ("p.example", 443),
            ("other", 443),
        ] {
            assert!(!list.has(host, port), "{host}:{port}");
        }
        assert!(NoProxy::parse("*").unwrap().has("anything", 1));
        assert!(NoProxy::parse("0.0.0.0/0").unwrap().has("203.0.113.1", 1));
        assert!(!NoProxy::default().has("10.0.0.1", 443));
        for bad in ["10.0.0.0/33", "10.0.0.0/x", "a/8", "a:x", ".", "a b", "http://a"] {
            let error = NoProxy::parse(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}", host in ".{0,20}") {
            let _ = Proxy::parse(&text, NoProxy::default());
            if let Ok(list) = NoProxy::parse(&text) {
                list.has(&host, 443);
            }
        }
    }
}
