//! A mutual TLS server on an SVID: greets clients with the allowed SPIFFE IDs and refuses all others.
//!
//! Certificate, key and trust bundle come from the Workload API (SPIFFE_ENDPOINT_SOCKET) and are replaced
//! while the server runs: there is nothing to configure, to mount or to restart.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use seamount_examples::{Party, seconds};
use spiffe::{SpiffeId, X509Source};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;

/// Greets the clients that are allowed.
#[derive(Parser)]
struct Args {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:18443")]
    listen: String,
    /// A SPIFFE ID that may speak to this server; may be repeated.
    #[arg(long, required = true)]
    allow: Vec<SpiffeId>,
    /// End when, after the first client, no client has come for so long.
    #[arg(long, value_parser = seconds)]
    until_idle: Option<Duration>,
    /// End after so long in any case.
    #[arg(long, value_parser = seconds)]
    run_for: Option<Duration>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let source = X509Source::new().await?;
    println!("server: I am {}", Party::me(&source)?);

    let allowed: BTreeSet<SpiffeId> = args.allow.into_iter().collect();
    let config = spiffe_rustls::mtls_server(source.clone())
        .authorize(move |client: &SpiffeId| {
            let welcome = allowed.contains(client);
            if !welcome {
                println!("server: refused {client}");
            }
            welcome
        })
        .build()?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(&args.listen).await?;
    println!("server: listening on {}", listener.local_addr()?);

    let mut rotations = source.updated();
    let mut stop = signal(SignalKind::terminate())?;
    let end = args.run_for.map(|time| Instant::now() + time);
    let mut idle_end = None;
    loop {
        let next_end = [end, idle_end].into_iter().flatten().min();
        tokio::select! {
            connection = listener.accept() => {
                idle_end = args.until_idle.map(|time| Instant::now() + time);
                let (tcp, _) = connection?;
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Err(error) = greet(&acceptor, tcp).await {
                        println!("server: no conversation: {error:#}");
                    }
                });
            }
            update = rotations.changed() => {
                update?;
                println!("server: my SVID is new, I am {}", Party::me(&source)?);
            }
            () = sleep_until(next_end.unwrap_or_else(Instant::now)), if next_end.is_some() => break,
            _ = stop.recv() => break,
        }
    }
    println!("server: done");
    Ok(())
}

async fn greet(acceptor: &TlsAcceptor, tcp: TcpStream) -> anyhow::Result<()> {
    let mut tls = acceptor.accept(tcp).await?;
    let client = Party::peer(tls.get_ref().1.peer_certificates())?;
    println!("server: welcome {client}");
    tls.write_all(format!("welcome {client}\n").as_bytes()).await?;
    tls.shutdown().await?;
    Ok(())
}
