//! Kills the node's two processes at random, as the image has them.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::{cargo, command, images, root};

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
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked", "--package", "seamount-chaos"]);
    let built = build.status().context("cannot start cargo")?;
    anyhow::ensure!(built.success(), "seamount-chaos does not build");
    let program = root().join("target/debug/seamount-chaos");
    let mut chaos = command(&program.display().to_string());
    chaos.arg("--programs").arg(programs).args(&args.arguments);
    let status = chaos.status().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
