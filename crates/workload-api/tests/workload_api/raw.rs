//! HTTP/2 by hand: hyper's client for requests that no gRPC client would send, and frames for what hyper
//! would not.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::support::*;

pub const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
pub const EMPTY: &[u8] = &[0, 0, 0, 0, 0];

/// HTTP status, gRPC status, gRPC message of a request whose answer has no body that does not end.
pub async fn ask(server: &Server, request: http::Request<Full<Bytes>>) -> (u16, String, String) {
    let io = TokioIo::new(UnixStream::connect(&server.path).await.unwrap());
    let (mut sender, connection) = soon(http2::handshake(TokioExecutor::new(), io)).await.unwrap();
    tokio::spawn(connection);
    let response = soon(sender.send_request(request)).await.unwrap();
    let http = response.status().as_u16();
    let mut headers = response.headers().clone();
    if !headers.contains_key("grpc-status") {
        let collected = soon(response.into_body().collect()).await.unwrap();
        headers.extend(collected.trailers().cloned().unwrap_or_default());
    }
    let text = |name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    (http, text("grpc-status"), text("grpc-message"))
}

pub fn request(method: &str, path: &str, content_type: &str, body: &[u8]) -> http::Request<Full<Bytes>> {
    http::Request::builder()
        .method(method)
        .uri(format!("http://localhost{path}"))
        .header("content-type", content_type)
        .header("te", "trailers")
        .header("workload.spiffe.io", "true")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap()
}

/// One HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A string of HPACK, not compressed.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
}

/// Preface and settings; with `window`, the client takes that much without acknowledging anything.
pub fn preface(window: Option<u32>) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut settings = Vec::new();
    if let Some(window) = window {
        settings.extend([0, 4]);
        settings.extend(window.to_be_bytes());
    }
    out.extend(frame(4, 0, 0, &settings));
    if let Some(window) = window {
        out.extend(frame(8, 0, 0, &(window - 65_535).to_be_bytes()));
    }
    out
}

/// HEADERS of a FetchX509SVID call on `stream`; more header fields in `extra`.
pub fn headers(stream: u32, extra: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04];
    string(&mut block, FETCH);
    block.push(0x01);
    string(&mut block, "localhost");
    let usual = [("content-type", "application/grpc"), ("te", "trailers"), ("workload.spiffe.io", "true")];
    for (name, value) in usual.iter().chain(extra) {
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    frame(1, 4, stream, &block)
}

/// A whole FetchX509SVID call on `stream`.
pub fn call(stream: u32) -> Vec<u8> {
    let mut out = headers(stream, &[]);
    out.extend(frame(0, 1, stream, EMPTY));
    out
}

/// Connects and writes; what the server does with it is the caller's business.
pub async fn write(server: &Server, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    // The server may already have closed it.
    let _ = stream.write_all(bytes).await;
    stream
}

/// Reads until the server closes.
pub async fn closed(mut stream: UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    soon(async {
        let mut buffer = [0; 4096];
        while let Ok(1..) = stream.read(&mut buffer).await.inspect(|n| rest.extend(&buffer[..*n])) {}
    })
    .await;
    rest
}
