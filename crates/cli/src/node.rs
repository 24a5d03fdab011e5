//! `seamount node`: what the agent and the mounter of this node are doing, and what is wrong with them.
//!
//! The agent is asked on its CSI socket, which only root may use (`seamount.node.v1`). `doctor` looks at the
//! file system and at /proc as well, because it has to be of use when no process answers.

mod client;
mod disk;
mod doctor;
mod model;
mod processes;
mod render;
mod time;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};

use client::Client;
use model::{Report, Volumes};

/// The arguments of `seamount node`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The kubelet's --root-dir.
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_root: PathBuf,
    /// A CSI driver of the agent: on its socket the agent is asked, and `doctor` looks at its sockets.
    #[arg(long, global = true, value_name = "NAME", default_value = "csi.spiffe.io", value_parser = driver)]
    driver: String,
    /// text: for people; wide: all there is; json: for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// How long the agent may take to answer: 500ms, 5s.
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = seamount_api::parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Wide,
    Json,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// The agent, the mounter, and what they depend on.
    Status,
    /// Every volume of the node with its pod, its identity and its health.
    Volumes,
    /// Look for what is wrong, in order, and say what to do. Status: 0 nothing, 1 something, 2 could not
    /// look.
    Doctor,
}

/// A driver's name becomes a part of paths.
fn driver(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    match text.len() {
        1..=63 if text.bytes().all(good) && !text.starts_with('.') => Ok(text.to_owned()),
        _ => Err("a CSI driver's name has 1 to 63 letters, digits, dots and hyphens".to_owned()),
    }
}

/// Runs the subcommand.
///
/// # Errors
/// If the agent does not answer (except `doctor`, which says so among its findings), or the output cannot be
/// written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(answer(args))
}

async fn answer(Args { command, common }: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&common.kubelet_root, &common.driver, common.timeout);
    let (text, code) = match command {
        Command::Status => {
            let report = Report::new(client.status().await?);
            let text = match common.output {
                Format::Json => render::json(&report)?,
                format => render::status(&report, format == Format::Wide, SystemTime::now()),
            };
            (text, ExitCode::SUCCESS)
        }
        Command::Volumes => {
            let volumes = Volumes::new(client.volumes().await?);
            let text = match common.output {
                Format::Json => render::json(&volumes)?,
                format => render::volumes(&volumes, format == Format::Wide, SystemTime::now()),
            };
            (text, ExitCode::SUCCESS)
        }
        Command::Doctor => {
            let evidence = doctor::Evidence::gather(&common.kubelet_root, &common.driver, &client).await;
            let findings = doctor::Findings::new(&evidence);
            let text = match common.output {
                Format::Json => render::json(&findings)?,
                format => findings.text(format == Format::Wide),
            };
            (text, findings.code())
        }
    };
    // Not print!: a reader that has gone away is no reason to panic.
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")?;
    Ok(code)
}

#[cfg(test)]
mod tests;
