//! The Workload API's socket: whatever a client sends, an identity comes out only by the one request that may
//! have it, and the next client is served.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use seamount_authority::{Embedded, EmbeddedConfig, IdTemplate, Workload, new_key_and_csr};
use seamount_identity::{BundleSet, KeyType, TrustDomain, X509Svid};
use seamount_workload_api::{IdentityState, Limits, Response, Unobserved, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::input;
use crate::tokens::RUNTIME;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const PING: u8 = 6;

struct Server {
    name: String,
    key: Vec<u8>,
    leaf: Vec<u8>,
    _served: watch::Sender<IdentityState>,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let domain: TrustDomain = "example.org".parse().unwrap();
    let authority = Embedded::new(EmbeddedConfig {
        template: IdTemplate::parse("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}", &domain)
            .unwrap(),
        trust_domain: domain,
        key_type: KeyType::EcP256,
        ca_ttl: Duration::from_secs(86_400),
        svid_ttl: Duration::from_secs(3600),
        directory: None,
    })
    .unwrap();
    let workload = Workload {
        namespace: "shop".into(),
        service_account: "cart".into(),
        pod_name: "cart-0".into(),
        pod_uid: "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6".into(),
        node: "node-1".into(),
    };
    let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
    let (chain, bundles): (_, BundleSet) = RUNTIME.block_on(async {
        use seamount_authority::Authority as _;
        let chain = authority.sign(&csr, &workload, "token").await.unwrap();
        (chain, authority.bundles().borrow().as_ref().clone())
    });
    let svid = Arc::new(X509Svid::new(chain, key).unwrap());
    let (leaf, key) = (svid.chain()[0].to_vec(), svid.key().expose_pkcs8_der().to_vec());
    let (sender, served) = watch::channel(IdentityState::Ready(Arc::new(Response::new(&[svid], &bundles))));
    let name = format!("seamount-fuzz-{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    listener.set_nonblocking(true).unwrap();
    RUNTIME.block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let (limits, cancel) = (Limits::default(), CancellationToken::new());
        tokio::spawn(serve(listener, served, limits, Duration::from_secs(5), Arc::new(Unobserved), cancel));
    });
    Server { name, key, leaf, _served: sender }
});

/// 0: a request. 1: frames. 2: bytes.
pub fn run(data: &[u8]) {
    // It needs the runtime that talks to it.
    LazyLock::force(&SERVER);
    let (kind, rest) = input::kind(data, 3);
    match kind {
        0 => drop(request(&mut Unstructured::new(rest))),
        1 => drop(frames(&mut Unstructured::new(rest))),
        _ => {
            let answer = RUNTIME.block_on(talk(rest, Until::Closed));
            assert!(!tells_key(&answer));
        }
    }
}

fn tells_key(answer: &[u8]) -> bool {
    let has = |part: &[u8]| answer.windows(part.len()).any(|w| w == part);
    has(&SERVER.key) || has(&SERVER.leaf)
}

enum Until {
    /// We say nothing more and wait for the goodbye.
    Closed,
    /// Stream 1 was answered: with headers that end it, with a message, or by a reset.
    Answered,
}

/// Sends all, and reads until it is clear what the answer is. A server that does not answer is a hang, which
/// the fuzzer reports.
async fn talk(bytes: &[u8], until: Until) -> Vec<u8> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&SERVER.name).unwrap()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let (mut reader, mut writer) = tokio::net::UnixStream::from_std(stream).unwrap().into_split();
    let mut answer = Vec::new();
    let mut part = [0; 8192];
    let mut sent = 0;
    while sent < bytes.len() {
        tokio::select! {
            written = writer.write(&bytes[sent..]) => match written {
                Ok(count) => sent += count,
                Err(_) => break,
            },
            read = reader.read(&mut part) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => answer.extend_from_slice(&part[..count]),
            },
        }
    }
    if matches!(until, Until::Closed) {
        let _ = writer.shutdown().await;
    }
    while !(matches!(until, Until::Answered) && is_answered(&answer)) {
        match reader.read(&mut part).await {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(&part[..count]),
        }
    }
    answer
}

/// Whole frames: type, flags, stream, payload.
fn split(mut answer: &[u8]) -> Vec<(u8, u8, u32, &[u8])> {
    let mut all = Vec::new();
    while let Some((head, rest)) = answer.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        all.push((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload));
        answer = rest;
    }
    all
}

fn is_answered(answer: &[u8]) -> bool {
    split(answer).iter().any(|(kind, flags, stream, _)| match kind {
        0 => *stream == 1,
        1 => *stream == 1 && flags & 1 != 0,
        3 => *stream == 1,
        7 => true,
        _ => false,
    })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field with a name and a value of our own (RFC 7541, 6.2.2), each shorter than 127 bytes.
fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        block.push(text.len() as u8);
        block.extend(text.bytes());
    }
}

fn short(u: &mut Unstructured<'_>) -> Result<String> {
    let text: String = u.arbitrary()?;
    Ok(text.chars().filter(char::is_ascii).take(100).collect())
}

/// A request that differs from the right one in some of its parts, or in none.
fn request(u: &mut Unstructured<'_>) -> Result<()> {
    let mut method = "POST".to_owned();
    let mut path =
        u.choose(&["/SpiffeWorkloadAPI/FetchX509SVID", "/SpiffeWorkloadAPI/FetchX509Bundles"])?.to_string();
    let mut content_type = "application/grpc".to_owned();
    let mut security = vec![("workload.spiffe.io".to_owned(), "true".to_owned())];
    let mut message = vec![0, 0, 0, 0, 0];
    let mut authority = "localhost".to_owned();
    for _ in 0..u.int_in_range(0..=3u8)? {
        match u.int_in_range(0..=7u8)? {
            0 => method = u.choose(&["GET", "PUT", "post", "CONNECT"])?.to_string(),
            1 => path = format!("/{}", short(u)?),
            2 => {
                content_type =
                    if u.arbitrary()? { format!("application/grpc{}", short(u)?) } else { short(u)? }
            }
            3 => security.clear(),
            4 => security
                .push(("workload.spiffe.io".to_owned(), u.choose(&["true", "false", ""])?.to_string())),
            5 => {
                let value =
                    if u.arbitrary()? { short(u)? } else { u.choose(&["True", "true ", "1"])?.to_string() };
                security = vec![("workload.spiffe.io".to_owned(), value)];
            }
            6 => message = u.arbitrary::<Vec<u8>>()?.into_iter().take(6000).collect(),
            _ => authority = short(u)?,
        }
    }
    let mut block = Vec::new();
    for (name, value) in [(":method", &method), (":scheme", &"http".to_owned()), (":path", &path)] {
        field(&mut block, name, value);
    }
    field(&mut block, ":authority", &authority);
    field(&mut block, "content-type", &content_type);
    security.iter().for_each(|(name, value)| field(&mut block, name, value));
    let mut bytes = [PREFACE, &frame(4, 0, 0, &[]), &frame(HEADERS, 0x4, 1, &block)].concat();
    bytes.extend(frame(0, 1, 1, &message));
    let answer = RUNTIME.block_on(talk(&bytes, Until::Answered));

    let secured = matches!(security.as_slice(), [(_, value)] if value == "true");
    let grpc = content_type == "application/grpc"
        || content_type.starts_with("application/grpc+")
        || content_type.starts_with("application/grpc;");
    let known = path == "/SpiffeWorkloadAPI/FetchX509SVID";
    let empty = message == [0, 0, 0, 0, 0];
    if !(secured && grpc && method == "POST" && known) {
        assert!(!tells_key(&answer), "{method} {path} {content_type} {security:?}");
    } else if empty && !authority.is_empty() && !content_type.bytes().any(|b| b.is_ascii_control()) {
        assert!(tells_key(&answer), "{content_type:?}, authority {authority:?}: {:?}", split(&answer));
    }
    Ok(())
}

#[derive(Debug, Arbitrary)]
struct AnyFrame<'a> {
    kind: u8,
    flags: u8,
    stream: u8,
    payload: &'a [u8],
}

/// Frames of any kind, none of which can be a good request; then a sign of life.
fn frames(u: &mut Unstructured<'_>) -> Result<()> {
    let mut bytes = [PREFACE, &frame(4, 0, 0, &[])].concat();
    let all: Vec<AnyFrame<'_>> = u.arbitrary()?;
    for f in all.iter().take(64) {
        // A frame's kind as it is mostly: one of ten.
        let kind = if f.kind < 240 { f.kind % 10 } else { f.kind };
        bytes.extend(frame(kind, f.flags, u32::from(f.stream % 8), f.payload));
    }
    bytes.extend(frame(PING, 0, 0, b"afterall"));
    let answer = RUNTIME.block_on(talk(&bytes, Until::Closed));
    let wanted = u8::from(bytes.windows(18).any(|w| w == b"workload.spiffe.io"));
    assert!(wanted == 1 || !tells_key(&answer));
    Ok(())
}
