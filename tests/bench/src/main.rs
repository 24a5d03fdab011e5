//! Measures a node's two processes, row by row, and CSI drivers under load. `make bench` builds and runs it.
//!
//! Nothing here judges by time: every number is printed with what it is compared to, and the exit status says
//! only whether the measurements could be made.

mod bare;
mod call;
mod client;
mod csi;
mod node;
mod report;
mod rows;
mod streams;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use seamount_testkit::usage;

/// Measures Seamount's node, or any CSI driver.
#[derive(Parser)]
#[command(name = "seamount-bench")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The rows N0 to N11, against the real mounter and agent (root).
    Rows(rows::Args),
    /// Publishes and unpublishes volumes through CSI sockets, side by side.
    Csi(csi::Args),
    /// Holds streams open for N6: a process of its own, so that its descriptors are its own.
    #[command(hide = true)]
    Streams(streams::Args),
}

fn main() -> ExitCode {
    usage::raise_descriptors();
    let outcome = match Cli::parse().task {
        Task::Rows(args) => rows::run(&args),
        Task::Csi(args) => csi::run(&args),
        Task::Streams(args) => streams::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seamount-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The directory of the programs that are measured, unless an argument says otherwise: beside this one.
fn beside() -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    here.parent().map(PathBuf::from).unwrap_or_default()
}
