//! Attacks the node's agent as one hostile pod, as the image has it.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::{cargo, command, images, succeed};

/// The arguments of `xtask attack`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// What `seamount-attack` takes: `xtask attack --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let programs = images::node_programs()?;
    // Optimized as well: the attacker would otherwise be slower than the agent, and the kubelet's part of a
    // call longer than it.
    succeed(cargo().args(["build", "--release", "--locked", "--package", "seamount-attack"]))?;
    let program = images::target().join("release/seamount-attack");
    let mut attack = command(&program.display().to_string());
    attack.arg("--programs").arg(programs).args(&args.arguments);
    let status = attack.status().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
