//! The unprivileged half of Seamount on a node.

use std::process::ExitCode;

use clap::Parser as _;
use seamount_agent::config::Args;

fn main() -> ExitCode {
    match seamount_agent::run::run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("seamount-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}
