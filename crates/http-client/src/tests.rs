//! Against a TLS server and an HTTP proxy in this process.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"name\":\"a\"}";

#[derive(Debug, Deserialize, PartialEq)]
struct Named {
    name: String,
}

/// A server for `localhost` and `vault.invalid`. It answers each request by its path and keeps what it was
/// sent.
struct Server {
    port: u16,
    pem: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// Head and, by its length, body.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.ok()?);
    }
    let mut text = String::from_utf8(request).unwrap();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    text.push_str(&String::from_utf8(body).unwrap());
    Some(text)
}

impl Server {
    /// An answer of none is silence.
    async fn start(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        let certified =
            rcgen::generate_simple_self_signed(vec!["localhost".into(), "vault.invalid".into()]).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, pem: certified.cert.pem(), requests: Arc::default() };
        let (requests, answer) = (server.requests.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, requests, answer) = (acceptor.clone(), requests.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut tls = acceptor.accept(tcp).await.ok()?;
                    let text = request(&mut tls).await?;
                    let path = text.split(' ').nth(1).unwrap().to_owned();
                    requests.lock().unwrap().push(text);
                    let Some(answer) = answer(&path) else { return std::future::pending().await };
                    tls.write_all(answer.as_bytes()).await.ok()?;
                    tls.shutdown().await.ok()
                });
            }
        });
        server
    }

    /// With the same answer to everything.
    async fn saying(answer: &str) -> Self {
        let answer = answer.to_owned();
        Self::start(move |_| Some(answer.clone())).await
    }

    fn url(&self, path: &str) -> Url {
        Url::of("localhost", self.port, path).unwrap()
    }

    fn client(&self) -> Client {
        Client::new(CaBundle::pem(self.pem.as_bytes()).unwrap())
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn small() -> Limits {
    Limits { body: 1000, ..Limits::default() }
}

#[tokio::test]
async fn json_is_asked_for_and_read() {
    let server = Server::saying(OK).await;
    let get = Request::get(server.url("/v1/x?y=z")).bearer("the-token").unwrap();
    let answer = server.client().send(&get).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json::<Named>().unwrap(), Named { name: "a".into() });
    let post = Request::post(server.url("/login"), &serde_json::json!({"role": "r"})).unwrap();
    server.client().send(&post.secret("x-vault-token", "t").unwrap()).await.unwrap();

    let [get, post] = server.requests().try_into().unwrap();
    assert!(get.starts_with("GET /v1/x?y=z HTTP/1.1\r\n"), "{get}");
    for line in [
        "authorization: Bearer the-token",
        "accept: application/json",
        &format!("host: localhost:{}", server.port),
    ] {
        assert!(get.lines().any(|l| l == line), "{line} is not in {get}");
    }
    assert!(
        post.starts_with("POST /login HTTP/1.1\r\n") && post.ends_with("\r\n\r\n{\"role\":\"r\"}"),
        "{post}"
    );
    assert!(
        post.contains("content-type: application/json\r\n") && post.contains("x-vault-token: t\r\n"),
        "{post}"
    );
}

#[tokio::test]
async fn secrets_are_shown_nowhere() {
    let server = Server::saying("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n\"hunter2\"").await;
    let url = server.url("/x?key=hunter2");
    let request = Request::post(url, &"hunter2").unwrap().bearer("hunter2").unwrap();
    let response = server.client().send(&request).await.unwrap();
    let error = response.json::<Named>().unwrap_err();
    let shown =
        format!("{request:?} {:?} {response:?} {:?}", request.headers, Url::parse("https://a/?hunter2"));
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(matches!(error, Error::Json { .. }));
    assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error}");
    let error = Request::get(server.url("/")).bearer("hunter2\n").unwrap_err().to_string();
    assert!(error.contains("authorization") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn every_status_is_an_answer() {
    let server = Server::saying("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await;
    let answer = server.client().send(&Request::get(server.url("/"))).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (StatusCode::FORBIDDEN, &b"no"[..]));
}

#[tokio::test]
async fn what_a_server_sends_is_bounded() {
    let long = " ".repeat(1001);
    let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "a".repeat(70_000));
    for (answer, says) in [
        (
            format!("HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n{long}"),
            "the body of the answer is longer than 1000",
        ),
        (format!("HTTP/1.1 200 OK\r\n\r\n{long}"), "the body of the answer is longer than 1000"),
        (
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n{long}\r\n0\r\n\r\n"),
            "longer than 1000",
        ),
        (head, "the head of the answer is longer than 65536"),
        ("not HTTP at all\r\n\r\n".to_owned(), "no answer"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".to_owned(), "no answer"),
        (String::new(), "no answer"),
    ] {
        let server = Server::saying(&answer).await;
        let url = server.url("/x");
        let error = server.client().send(&Request::get(url.clone()).limits(small())).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&url.to_string()) && text.contains(says), "{text}");
    }
    let whole = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(1000));
    let server = Server::saying(&whole).await;
    let answer = server.client().send(&Request::get(server.url("/")).limits(small())).await.unwrap();
    assert_eq!(answer.body.len(), 1000);
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let server = Server::start(|_| None).await;
    let (client, request) = (server.client(), Request::get(server.url("/")));
    let send = client.send(&request);
    tokio::pin!(send);
    // Until the request is there time is real; then it is moved past the limit.
    while server.requests().is_empty() {
        tokio::select! {
            early = &mut send => panic!("{early:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    tokio::time::pause();
    tokio::time::advance(Limits::default().deadline).await;
    tokio::time::resume();
    let error = send.await.unwrap_err();
    assert!(error.to_string().contains("no answer within 10 s"), "{error}");
}

#[tokio::test]
async fn a_server_of_another_authority_sees_no_request() {
    let (server, other) = (Server::saying(OK).await, Server::saying(OK).await);
    let request = Request::get(server.url("/")).bearer("secret").unwrap();
    let error = other.client().send(&request).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }) && error.to_string().contains("certificate"), "{error}");
    // Nor one whose certificate has another name.
    let url = Url::of("127.0.0.1", server.port, "/").unwrap();
    assert!(matches!(server.client().send(&Request::get(url)).await, Err(Error::Tls { .. })));
    assert_eq!(server.requests(), [""; 0]);
}

#[tokio::test]
async fn what_does_not_listen_and_what_has_no_address_is_said() {
    let server = Server::saying(OK).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error =
        server.client().send(&Request::get(Url::of("localhost", free, "/").unwrap())).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.to_string().contains("refused"), "{error}");
    // A label cannot have more than 63 characters, so no server is asked for it.
    let long = Url::parse(&format!("https://{}/", "a".repeat(64))).unwrap();
    let error = server.client().send(&Request::get(long)).await.unwrap_err();
    assert!(matches!(error, Error::Resolve { .. }), "{error}");
}

#[tokio::test]
async fn a_refused_address_is_not_connected_to() {
    let server = Server::saying(OK).await;
    let client = server.client().with_address_policy(AddressPolicy::no_node_services());
    for host in ["localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        let url = Url::of(host, server.port, "/").unwrap();
        let error = client.send(&Request::get(url)).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{host}: {error}");
        assert!(error.to_string().contains("loopback"), "{error}");
    }
    assert_eq!(server.requests(), [""; 0]);
}

#[tokio::test]
async fn redirects_are_answers_unless_they_are_to_be_followed() {
    let there = Server::saying(OK).await;
    let to = there.url("/there").to_string();
    let here = Server::start(move |path| {
        let to = match path {
            "/away" => to.clone(),
            "/twice" => "/ok".to_owned(),
            "/loop" => "/loop".to_owned(),
            "/plain" => "http://localhost/".to_owned(),
            _ => return Some(OK.to_owned()),
        };
        Some(format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"))
    })
    .await;
    let both = CaBundle::pem(format!("{}{}", here.pem, there.pem).as_bytes()).unwrap();
    let client = Client::new(both);
    let get = |path: &str| Request::get(here.url(path)).bearer("secret").unwrap();
    assert_eq!(client.send(&get("/away")).await.unwrap().status, StatusCode::FOUND);
    assert_eq!(there.requests(), [""; 0]);

    let answer = client.send(&get("/twice").follow_redirects(1)).await.unwrap();
    assert_eq!((answer.status, answer.url), (StatusCode::OK, here.url("/ok")));
    assert!(here.requests().last().unwrap().contains("Bearer secret"), "the same server");

    assert_eq!(client.send(&get("/away").follow_redirects(1)).await.unwrap().status, StatusCode::OK);
    let elsewhere = there.requests().join("");
    assert!(elsewhere.starts_with("GET /there ") && !elsewhere.contains("secret"), "{elsewhere}");

    let count = here.requests().len();
    let error = client.send(&get("/loop").follow_redirects(3)).await.unwrap_err();
    assert!(matches!(error, Error::Redirects { most: 3, .. }), "{error}");
    assert_eq!(here.requests().len(), count + 4);
    let error = client.send(&get("/plain").follow_redirects(3)).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");

    let post = Request::post(here.url("/away"), &1).unwrap().follow_redirects(1);
    assert_eq!(client.send(&post).await.unwrap().status, StatusCode::FOUND, "a body is not sent elsewhere");
}

/// The policy holds for what a redirect names, too.
#[tokio::test]
async fn a_redirect_leads_to_no_refused_address() {
    let here = Server::saying(
        "HTTP/1.1 302 Found\r\nlocation: https://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let policy = AddressPolicy::new(|a| if a.is_loopback() { Ok(()) } else { Err("is elsewhere") });
    let get = Request::get(here.url("/")).follow_redirects(1);
    let error = here.client().with_address_policy(policy).send(&get).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains("is elsewhere"), "{error}");
}

/// A proxy that answers CONNECT with this and, where that is 200, carries bytes to this port.
async fn proxy(answer: &'static str, to: u16) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let text = request(&mut tcp).await?;
                seen.lock().unwrap().push(text);
                tcp.write_all(answer.as_bytes()).await.ok()?;
                if answer.contains(" 200 ") {
                    let mut server = TcpStream::connect(("127.0.0.1", to)).await.ok()?;
                    let _ = tokio::io::copy_bidirectional(&mut tcp, &mut server).await;
                }
                Some(())
            });
        }
    });
    (port, requests)
}

fn through(port: u16, user: &str, except: &str) -> Proxy {
    Proxy::parse(&format!("http://{user}127.0.0.1:{port}"), NoProxy::parse(except).unwrap()).unwrap()
}

const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

/// The name is resolved by the proxy: this process has no address for it.
#[tokio::test]
async fn a_proxy_carries_tls_to_the_server() {
    let server = Server::saying(OK).await;
    let (port, asked) = proxy(ESTABLISHED, server.port).await;
    let client = server.client().with_proxy(through(port, "me:p%40ss@", ""));
    let get = Request::get(Url::parse("https://vault.invalid:8200/v1").unwrap()).bearer("secret").unwrap();
    assert_eq!(client.send(&get).await.unwrap().status, StatusCode::OK);
    let asked = asked.lock().unwrap().join("");
    assert!(asked.starts_with("CONNECT vault.invalid:8200 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.to_lowercase().contains("host: vault.invalid:8200\r\n"), "{asked}");
    assert!(asked.contains("Basic bWU6cEBzcw==") && !asked.contains("secret"), "{asked}");
    let request = server.requests().join("");
    assert!(request.contains("Bearer secret\r\n") && !request.contains("Basic"), "{request}");
}

#[tokio::test]
async fn exceptions_and_the_node_itself_need_no_proxy() {
    let server = Server::saying(OK).await;
    let (port, asked) = proxy("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", server.port).await;
    let client = server.client().with_proxy(through(port, "", ".invalid"));
    assert!(client.send(&Request::get(server.url("/"))).await.is_ok());
    let named = Request::get(Url::parse("https://vault.invalid/").unwrap());
    let error = client.send(&named).await.unwrap_err();
    assert!(matches!(error, Error::Resolve { .. }), "{error}");
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_proxy_that_gives_no_way_is_named() {
    let server = Server::saying(OK).await;
    let get = Request::get(Url::parse("https://vault.invalid/").unwrap());
    for (answer, says) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", "answers 407"),
        ("HTTP/1.1 403 Forbidden\r\n\r\nno", "answers 403"),
        ("SSH-2.0-x\r\n\r\n", "does not answer CONNECT"),
        ("", "does not answer CONNECT"),
        ("HTTP/1.1 200 OK\r\n\r\nearly", "sends more than its answer"),
    ] {
        let (port, _) = proxy(answer, server.port).await;
        let error =
            server.client().with_proxy(through(port, "me:hunter2@", "")).send(&get).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Proxy { .. }) && text.contains(says), "{answer:?}: {text}");
        assert!(text.contains(&format!("127.0.0.1:{port}")) && !text.contains("hunter2"), "{text}");
    }
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = server.client().with_proxy(through(free, "", "")).send(&get).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

/// Where the proxy resolves names, an address in the URL is still looked at.
#[tokio::test]
async fn a_proxy_is_not_asked_for_a_refused_address() {
    let server = Server::saying(OK).await;
    let (port, asked) = proxy(ESTABLISHED, server.port).await;
    let client = server.client().with_proxy(through(port, "", ""));
    let client = client.with_address_policy(AddressPolicy::no_node_services());
    let get = Request::get(Url::parse("https://169.254.169.254/").unwrap());
    assert!(matches!(client.send(&get).await, Err(Error::Refused { .. })));
    assert!(asked.lock().unwrap().is_empty());
}

#[test]
fn a_ca_bundle_is_pem_of_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.crt");
    for (content, says) in [
        ("", "has no certificate"),
        ("-----BEGIN CERTIFICATE-----\n!", "not PEM"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a CA certificate"),
    ] {
        fs::write(&path, content).unwrap();
        let error = CaBundle::file(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    fs::write(&path, " ".repeat(1024 * 1024 + 1)).unwrap();
    assert!(CaBundle::file(&path).unwrap_err().to_string().contains("longer than"));
    assert!(CaBundle::file(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    assert!(CaBundle::file(&dir.path().join("none")).unwrap_err().to_string().contains("No such file"));
}
