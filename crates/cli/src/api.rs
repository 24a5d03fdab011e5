//! `seamount api`: the Workload API for people, through the `spiffe` crate's client.
//!
//! Private keys are printed only with `--include-key`; `--write` always writes them, to files that only the
//! caller can read.

mod failure;
mod show;
mod socket;
mod write;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use spiffe::{WorkloadApiClient, X509Context};
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt as _;

use failure::Failure;
use show::{Format, Shown};

/// The pause before a broken stream is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// The arguments of `seamount api`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The Workload API's socket: a path, or a URI as in SPIFFE_ENDPOINT_SOCKET. Without it:
    /// SPIFFE_ENDPOINT_SOCKET, else the usual mount paths.
    #[arg(long, global = true, value_name = "SOCKET")]
    socket: Option<String>,
    /// text: for people; json: for programs; pem: certificates (and with --include-key private keys).
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Also print private keys (json and pem).
    #[arg(long, global = true)]
    include_key: bool,
    /// Also write svid.N.pem, svid.N.key (mode 0600) and bundle.N.pem into this directory, each atomically.
    #[arg(long, global = true, value_name = "DIR")]
    write: Option<PathBuf>,
    /// How long to wait: for the answer, or with `watch` in all. 500ms, 30s, 2m, 1h.
    /// [default: 30s, with watch for ever]
    #[arg(long, global = true, value_name = "TIME", value_parser = seamount_api::parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch this workload's identity once.
    Fetch {
        /// What to fetch.
        #[arg(value_enum, default_value_t = Profile::X509)]
        profile: Profile,
    },
    /// Fetch the trust bundles once.
    Bundles,
    /// Print each update of this workload's identity as it comes.
    Watch {
        /// Stop after so many updates.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
}

/// The kinds of SVIDs that can be fetched.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    /// X.509-SVIDs with their keys and bundles.
    X509,
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever keeps the answer from the caller, with what to do about it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(answer(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn answer(args: Args) -> anyhow::Result<()> {
    let Args { command, common } = args;
    let endpoint = socket::choose(common.socket.as_deref())?;
    let deadline = common.timeout.unwrap_or(Duration::from_secs(30));
    match command {
        Command::Fetch { profile: Profile::X509 } => {
            let context = once(&endpoint, deadline, async |client| client.fetch_x509_context().await).await?;
            common.report(&Shown::of(&context)?, false)
        }
        Command::Bundles => {
            let bundles = once(&endpoint, deadline, async |client| client.fetch_x509_bundles().await).await?;
            common.report(&Shown::of_bundles(&bundles)?, false)
        }
        Command::Watch { count } => watch(&endpoint, &common, count).await,
    }
}

impl Common {
    fn report(&self, shown: &Shown, one_line: bool) -> anyhow::Result<()> {
        let text = shown.render(self.output, self.include_key, one_line)?;
        // Not print!: a reader that has gone away is no reason to panic.
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&text).and_then(|()| stdout.flush()).context("cannot write to stdout")?;
        match &self.write {
            Some(directory) => write::write(directory, shown),
            None => Ok(()),
        }
    }
}

async fn once<T>(
    endpoint: &socket::Chosen,
    deadline: Duration,
    call: impl AsyncFnOnce(&WorkloadApiClient) -> Result<T, spiffe::WorkloadApiError>,
) -> Result<T, Failure> {
    let answer = async {
        let client = connect(endpoint).await?;
        call(&client).await.map_err(|error| Failure::of(endpoint, error))
    };
    match tokio::time::timeout(deadline, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::Timeout { socket: endpoint.to_string(), deadline }),
    }
}

async fn connect(endpoint: &socket::Chosen) -> Result<WorkloadApiClient, Failure> {
    endpoint.probe()?;
    WorkloadApiClient::connect(endpoint.endpoint().clone())
        .await
        .map_err(|error| Failure::of(endpoint, error))
}

/// Prints updates until `count` of them came or the time is over. The latter is a failure if a count was
/// given.
async fn watch(endpoint: &socket::Chosen, common: &Common, count: Option<u64>) -> anyhow::Result<()> {
    // A year is for ever, and does not overflow.
    let patience = common.timeout.unwrap_or(Duration::from_secs(365 * 24 * 3600));
    let deadline = Instant::now() + patience;
    let mut seen = 0;
    while count.is_none_or(|count| seen < count) {
        let round = follow(endpoint, |context| {
            common.report(&Shown::of(&context)?, true)?;
            seen += 1;
            Ok(count.is_none_or(|count| seen < count))
        });
        let end = match timeout_at(deadline, round).await {
            Ok(Ok(())) => continue,
            Ok(Err(Interrupted::Stream(failure))) => failure,
            Ok(Err(Interrupted::Output(error))) => return Err(error),
            Err(_) => return out_of_time(endpoint, patience, seen, count),
        };
        if !end.may_pass() {
            return Err(end.into());
        }
        eprintln!("seamount: {end}; trying again");
        if timeout_at(deadline, tokio::time::sleep(PAUSE)).await.is_err() {
            return if seen == 0 { Err(end.into()) } else { out_of_time(endpoint, patience, seen, count) };
        }
    }
    Ok(())
}

fn out_of_time(
    endpoint: &socket::Chosen,
    patience: Duration,
    seen: u64,
    count: Option<u64>,
) -> anyhow::Result<()> {
    match count {
        Some(count) => anyhow::bail!("{seen} of {count} updates came from {endpoint} within {patience:?}"),
        None if seen == 0 => {
            Err(Failure::Timeout { socket: endpoint.to_string(), deadline: patience }.into())
        }
        None => Ok(()),
    }
}

enum Interrupted {
    Stream(Failure),
    Output(anyhow::Error),
}

/// Follows one stream; `Ok` when `each` says that it has seen enough.
async fn follow(
    endpoint: &socket::Chosen,
    mut each: impl FnMut(X509Context) -> anyhow::Result<bool>,
) -> Result<(), Interrupted> {
    let failed = |error| Interrupted::Stream(Failure::of(endpoint, error));
    let client = connect(endpoint).await.map_err(Interrupted::Stream)?;
    let mut updates = client.stream_x509_contexts().await.map_err(failed)?;
    while let Some(update) = updates.next().await {
        if !each(update.map_err(failed)?).map_err(Interrupted::Output)? {
            return Ok(());
        }
    }
    Err(Interrupted::Stream(Failure::Ended { socket: endpoint.to_string() }))
}
