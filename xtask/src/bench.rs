//! Builds what is measured, and runs the measurements.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::{cargo, command, images, root, succeed};

/// The arguments of `xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these rows, for instance `N1,N3`; all without any.
    #[arg(long)]
    rows: Option<String>,
    #[command(subcommand)]
    load: Option<Load>,
}

#[derive(Debug, clap::Subcommand)]
enum Load {
    /// Puts load on any CSI driver's socket: `xtask bench csi --help`.
    #[command(disable_help_flag = true)]
    Csi {
        /// What `seamount-bench csi` takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // The node's programs as the image has them, static; what measures them like everything else.
    let programs = images::node_programs()?;
    succeed(cargo().args(["build", "--release", "--locked", "-p", "seamount-bench"]))?;
    let mut bench = command_of(&images::target().join("release/seamount-bench"));
    match &args.load {
        Some(Load::Csi { arguments }) => {
            bench.arg("csi").args(arguments);
        }
        None => {
            bench.args(["rows", "--commit", &commit()?]);
            bench.args(args.rows.iter().flat_map(|rows| ["--rows", rows]));
        }
    }
    succeed(bench.arg("--programs").arg(programs))?;
    Ok(ExitCode::SUCCESS)
}

fn command_of(program: &Path) -> std::process::Command {
    command(&program.display().to_string())
}

/// The commit, with a mark if the tree has changes beside earlier results.
fn commit() -> anyhow::Result<String> {
    let git = |args: &[&str]| -> anyhow::Result<String> {
        let output = command("git").current_dir(root()).args(args).output().context("cannot start git")?;
        anyhow::ensure!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let changes = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench"])?;
    let mark = if changes.is_empty() { "" } else { " with changes" };
    Ok(git(&["rev-parse", "--short=12", "HEAD"])? + mark)
}
