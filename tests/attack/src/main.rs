//! `make attack`: one hostile pod against the real mounter and agent under a simulated kubelet, while another
//! pod fetches its identity and other pods come and go. Each attack is one row of a table, and one test.

mod attacker;
mod attacks;
mod honest;
mod hostile;
mod node;
mod script;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser as _;
use seamount_testkit::usage::raise_descriptors;
use seamount_testkit::{is_root, namespace, skip};

use attacks::{ATTACKS, Attack};
use hostile::Hostile;
use node::Node;
use verdict::{Outcome, Rules};

/// For what a busy machine may delay, where nothing is measured.
const LONG: Duration = Duration::from_secs(60);

/// Attacks a node's agent as one hostile pod, and measures what is left for the others.
#[derive(Debug, clap::Parser)]
struct Args {
    /// Only these attacks; all without any.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(ATTACKS.iter().map(|attack| attack.name)))]
    attacks: Vec<String>,
    /// How long each attack lasts once it has all the connections that it can get.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// For debug builds on a busy machine: the quantiles are printed and not judged, and a call fails past 2
    /// s.
    #[arg(long)]
    busy: bool,
    /// The directory of seamount-agent and seamount-mounter; without it, that of this program.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where the processes' logs go.
    #[arg(long, default_value = "target/attack")]
    logs: PathBuf,
    /// Is the hostile pod, with the volumes that this file names.
    #[arg(long, hide = true)]
    volumes: Option<PathBuf>,
}

impl Args {
    fn wanted(&self) -> impl Iterator<Item = &'static Attack> {
        let wanted =
            |attack: &&Attack| self.attacks.is_empty() || self.attacks.iter().any(|n| n == attack.name);
        ATTACKS.iter().filter(wanted)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    raise_descriptors();
    if let Some(volumes) = &args.volumes {
        let outcome =
            args.wanted().next().context("no attack").and_then(|attack| attacker::run(attack, volumes));
        return code(outcome.map(|()| true));
    }
    if !is_root() {
        skip("attack", "needs root for a mount namespace");
        return ExitCode::SUCCESS;
    }
    code(namespace::private_mounts(|| run(&args)))
}

fn code(outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("attack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what `xtask test` counts, as libtest does.
fn run(args: &Args) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rules = Rules { busy: args.busy };
    let all: Vec<_> = args.wanted().collect();
    println!("\nrunning {} tests", all.len());
    if rules.busy {
        println!("{}", verdict::BUSY);
    }
    let mut rows = Vec::new();
    let mut failed = 0;
    for attack in &all {
        let logs = std::path::absolute(&args.logs)?.join(attack.name);
        let outcome = tokio::task::LocalSet::new().block_on(&runtime, one(args, attack, &logs));
        let (row, faults) = match outcome {
            Ok(outcome) => (Some(outcome.row(attack.name)), outcome.faults(rules)),
            Err(error) => (None, vec![format!("{error:#}")]),
        };
        rows.extend(row);
        for fault in &faults {
            println!("{}: {fault}; logs in {}", attack.name, logs.display());
        }
        failed += usize::from(!faults.is_empty());
        println!("test {} ... {}", attack.name, if faults.is_empty() { "ok" } else { "FAILED" });
    }
    println!("\n{}\n{}", verdict::HEAD, rows.join("\n"));
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {} passed; {failed} failed; 0 ignored", all.len() - failed);
    Ok(failed == 0)
}

/// One attack on a node of its own.
async fn one(args: &Args, attack: &Attack, logs: &Path) -> anyhow::Result<Outcome> {
    let node = Node::started(attack, args.programs.as_deref(), logs).await?;
    let outcome = attacked(&node, attack, Duration::from_secs(args.seconds)).await;
    // A process that has ended is the reason for whatever else went wrong.
    let ended = node.stop()?;
    match outcome {
        Ok(outcome) => Ok(Outcome { ended, ..outcome }),
        Err(error) if ended.is_empty() => Err(error),
        Err(error) => Err(error.context(ended.join("; "))),
    }
}

async fn attacked(node: &Node, attack: &Attack, lasting: Duration) -> anyhow::Result<Outcome> {
    let standing = honest::Standing::published(node).await.context("before the attack")?;
    honest::warm_up(node).await.context("before the attack")?;
    let before = node.usage()?;
    let memory = node.watch_memory()?;

    let mut hostile = Hostile::published(node, attack).await?;
    hostile.start(node, attack)?;
    let processor = node.processor()?;
    let begun = Instant::now();
    let measured = honest::measure(node, &standing, lasting, &hostile).await;
    let processor = node.processor()?.saturating_sub(processor).as_secs_f64() / begun.elapsed().as_secs_f64();
    let got = hostile.stop()?;

    let left = hostile.removed(node).await;
    measured.remove_leftovers(node).await;
    let after = node.settled(&before).await?;
    let peak = memory.peak();
    Ok(Outcome { measured, got, before, peak, after, processor, left, ended: Vec::new() })
}
