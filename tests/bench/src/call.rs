//! The CSI client that measures: the `h2` crate's HTTP/2 connection, and what gRPC needs on top of it.
//!
//! hyper's and tonic's clients add tasks, queues and copies to each call (row N1f has tonic's); what is to be
//! measured is the driver.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use seamount_workload_api::read_interest::ReadInterestStream;
use tokio::net::UnixStream;

/// The length prefix of a gRPC message: not compressed, and its length.
const PREFIX: usize = 5;

/// What can be called for a volume.
#[derive(Debug, Clone, Copy)]
pub enum Method {
    /// `NodePublishVolume`.
    Publish,
    /// `NodeUnpublishVolume`.
    Unpublish,
}

/// A client of a driver's Node service; its clones share the connection, which ends with the last.
#[derive(Debug, Clone)]
pub struct Csi(SendRequest<Bytes>);

impl Csi {
    /// Connects to a driver's socket.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let said = || format!("cannot connect to {}", socket.display());
        let stream = ReadInterestStream::new(UnixStream::connect(socket).await.with_context(said)?)?;
        let (sender, connection) = h2::client::handshake(stream).await.with_context(said)?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// One call with a message as [`framed`] makes it; an error of the driver is one of this.
    pub async fn call(&self, method: Method, message: Bytes) -> anyhow::Result<()> {
        let uri = match method {
            Method::Publish => "http://localhost/csi.v1.Node/NodePublishVolume",
            Method::Unpublish => "http://localhost/csi.v1.Node/NodeUnpublishVolume",
        };
        let request =
            Request::post(uri).header("te", "trailers").header("content-type", "application/grpc").body(())?;
        let mut sender = self.0.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, false)?;
        stream.send_data(message, true)?;
        let (head, mut body) = response.await?.into_parts();
        ensure!(head.status == http::StatusCode::OK, "the driver answers with HTTP status {}", head.status);
        // An error without a message has its status here (gRPC over HTTP/2, "Trailers-Only").
        if head.headers.contains_key("grpc-status") {
            return outcome(&head.headers);
        }
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        outcome(&body.trailers().await?.context("an answer without a status")?)
    }
}

fn outcome(trailers: &HeaderMap) -> anyhow::Result<()> {
    let text = |name| trailers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match text("grpc-status").as_deref() {
        Some("0") => Ok(()),
        Some(code) => bail!("status {code}: {}", text("grpc-message").unwrap_or_default()),
        None => bail!("an answer without a status"),
    }
}

/// A message as it goes onto the wire.
pub fn framed(message: &impl Message) -> anyhow::Result<Bytes> {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(length.try_into()?);
    message.encode(&mut out)?;
    Ok(out.freeze())
}
