//! Builds, counts and tests that are not a plain cargo command: `cargo run -p xtask -- help`.

mod bench;
mod budget;
mod fuzz;
mod harness;
mod image;
mod images;
mod quick;
mod selinux;
mod test;
mod words;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// What is not a plain cargo command.
#[derive(Parser)]
#[command(name = "xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build static binaries and pack the images.
    Images(images::Args),
    /// Pack one image from files.
    Image(image::Args),
    /// Count the mounter's lines and crates, and fail past the limits.
    Budget,
    /// Measure (root): the rows N1 to N10, or any CSI driver under load.
    Bench(bench::Args),
    /// Attack the agent as one hostile pod (root), and measure what is left for other pods.
    Attack(harness::Args),
    /// Kill mounter and agent at random under a simulated kubelet (root), and count what is lost.
    Chaos(harness::Args),
    /// Run the fuzz targets; a crash is a failure.
    Fuzz(fuzz::Args),
    /// Clippy and the unit tests of one package, or of those with changes that are not committed.
    Quick(quick::Args),
    /// Run the SELinux rules in a guest; the last line is `N passed, N failed, N skipped`.
    Selinux,
    /// Run all suites; the last line is `N passed, N failed, N skipped`.
    Test(test::Args),
    /// Count words that the prose does without, and comments that are too wide; fail where there are more
    /// than before.
    Words(words::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Images(args) => images::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Budget => budget::run(),
        Task::Bench(args) => bench::run(&args),
        Task::Attack(args) => harness::run("seamount-attack", &args),
        Task::Chaos(args) => harness::run("seamount-chaos", &args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Quick(args) => quick::run(&args),
        Task::Selinux => selinux::run(),
        Task::Test(args) => test::run(&args),
        Task::Words(args) => words::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// A command in the workspace's root, without what an outer `cargo run` left in the environment: it would
/// make the inner cargo build everything again.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let outer = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"];
        if outer.iter().any(|prefix| text.starts_with(prefix)) || text == "LD_LIBRARY_PATH" {
            command.env_remove(&name);
        }
    }
    command
}

/// cargo, in the workspace's root.
fn cargo() -> Command {
    command("cargo")
}

/// Runs a command to its end; anything but success is an error.
fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    let words = all.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let status = command.status().with_context(|| format!("cannot start {words}"))?;
    anyhow::ensure!(status.success(), "{words}: {status}");
    Ok(())
}
