//! The rules of SELinux, in a guest.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::{command, images, root};

/// Runs the subcommand.
pub fn run() -> anyhow::Result<ExitCode> {
    images::node_programs()?;
    let programs = images::build(&["seamount-selinux"])?;
    let mut script = command("bash");
    script.arg(root().join("tests/selinux/run.sh")).arg(programs);
    let status = script.status().context("cannot start tests/selinux/run.sh")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
