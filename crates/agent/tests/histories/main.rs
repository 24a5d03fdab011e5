//! A pod's volume is never served with another pod's identity, whatever the order of kills, late replies,
//! reuse of names and UIDs, quick delete and create, or replay of an old publish: random histories against a
//! model.
//!
//! That it can fail was tried with these faults in the agent, one at a time:
//!
//! | fault | found by | as |
//! |---|---|---|
//! | a listener's cookie is not compared | `known`, random | a socket said another pod's identity |
//! | the token's pod UID is not compared | `known` | accepted without proof |
//! | the token's account is not compared | `known` | accepted without proof |
//! | a republish may change the account | `known` | accepted over another identity |
//! | an unpublish leaves the record | `known`, random | left over |
//! | an unpublish leaves the agent's memory | `known`, random | a good publish failed |
//! | an unpublish leaves a copy of the listener open | random | unpublished, and still there |
//!
//! Not found here: an answer for another volume that is believed (the crate's own tests of the mounter's
//! client find it), and a publish that is let in before the records are read (those of the volumes).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod client;
mod history;
mod inside;
mod known;
mod mixer;
mod model;
mod played;
mod proxy;
mod real;
mod world;

use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner,
};

use history::Op;
use seamount_testkit::is_root;
use seamount_testkit::namespace::private_mounts;
use world::{Bench, World};

fn carry_out<B: Bench>(make: impl FnOnce() -> B, history: &[Op]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(make());
        world.run(history).await
    })
}

/// As many histories as asked for, each of at most this many steps; or those of the one seed that is given.
fn explore(name: &str, cases: u32, length: usize, run: impl Fn(&[Op]) -> Result<(), String>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let cases = number("HISTORIES").map_or(cases, |n: u64| u32::try_from(n).unwrap());
    // The same histories in every run of `make test`, so that a change is judged by what it changes; others
    // by HISTORIES_SEED=random or a number. HISTORIES is how many.
    let seed = if std::env::var("HISTORIES_SEED").is_ok_and(|seed| seed == "random") {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    } else {
        number("HISTORIES_SEED").unwrap_or(1)
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let regressions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/histories/regressions.txt");
    let config = Config {
        cases,
        max_shrink_iters: 300,
        max_shrink_time: 60_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        source_file: Some(file!()),
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&history::history(length), |history| run(&history).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => println!("{name}: {cases} histories, seed {seed} (HISTORIES_SEED={seed} repeats them)"),
        Err(TestError::Fail(why, history)) => {
            panic!("seed {seed} (HISTORIES_SEED={seed} repeats it): {why}\nthe shortest history: {history:?}")
        }
        Err(TestError::Abort(why)) => panic!("seed {seed}: {why}"),
    }
}

#[test]
fn no_history_gives_a_pod_anothers_identity() {
    explore("inside one process", 150, 30, |history| carry_out(inside::Inside::new, history));
}

/// The same with the real agent and mounter, real mounts, and a proxy in between that mixes up the answers.
#[test]
fn no_history_of_the_real_processes_gives_a_pod_anothers_identity() {
    if skipped("no_history_of_the_real_processes_gives_a_pod_anothers_identity") {
        return;
    }
    explore("real processes", 30, 30, |history| private_mounts(|| carry_out(real::Real::new, history)));
}

fn skipped(test: &str) -> bool {
    if !is_root() {
        seamount_testkit::skip(test, "mounts and the agent's own uid need root");
    }
    !is_root()
}

#[test]
fn known_histories_stay_good() {
    for (what, history) in known::all() {
        if let Err(why) = carry_out(inside::Inside::new, &history) {
            panic!("{what}: {why}");
        }
    }
}

#[test]
fn known_histories_stay_good_with_the_real_processes() {
    if skipped("known_histories_stay_good_with_the_real_processes") {
        return;
    }
    for (what, history) in known::all() {
        if let Err(why) = private_mounts(|| carry_out(real::Real::new, &history)) {
            panic!("{what}: {why}");
        }
    }
}
