//! HTTP/2 by hand: hyper's client for requests that no gRPC client would send, and frames for what hyper
//! would not.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use seamount_testkit::http2::{self, END_HEADERS, INITIAL_WINDOW_SIZE, grpc_call, grpc_headers, kind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::support::*;

pub use seamount_testkit::http2::frame;

pub const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
pub const EMPTY: &[u8] = &[0, 0, 0, 0, 0];

/// HTTP status, gRPC status, gRPC message of a request whose answer has no body that does not end.
pub async fn ask(server: &Server, request: http::Request<Full<Bytes>>) -> (u16, String, String) {
    let io = TokioIo::new(UnixStream::connect(&server.path).await.unwrap());
    let (mut sender, connection) = soon(conn::http2::handshake(TokioExecutor::new(), io)).await.unwrap();
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

/// Preface and settings; with `window`, the client takes that much without acknowledging anything.
pub fn preface(window: Option<u32>) -> Vec<u8> {
    let Some(window) = window else { return http2::preface(&[]) };
    let more = frame(kind::WINDOW_UPDATE, 0, 0, &(window - 65_535).to_be_bytes());
    [http2::preface(&[(INITIAL_WINDOW_SIZE, window)]), more].concat()
}

/// HEADERS of a FetchX509SVID call on `stream`; more header fields in `extra`.
pub fn headers(stream: u32, extra: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream, &grpc_headers(FETCH, extra))
}

/// A whole FetchX509SVID call on `stream`.
pub fn call(stream: u32) -> Vec<u8> {
    grpc_call(stream, FETCH, &[])
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
