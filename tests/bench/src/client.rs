//! Clients of the Workload API: a bare one that costs next to nothing, and two that real programs use.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use seamount_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use seamount_proto::workload::{X509svidRequest, X509svidResponse};
use seamount_testkit::http2::{ACK, INITIAL_WINDOW_SIZE, frame, grpc_call, kind, preface};
use tokio::net::UnixStream;

const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// The length prefix of an empty request message.
const EMPTY: &[u8] = &[0, 0, 0, 0, 0];
const PREFIX: usize = 5;
/// What a bare client lets the server send without ever acknowledging it.
const WINDOW: u32 = 1 << 24;

/// Preface, settings, window, and one FetchX509SVID call, in one piece.
fn call() -> Vec<u8> {
    let mut out = preface(&[(INITIAL_WINDOW_SIZE, WINDOW)]);
    out.extend(frame(kind::WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes()));
    out.extend(grpc_call(1, FETCH, &[]));
    out
}

/// HTTP/2 frames out of a byte stream.
#[derive(Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// More bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Kind, flags and payload of the next whole frame.
    fn next(&mut self) -> Option<(u8, u8, Bytes)> {
        let &[a, b, c, kind, flags, ..] = self.buffer.as_ref() else { return None };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if self.buffer.len() < 9 + length {
            return None;
        }
        let mut frame = self.buffer.split_to(9 + length);
        Some((kind, flags, frame.split_off(9).freeze()))
    }

    /// The next whole message, and whether settings came that have to be acknowledged.
    pub fn message(&mut self) -> anyhow::Result<(Option<Bytes>, bool)> {
        let mut acknowledge = false;
        while let Some((kind, flags, payload)) = self.next() {
            match kind {
                // A response is smaller than a frame may be, and hyper does not split it.
                kind::DATA if !payload.is_empty() => return Ok((Some(whole(payload)?), acknowledge)),
                kind::SETTINGS if flags & ACK == 0 => acknowledge = true,
                kind::GOAWAY => bail!("the server says goodbye"),
                // Headers with the end of the stream: an error instead of data.
                1 if flags & 1 != 0 => bail!("the stream ended without data"),
                _ => {}
            }
        }
        Ok((None, acknowledge))
    }
}

/// The message in a whole gRPC frame.
fn whole(mut framed: Bytes) -> anyhow::Result<Bytes> {
    ensure!(framed.len() >= PREFIX, "a gRPC message of {} bytes", framed.len());
    let head = framed.split_to(PREFIX);
    let length = head.iter().skip(1).fold(0_usize, |n, byte| n << 8 | usize::from(*byte));
    ensure!(framed.len() == length, "{} bytes of a gRPC message of {length}", framed.len());
    Ok(framed)
}

/// What settings are answered with.
pub fn acknowledgement() -> Vec<u8> {
    frame(kind::SETTINGS, ACK, 0, &[])
}

/// A blocking client that speaks as little HTTP/2 as there is.
pub struct Bare {
    /// The connection.
    pub stream: StdStream,
    /// What came and was not looked at.
    pub frames: Frames,
}

impl Bare {
    /// Connects and asks.
    pub fn ask(socket: &Path) -> std::io::Result<Self> {
        let mut stream = StdStream::connect(socket)?;
        stream.write_all(&call())?;
        Ok(Self { stream, frames: Frames::default() })
    }

    /// The next message.
    pub fn message(&mut self) -> anyhow::Result<Bytes> {
        loop {
            let (message, acknowledge) = self.frames.message()?;
            if acknowledge {
                self.stream.write_all(&acknowledgement())?;
            }
            if let Some(message) = message {
                return Ok(message);
            }
            let mut buffer = [0; 8192];
            let count = self.stream.read(&mut buffer).context("reading from the Workload API")?;
            ensure!(count > 0, "the Workload API closed the connection");
            self.frames.push(buffer.get(..count).unwrap_or_default());
        }
    }
}

/// The leaf and its issuers of the only SVID of a message, which says that it is complete.
pub fn chain(message: Bytes) -> anyhow::Result<Bytes> {
    let svid =
        X509svidResponse::decode(message)?.svids.into_iter().next().context("no SVID in the answer")?;
    ensure!(!svid.x509_svid.is_empty() && !svid.x509_svid_key.is_empty(), "an SVID without chain or key");
    Ok(svid.x509_svid)
}

/// Connects, asks, and takes the first message, with hyper's HTTP/2 client.
pub async fn fetch_with_hyper(socket: &Path) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await.context("connecting to the Workload API")?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost{FETCH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("workload.spiffe.io", "true")
        .body(Full::new(Bytes::from_static(EMPTY)))?;
    let mut body = sender.send_request(request).await?.into_body();
    let message = loop {
        let frame = body.frame().await.context("the stream ended without data")??;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            break whole(data)?;
        }
    };
    drop((body, sender));
    connection.abort();
    chain(message)
}

/// The same with tonic's client, as programs in Rust have it.
pub async fn fetch_with_tonic(socket: &Path) -> anyhow::Result<Bytes> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let mut client = SpiffeWorkloadApiClient::new(endpoint.connect_with_connector(connector).await?);
    let mut request = tonic::Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    let mut stream = client.fetch_x509svid(request).await?.into_inner();
    let first = stream.message().await?.context("the stream ended without data")?;
    Ok(first.svids.into_iter().next().context("no SVID in the answer")?.x509_svid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_wherever_the_stream_is_cut() {
        let mut wire = frame(kind::SETTINGS, 0, 0, &[]);
        wire.extend(frame(1, 4, 1, &[0x88]));
        wire.extend(frame(kind::DATA, 0, 1, &[0, 0, 0, 0, 3, 1, 2, 3]));
        for cut in 0..wire.len() {
            let mut frames = Frames::default();
            let (before, after) = wire.split_at(cut);
            frames.push(before);
            let (early, first) = frames.message().unwrap();
            assert!(early.is_none());
            frames.push(after);
            let (message, second) = frames.message().unwrap();
            assert_eq!(message.unwrap().as_ref(), [1, 2, 3]);
            assert!(first ^ second, "settings are acknowledged once");
        }
    }

    #[test]
    fn an_error_is_not_taken_for_an_answer() {
        let mut frames = Frames::default();
        frames.push(&frame(1, 5, 1, &[0x88]));
        assert!(frames.message().is_err());
        assert!(whole(Bytes::from_static(&[0, 0, 0, 0, 2, 1])).is_err());
    }
}
