//! Each fuzz target on each input of its committed corpus: the fuzzer's own functions, without the fuzzer.
//!
//! A target has a process of its own: some look at all descriptors of their process and make a mount
//! namespace, and whatever way a process dies, the input that it died of is known.

use std::path::{Path, PathBuf};
use std::process::Command;

use seamount_testkit::{is_root, skip};

/// Set in a target's own process: where its inputs are.
const INPUTS: &str = "SEAMOUNT_REPLAY_INPUTS";
/// What that process writes before each input.
const INPUT: &str = "input ";
/// Targets that mount.
const NEED_ROOT: [&str; 2] = ["mounter_session", "vol_data"];

macro_rules! replays {
    ($($target:ident)*) => {
        const TARGETS: &[&str] = &[$(stringify!($target)),*];
        $(
            #[test]
            fn $target() {
                replay(stringify!($target), seamount_fuzz::$target::run);
            }
        )*
    };
}

replays! {
    authority_filter certificates csi_requests identifiers manifests mounter_protocol mounter_session
    pod_tokens state_records token_keys tokens vol_data workload_api
}

fn replay(target: &str, run: fn(&[u8])) {
    if is_own_process(run) {
        return;
    }
    if NEED_ROOT.contains(&target) && !is_root() {
        return skip(&format!("fuzz {target}"), "needs root, for a mount namespace of its own");
    }
    match in_own_process(target, &fuzz().join("corpus").join(target)) {
        Ok(count) => println!("fuzz target {target}: {count} inputs replayed"),
        Err(why) => panic!("fuzz target {target}: {why}"),
    }
}

/// In the target's own process: runs it on all inputs.
fn is_own_process(run: fn(&[u8])) -> bool {
    let Some(inputs) = std::env::var_os(INPUTS) else { return false };
    for path in list(Path::new(&inputs)) {
        eprintln!("{INPUT}{}", path.display());
        run(&std::fs::read(&path).unwrap());
    }
    true
}

/// Runs one test of this program in a process of its own; how many inputs it took, or the one it failed on
/// and what it said.
fn in_own_process(test: &str, inputs: &Path) -> Result<usize, String> {
    let count = list(inputs).len();
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(INPUTS, inputs);
    let output = own.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let marks: Vec<&str> = text.lines().filter(|line| line.starts_with(INPUT)).collect();
    if output.status.success() && marks.len() == count && count > 0 {
        return Ok(count);
    }
    let last = marks.last().copied().unwrap_or_default();
    let said = text.rsplit(last).next().unwrap_or_default();
    Err(format!("{last} ({} of {count}): {}\n{said}", marks.len(), output.status))
}

/// The files of a directory, in the same order each time.
fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").canonicalize().unwrap()
}

#[test]
fn every_target_is_replayed() {
    let stems = |paths: Vec<PathBuf>| -> Vec<String> {
        paths.iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(stems(list(&fuzz().join("fuzz_targets"))), TARGETS);
    assert_eq!(stems(list(&fuzz().join("corpus"))), TARGETS);
}

#[test]
fn a_failure_names_its_input() {
    if is_own_process(|input| assert_ne!(input, b"bad", "a broken promise")) {
        return;
    }
    let inputs = tempfile::tempdir().unwrap();
    for (name, content) in [("a", "good"), ("b", "bad"), ("c", "good")] {
        std::fs::write(inputs.path().join(name), content).unwrap();
    }
    let why = in_own_process("a_failure_names_its_input", inputs.path()).unwrap_err();
    let bad = inputs.path().join("b").display().to_string();
    assert!(why.contains(&bad) && why.contains("2 of 3") && why.contains("a broken promise"), "{why}");
    // What ran nothing has shown nothing.
    assert!(in_own_process("no_such_test", inputs.path()).is_err());
}
