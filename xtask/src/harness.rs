//! Starts a program of `tests/` against the node's two processes, as the image has them.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::{cargo, command, images, succeed};

/// The arguments of `xtask attack` and `xtask chaos`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// What the program takes: `xtask attack --help`, `xtask chaos --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds the package and starts its program of the same name with `--programs` and these arguments.
pub fn run(package: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let programs = images::node_programs()?;
    // Optimized as well: attackers and pods would otherwise take the processors from the two processes, and
    // what is measured is theirs.
    succeed(cargo().args(["build", "--release", "--locked", "--package", package]))?;
    let program = images::target().join("release").join(package);
    let mut harness = command(&program.display().to_string());
    harness.arg("--programs").arg(programs).args(&args.arguments);
    let status = harness.status().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
