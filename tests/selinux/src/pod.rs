//! What runs in simulated pods. Each prints one line: `ok …`, or `errno N` where the kernel refused.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use seamount_proto::workload::X509svidRequest;
use seamount_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

use crate::runtime::IN_POD;

fn say(outcome: io::Result<String>) {
    match outcome {
        Ok(text) => println!("ok {text}"),
        Err(error) => match error.raw_os_error() {
            Some(number) => println!("errno {number}"),
            None => println!("error {error}"),
        },
    }
}

/// The first SVID that the volume's socket gives.
pub fn fetch() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let limit = Duration::from_secs(20);
        let timeout = || io::Error::from(io::ErrorKind::TimedOut);
        say(tokio::time::timeout(limit, first()).await.unwrap_or_else(|_| Err(timeout())));
    });
    Ok(())
}

async fn first() -> io::Result<String> {
    // By hand, so that errno is not lost among the library's errors.
    let stream = UnixStream::connect(format!("{IN_POD}/spire-agent.sock")).await?;
    let mut once = Some(hyper_util::rt::TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { stream }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel: Channel = endpoint.connect_with_connector(connector).await.map_err(io::Error::other)?;
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let answer = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await;
    let message = answer.map_err(io::Error::other)?.into_inner().message().await.map_err(io::Error::other)?;
    let svid = message.and_then(|m| m.svids.into_iter().next());
    Ok(svid.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?.spiffe_id)
}

/// A file's content.
pub fn read(path: &str) -> anyhow::Result<()> {
    let mut text = String::new();
    say(File::open(path).and_then(|mut file| file.read_to_string(&mut text)).map(|_| text));
    Ok(())
}

/// Makes a file.
pub fn write(path: &str) -> anyhow::Result<()> {
    say(std::fs::write(path, "mine").map(|()| path.to_owned()));
    Ok(())
}

/// Accepts the connection that waits in the listener on standard input.
pub fn accept() -> anyhow::Result<()> {
    let stdin = io::stdin();
    let accepted = rustix::net::accept(stdin.as_fd());
    say(accepted.map(|_| "accepted".to_owned()).map_err(io::Error::from));
    Ok(())
}
