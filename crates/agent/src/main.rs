//! The unprivileged half of Seamount on a node.

use std::process::ExitCode;

use clap::Parser as _;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use seamount_agent::config::Args;

fn main() -> ExitCode {
    // Keys and tokens of every pod of the node are in this memory: a core file would put them on a disk, and whoever
    // else has this uid could read them.
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!(
            "seamount-agent: core dumps could not be switched off: {e}; allow prctl(2) in the seccomp profile"
        );
        return ExitCode::FAILURE;
    }
    match seamount_agent::run::run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("seamount-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}
