//! The command `seamount`: play manifests without a cluster, look at the Workload API, print the objects to
//! install.

mod api;
mod manifests;
mod node;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use seamount_play as play;

/// Identity for every pod, through CSI volumes.
#[derive(Parser)]
#[command(name = "seamount", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play Pod manifests on this machine: the real mounter and agent, no cluster.
    Play(Box<play::Args>),
    /// Ask the Workload API on a socket what a workload would see.
    Api(api::Args),
    /// Print the Kubernetes objects of an installation.
    Manifests(Box<manifests::Args>),
    /// Look at this node's agent, mounter and volumes, and find what is wrong with them. As root.
    Node(node::Args),
    /// A process that `play` starts.
    #[command(name = play::STAGE, hide = true)]
    PlayStage(play::StageArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Play(args) => play::run(*args),
        Command::Api(args) => api::run(args),
        Command::Manifests(args) => manifests::run(*args),
        Command::Node(args) => node::run(args),
        Command::PlayStage(args) => play::run_stage(args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("seamount: {error:#}");
            ExitCode::FAILURE
        }
    }
}
