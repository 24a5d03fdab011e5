//! A mutual TLS client on an SVID: speaks to one server, whose SPIFFE ID it expects, again and again.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Parser;
use rustls::pki_types::ServerName;
use seamount_examples::{Party, seconds};
use spiffe::{SpiffeId, X509Source};
use spiffe_rustls::authorizer;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

/// How long one conversation may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What happens so often in a row is not an accident: for a moment of its own rotation a server may refuse
/// every client.
const SURE: u32 = 3;

/// Speaks to a server once a second.
#[derive(Parser)]
struct Args {
    /// Where the server is; may be repeated, the first that accepts a connection is taken.
    #[arg(long, required = true)]
    server: Vec<String>,
    /// The SPIFFE ID that the server must have.
    #[arg(long)]
    expect: SpiffeId,
    /// End after so many conversations.
    #[arg(long)]
    count: Option<u64>,
    /// End when this client's SVID has been replaced and the new one was used.
    #[arg(long)]
    until_rotated: bool,
    /// End after so long in any case.
    #[arg(long, value_parser = seconds)]
    run_for: Option<Duration>,
    /// Succeed if, and only if, the server refuses this client.
    #[arg(long)]
    expect_refusal: bool,
}

/// How a conversation ended.
enum Outcome {
    /// The server's greeting, and its SPIFFE ID.
    Greeted(Party, String),
    /// The server ended TLS with this alert.
    Refused(rustls::AlertDescription),
    /// The conversation broke off, or the server was not the expected one.
    Failed(anyhow::Error),
    /// No server listens (yet).
    Absent(io::Error),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let source = X509Source::new().await?;
    let first = Party::me(&source)?;
    println!("client: I am {first}");

    let config = spiffe_rustls::mtls_client(source.clone())
        .authorize(authorizer::exact([args.expect.clone()])?)
        .build()?;
    let connector = TlsConnector::from(Arc::new(config));

    let end = args.run_for.map(|time| Instant::now() + time);
    let (mut conversations, mut failures, mut in_a_row) = (0, 0, 0);
    while end.is_none_or(|end| Instant::now() < end) && args.count.is_none_or(|count| conversations < count) {
        let conversation = timeout(PATIENCE, speak(&connector, &args.server)).await;
        match conversation.unwrap_or_else(|_| Ok(Outcome::Failed(anyhow!("the server is silent"))))? {
            Outcome::Greeted(server, _) if args.expect_refusal => {
                bail!("{server} was to refuse, and did not")
            }
            Outcome::Greeted(server, greeting) => {
                (conversations, in_a_row) = (conversations + 1, 0);
                println!("client: {server} says: {greeting}");
                // Its own serial number is in the server's words: so the new SVID was used, not only
                // received.
                if args.until_rotated && !greeting.contains(&first.serial) {
                    println!(
                        "client: my SVID was replaced: {conversations} conversations, {failures} failures"
                    );
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Outcome::Refused(alert) => {
                (failures, in_a_row) = (failures + 1, in_a_row + 1);
                println!("client: {} refused me: TLS alert {alert:?}", args.expect);
                if args.expect_refusal && in_a_row == SURE {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Outcome::Failed(error) => {
                (failures, in_a_row) = (failures + 1, in_a_row + 1);
                println!("client: no conversation: {error:#}");
            }
            Outcome::Absent(error) => println!("client: no server yet: {error}"),
        }
        if in_a_row == SURE {
            bail!("{SURE} conversations in a row have failed");
        }
        sleep(Duration::from_secs(1)).await;
    }
    if conversations == 0 {
        bail!("no conversation with {}", args.expect);
    }
    Ok(ExitCode::SUCCESS)
}

async fn speak(connector: &TlsConnector, servers: &[String]) -> anyhow::Result<Outcome> {
    let mut tcp = Err(io::ErrorKind::NotFound.into());
    for server in servers {
        tcp = TcpStream::connect(server).await;
        if tcp.is_ok() {
            break;
        }
    }
    let tcp = match tcp {
        Ok(tcp) => tcp,
        Err(error) => return Ok(Outcome::Absent(error)),
    };
    // SPIFFE compares IDs, not host names; rustls wants one all the same.
    match connector.connect(ServerName::try_from("server.invalid")?, tcp).await {
        Ok(mut tls) => {
            let server = Party::peer(tls.get_ref().1.peer_certificates())?;
            let mut greeting = String::new();
            match tls.read_to_string(&mut greeting).await {
                Ok(_) => Ok(Outcome::Greeted(server, greeting.trim_end().to_owned())),
                // With TLS 1.3 a refusal of the client's certificate comes after the handshake.
                Err(error) => Ok(failure(error)),
            }
        }
        Err(error) => Ok(failure(error)),
    }
}

fn failure(error: io::Error) -> Outcome {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => Outcome::Refused(*alert),
        _ => Outcome::Failed(error.into()),
    }
}
