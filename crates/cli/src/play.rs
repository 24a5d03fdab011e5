//! `seamount play`: plays the kubelet on this machine towards the real mounter and agent.

use std::process::ExitCode;

/// The hidden subcommand's name.
pub const SUPERVISOR: &str = "play-supervisor";

/// The arguments of `seamount play`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// The arguments of the hidden supervisor.
#[derive(Debug, clap::Args)]
pub struct SupervisorArgs {}

/// Plays the files.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not written yet")
}

/// Runs as PID 1 of the PID namespace.
pub fn run_supervisor(_args: SupervisorArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not written yet")
}
