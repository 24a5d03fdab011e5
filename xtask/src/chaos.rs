//! Kills the node's two processes at random, as the image has them.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::{cargo, command, images, succeed};

/// The arguments of `xtask chaos`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// What `seamount-chaos` takes: `xtask chaos --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let programs = images::node_programs()?;
    // Optimized as well: a hundred pods that connect again would otherwise take the processors from the two
    // processes, and what is measured is theirs.
    succeed(cargo().args(["build", "--release", "--locked", "--package", "seamount-chaos"]))?;
    let program = images::target().join("release/seamount-chaos");
    let mut chaos = command(&program.display().to_string());
    chaos.arg("--programs").arg(programs).args(&args.arguments);
    let status = chaos.status().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
