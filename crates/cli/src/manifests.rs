//! `seamount manifests`.

use std::process::ExitCode;

/// The arguments of `seamount manifests`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the subcommand.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not written yet")
}
