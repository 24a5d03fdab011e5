//! Builds the fuzz targets once and runs each for a while (docs/fuzzing.md). `make test` replays their
//! corpora: `tests/fuzz`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::{command, root};

/// Targets that mount.
const NEED_ROOT: [&str; 2] = ["mounter_session", "vol_data"];
/// How many run at a time, at most.
const AT_ONCE: usize = 2;
/// A target's committed corpus, in bytes, after `--minimize`.
const MAX_CORPUS: u64 = 72 * 1024;

/// The arguments of `xtask fuzz`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Run nothing: shrink the committed corpora to what still finds all that they and the local ones find.
    #[arg(long)]
    minimize: bool,
    /// Only these targets; all without any.
    targets: Vec<String>,
}

/// What a run said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    executions: u64,
    coverage: u64,
    features: u64,
    corpus: u64,
}

/// One target's end.
enum Outcome {
    Clean(Found),
    Crashed(Found),
    Skipped,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let all = targets()?;
    for wanted in &args.targets {
        ensure!(all.contains(wanted), "there is no fuzz target {wanted:?}; there are {}", all.join(", "));
    }
    let chosen: Vec<String> =
        all.into_iter().filter(|t| args.targets.is_empty() || args.targets.contains(t)).collect();
    let begun = Instant::now();
    build()?;
    println!("fuzz: built in {} s", begun.elapsed().as_secs());
    if args.minimize {
        chosen.iter().try_for_each(|target| minimize(target))?;
        return Ok(ExitCode::SUCCESS);
    }
    let queue: Mutex<VecDeque<&String>> = Mutex::new(chosen.iter().collect());
    let done = Mutex::new(Vec::new());
    let next = || queue.lock().ok().and_then(|mut queue| queue.pop_front());
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(AT_ONCE);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let outcome = fuzz(target, args);
                    if let Ok(mut done) = done.lock() {
                        report(target, &outcome);
                        done.push(outcome);
                    }
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_default();
    let (mut executions, mut crashes, mut skipped) = (0, 0, 0);
    for outcome in &done {
        match outcome {
            Ok(Outcome::Clean(found)) => executions += found.executions,
            Ok(Outcome::Crashed(found)) => {
                executions += found.executions;
                crashes += 1;
            }
            Ok(Outcome::Skipped) => skipped += 1,
            Err(_) => crashes += 1,
        }
    }
    println!("{} targets, {executions} executions, {crashes} crashes", chosen.len() - skipped);
    Ok(if crashes == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(target: &str, outcome: &anyhow::Result<Outcome>) {
    let line = match outcome {
        Ok(Outcome::Skipped) => {
            println!("SKIPPED fuzz {target}: needs root, for a mount namespace of its own");
            return;
        }
        Ok(Outcome::Clean(found)) => format!("{found}, 0 crashes"),
        Ok(Outcome::Crashed(found)) => format!("{found}, 1 crash"),
        Err(why) => format!("{why:#}"),
    };
    println!("fuzz {target:<16} {line}");
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { executions, coverage, features, corpus } = self;
        write!(
            f,
            "{executions:>9} executions, {coverage:>6} edges, {features:>6} features, {corpus:>5} inputs"
        )
    }
}

fn targets() -> anyhow::Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        all.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    all.sort();
    Ok(all)
}

/// One build for all targets, with the address sanitizer, by the project's own toolchain: what cargo-fuzz
/// asks of the compiler is unstable, so it is told that we know. Nothing but the crates has to be fetched.
fn build() -> anyhow::Result<()> {
    let mut build = command("target/tools-fuzz/cargo-fuzz");
    build.args(["build", "--fuzz-dir", "fuzz", "--debug-assertions", "--codegen-units", "16"]);
    build.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    let built = build.status().context("cannot start target/tools-fuzz/cargo-fuzz: tests/setup.sh fuzz")?;
    ensure!(built.success(), "the fuzz targets do not build: {built}");
    Ok(())
}

fn built() -> PathBuf {
    root().join("fuzz/target")
}

/// A target's program, as cargo-fuzz would start it.
fn program(target: &str) -> anyhow::Result<Command> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let path = built().join(triple).join("release").join(target);
    ensure!(path.exists(), "{} is not there", path.display());
    let mut program = Command::new(path);
    program.env("ASAN_OPTIONS", "detect_odr_violation=0").stdin(Stdio::null());
    Ok(program)
}

/// A directory of that name, empty or as it is.
fn directory(path: PathBuf, empty: bool) -> anyhow::Result<PathBuf> {
    if empty && path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn fuzz(target: &str, args: &Args) -> anyhow::Result<Outcome> {
    if NEED_ROOT.contains(&target) && !is_root() {
        return Ok(Outcome::Skipped);
    }
    let artifacts = directory(built().join("artifacts").join(target), false)?;
    let kept = directory(built().join("corpus").join(target), false)?;
    let logs = directory(built().join("logs"), false)?.join(target);
    let log = File::create(&logs).with_context(|| format!("cannot write {}", logs.display()))?;
    let mut program = program(target)?;
    program
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        // Far above what any input takes on a busy machine.
        .args(["-print_final_stats=1", "-timeout=60", "-rss_limit_mb=4096", "-max_len=8192"])
        .args([&kept, &corpus(target)]);
    program.stdout(log.try_clone()?).stderr(log);
    let status = program.status().with_context(|| format!("cannot start {target}"))?;
    let text = String::from_utf8_lossy(&fs::read(&logs)?).into_owned();
    let found = read(&text);
    if status.success() {
        ensure!(found.executions > 0, "it ran nothing: see {}", logs.display());
        return Ok(Outcome::Clean(found));
    }
    let lines: Vec<&str> = text.lines().collect();
    let out = &mut std::io::stdout().lock();
    let at = lines.iter().position(|l| l.contains("panicked at") || l.contains("ERROR: "));
    for line in lines.iter().skip(at.unwrap_or(lines.len().saturating_sub(20))).take(12) {
        let _ = writeln!(out, "    {line}");
    }
    let _ = writeln!(out, "    all of it: {}; the input: {}", logs.display(), artifacts.display());
    Ok(Outcome::Crashed(found))
}

fn corpus(target: &str) -> PathBuf {
    root().join("fuzz/corpus").join(target)
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

/// libFuzzer's last words.
fn read(log: &str) -> Found {
    let after = |line: &str, what: &str| {
        let rest = line.split_once(what)?.1.trim_start();
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let mut found = Found::default();
    for line in log.lines() {
        if let Some(count) = after(line, "stat::number_of_executed_units:") {
            found.executions = count;
        } else if line.starts_with('#') && line.contains(" cov: ") {
            found.coverage = after(line, " cov: ").unwrap_or(found.coverage);
            found.features = after(line, " ft: ").unwrap_or(found.features);
            found.corpus = after(line, " corp: ").unwrap_or(found.corpus);
            // A target that dies gives no statistics.
            found.executions = after(line, "#").unwrap_or(found.executions);
        }
    }
    found
}

/// libFuzzer's merge by greedy set cover (`cargo fuzz cmin` keeps twice as many inputs for the same
/// features), and of its result the smallest inputs within the limit.
fn minimize(target: &str) -> anyhow::Result<()> {
    if NEED_ROOT.contains(&target) {
        ensure!(is_root(), "{target} needs root");
    }
    let merged = directory(built().join("merged").join(target), true)?;
    let mut merge = program(target)?;
    merge.args(["-set_cover_merge=1", "-timeout=60", "-max_len=8192"]).arg(&merged).arg(corpus(target));
    let local = built().join("corpus").join(target);
    if local.exists() {
        merge.arg(local);
    }
    let log = built().join("logs");
    let log = directory(log, false)?.join(format!("{target}.merge"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let merged_well = merge.stdout(file.try_clone()?).stderr(file).status()?;
    ensure!(merged_well.success(), "{target}: the merge failed: see {}", log.display());
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&merged)? {
        let entry = entry?;
        inputs.push((entry.metadata()?.len(), entry.file_name()));
    }
    inputs.sort();
    let committed = directory(corpus(target), true)?;
    let (mut bytes, mut count) = (0, 0);
    for (size, name) in &inputs {
        if bytes + size > MAX_CORPUS {
            break;
        }
        (bytes, count) = (bytes + size, count + 1);
        fs::copy(merged.join(name), committed.join(name))?;
    }
    println!("{target}: {count} of {} inputs, {bytes} bytes", inputs.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_read() {
        let log = "INFO: Seed: 1\n#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 1Mb\n#90\tNEW    cov: 43 ft: 74 corp: 12/1b lim: 4\n\
                   stat::number_of_executed_units: 12345\n";
        assert_eq!(read(log), Found { executions: 12_345, coverage: 43, features: 74, corpus: 12 });
        assert_eq!(read("#7\tNEW    cov: 43 ft: 74 corp: 12/1b\nthread panicked").executions, 7);
        assert_eq!(read("nothing"), Found::default());
    }

    #[test]
    fn every_target_has_a_corpus_and_a_program() {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        for target in targets().unwrap() {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in fuzz/Cargo.toml");
            assert!(fs::read_dir(corpus(&target)).unwrap().next().is_some(), "{target} has no corpus");
        }
    }

    #[test]
    fn a_directory_is_made_empty_where_that_is_asked_for() {
        let base = std::env::temp_dir().join(format!("xtask-fuzz-{}", std::process::id()));
        let dir = directory(base.join("a"), false).unwrap();
        fs::write(dir.join("f"), "x").unwrap();
        assert!(directory(base.join("a"), false).unwrap().join("f").exists());
        assert!(!directory(base.join("a"), true).unwrap().join("f").exists());
        fs::remove_dir_all(&base).unwrap();
    }
}
