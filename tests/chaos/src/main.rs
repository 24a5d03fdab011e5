//! `make chaos`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser as _;
use seamount_chaos::gaps::anatomy;
use seamount_chaos::leaks;
use seamount_chaos::node::{Node, Who};
use seamount_chaos::pods::World;
use seamount_chaos::random::Random;
use seamount_chaos::storm::{Blows, storm};
use seamount_testkit::{is_root, namespace, skip};
use tokio::runtime::Handle;

/// For what a busy machine may delay.
const LONG: Duration = Duration::from_secs(60);

/// Kills agent and mounter at random under a simulated kubelet, and counts what is lost.
#[derive(Debug, clap::Parser)]
struct Args {
    /// How many kills; one in ten takes both processes.
    #[arg(long, default_value_t = 1000)]
    kills: usize,
    /// How many volumes; half of them come and go.
    #[arg(long, default_value_t = 100)]
    volumes: usize,
    /// Repeats the choices of an earlier run (not its timing).
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds after which the kubelet publishes a volume again, and half as many at random.
    #[arg(long, default_value_t = 60)]
    republish: u64,
    /// The directory of seamount-agent and seamount-mounter; without it, that of this program.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where the two processes' logs go.
    #[arg(long, default_value = "target/chaos")]
    logs: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !is_root() {
        skip("chaos", "needs root for a mount namespace");
        return ExitCode::SUCCESS;
    }
    match namespace::private_mounts(|| run(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("chaos: {e:#}; logs in {}", args.logs.display());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The kubelet and the pods are on one thread: the two cores are for the two processes. The volumes are
    // asked from another one, else the hundred pods that connect again would be a part of what is measured.
    let prober = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, chaos(args, prober.handle().clone()))
}

async fn chaos(args: &Args, prober: Handle) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = args.seed.unwrap_or_else(|| u64::from(clock.subsec_nanos()));
    let mut random = Random::new(seed);
    eprintln!("chaos: {} kills, {} volumes, --seed {seed}", args.kills, args.volumes);
    let node =
        Node::new(&std::path::absolute(&args.logs)?, args.programs.as_deref()).context("make a node")?;
    node.start(Who::Mounter)?;
    node.start(Who::Agent)?;
    node.kubelet.register(LONG).await?;
    node.ready(LONG).await?;
    let base = leaks::base(&node).await;
    let world = World::new(node, Duration::from_secs(args.republish), prober);

    let watcher = tokio::task::spawn_local({
        let world = Arc::clone(&world);
        async move {
            loop {
                // A registration that fails is tried again, as the kubelet does.
                let _ = world.node.kubelet.poll_registrations().await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let places: Vec<_> = (0..args.volumes)
        .map(|n| {
            tokio::task::spawn_local(Arc::clone(&world).place(n, n % 2 == 0, Random::new(random.number())))
        })
        .collect();
    let start = Instant::now();
    while world.pods().len() < args.volumes * 9 / 10 && start.elapsed() < LONG {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let blows = storm(&world, args.kills, random).await?;

    world.calm.cancel();
    for place in places {
        place.await?;
    }
    world.node.ready(LONG).await?;
    let volumes = world.pods().len();
    world.check_all().await;
    world.silence.cancel();
    leaks::check(&world.node, base, volumes, &world.tally).await;
    world.tear_down().await;
    leaks::check(&world.node, base, 0, &world.tally).await;
    watcher.abort();
    world.node.stop()?;
    leaks::check_processes(&world.tally);

    let agent_log = world.node.logs().join("agent.log");
    eprintln!("the longest gaps, and what the agent said meanwhile:");
    for gap in world.tally.longest_gaps() {
        eprint!("{}", anatomy(&gap, &agent_log));
    }
    let Blows { kills, both, stops, ended, beside, rolls } = blows;
    let what = format!(
        "{kills} kills, {both} of them of both, {stops} stops, {ended} of them ended by a kill, {beside} with a kill of \
         the other process, {rolls} roll-outs"
    );
    let about = format!(
        "seed {seed}, {} s, {} volumes at a time, {} altogether",
        begun.elapsed().as_secs(),
        args.volumes,
        world.published()
    );
    println!("{}", world.tally.report(&what, &about));
    Ok(world.tally.all() == 0)
}
