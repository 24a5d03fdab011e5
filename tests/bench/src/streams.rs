//! Holds open streams, and tells when the last of them has another bundle than at first.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use prost::Message as _;
use seamount_proto::workload::X509svidResponse;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::client::{Bare, acknowledgement};

/// The arguments of `streams`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file with the path of a socket in each line.
    #[arg(long)]
    sockets: PathBuf,
    /// Connections with one stream each, per socket.
    #[arg(long)]
    per_socket: usize,
}

/// A line of its output, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub enum Told {
    /// All are open and have their first message.
    Open {
        /// How many.
        streams: usize,
        /// How long that took.
        seconds: f64,
    },
    /// All have another bundle; nanoseconds since 1970 of the first and of the last to have it.
    Updated {
        /// The first.
        first_ns: i128,
        /// The last.
        last_ns: i128,
    },
}

fn tell(told: &Told) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(told)?);
    Ok(std::io::stdout().flush()?)
}

/// Runs the subcommand until standard input ends.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.sockets)
        .with_context(|| format!("cannot read {}", args.sockets.display()))?;
    let begun = Instant::now();
    let mut open = Vec::new();
    for _ in 0..args.per_socket {
        for socket in text.lines() {
            let mut connection = Bare::ask(socket.as_ref()).with_context(|| socket.to_owned())?;
            let bundle = bundle_length(connection.message()?)?;
            open.push((connection, bundle));
        }
    }
    tell(&Told::Open { streams: open.len(), seconds: begun.elapsed().as_secs_f64() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut waiting = tokio::task::JoinSet::new();
        for (connection, bundle) in open {
            waiting.spawn(updated(connection, bundle));
        }
        let (mut first_ns, mut last_ns) = (i128::MAX, 0);
        // Streams that have it stay open.
        let mut streams = Vec::new();
        while let Some(outcome) = waiting.join_next().await {
            let (at, stream) = outcome??;
            first_ns = first_ns.min(at);
            last_ns = last_ns.max(at);
            streams.push(stream);
        }
        tell(&Told::Updated { first_ns, last_ns })?;
        // Until the other side has looked at the agent's memory.
        let _ = std::io::stdin().read(&mut [0; 1]);
        Ok(())
    })
}

/// When a stream's bundle is longer or shorter than it was.
async fn updated(connection: Bare, before: usize) -> anyhow::Result<(i128, UnixStream)> {
    let Bare { stream, mut frames } = connection;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    loop {
        let (message, acknowledge) = frames.message()?;
        if acknowledge {
            stream.write_all(&acknowledgement()).await?;
        }
        if let Some(message) = message {
            if bundle_length(message)? != before {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                return Ok((i128::try_from(now.as_nanos())?, stream));
            }
            continue;
        }
        // No buffer is held while nothing comes.
        stream.readable().await?;
        let mut buffer = [0; 4096];
        match stream.try_read(&mut buffer) {
            Ok(count) => {
                ensure!(count > 0, "a stream was cut");
                frames.push(buffer.get(..count).unwrap_or_default());
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn bundle_length(message: Bytes) -> anyhow::Result<usize> {
    let response = X509svidResponse::decode(message)?;
    Ok(response.svids.first().context("no SVID in the answer")?.bundle.len())
}
