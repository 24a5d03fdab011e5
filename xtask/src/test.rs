//! Runs every suite, shows its output as it comes, and counts.

mod parse;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::{cargo, command, root};
use parse::{Count, Parser};

/// The arguments of `xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these suites; all without any.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(["cargo", "fuzz", "demo", "chaos", "attack", "sanity", "e2e"]))]
    suites: Vec<String>,
}

/// How long a suite may take, without what is built for it: three times the slowest of them.
const LIMIT: &str = "40m";

/// Tells the suites' scripts that `target/debug` holds what they start: they call cargo for nothing.
const PREBUILT: &str = "SEAMOUNT_PREBUILT";

/// What one suite runs.
struct Suite {
    name: &'static str,
    /// What has to be built for it alone: a row of its own, without a limit.
    before: Option<(&'static str, Command)>,
    command: Command,
}

/// A suite and what its output said.
struct Outcome {
    name: &'static str,
    count: Count,
    took: Duration,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let logs = root().join("target/test-logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let wanted = |name: &str| args.suites.is_empty() || args.suites.iter().any(|s| s == name);
    let mut outcomes = Vec::new();
    let mut out = std::io::stdout();
    let built = run_suite("build", &logs, &mut build(&wanted), &mut out)?;
    let is_built = built.count.failed == 0;
    outcomes.push(built);
    if is_built {
        for Suite { name, before, command: mut suite } in suites() {
            if !wanted(name) {
                continue;
            }
            if name == "demo" && !has_ids() {
                suite = command("echo");
                suite.arg("SKIPPED demo: needs root, sudo without a password, or newuidmap");
            }
            if let Some((row, mut before)) = before {
                let built = run_suite(row, &logs, before.env(PREBUILT, "1"), &mut out)?;
                let failed = built.count.failed > 0;
                outcomes.push(built);
                if failed {
                    continue;
                }
            }
            outcomes.push(run_suite(name, &logs, limited(&suite).env(PREBUILT, "1"), &mut out)?);
        }
    }
    let no_skip = std::env::var_os("SEAMOUNT_NO_SKIP").is_some_and(|v| v == "1");
    let (text, total) = summary(&outcomes, no_skip);
    print!("{text}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What all suites start, built once: binaries and tests in one call, because a call for some of the packages
/// alone would ask other features of the libraries, and build all of them again.
fn build(wanted: &impl Fn(&str) -> bool) -> Command {
    let mut build = cargo();
    build.args(["build", "--locked", "--workspace", "--bins"]);
    if ["cargo", "fuzz", "e2e"].into_iter().any(wanted) {
        build.args(["--tests", "--examples"]);
    }
    build
}

/// Of cargo's tests: the arguments before the first `--`, then libtest's. What a passing test prints has to
/// be seen: it may say that it skipped itself.
fn tests(which: &[&str]) -> Command {
    let mut tests = cargo();
    tests
        .args(["test", "--locked", "--workspace", "--no-fail-fast"])
        .args(which)
        .args(["--", "--show-output"]);
    tests
}

/// The suites in their order: what fails fast first.
fn suites() -> Vec<Suite> {
    let script = |path: &str, argument: Option<&str>| {
        let mut bash = command("bash");
        bash.arg(path).args(argument);
        bash
    };
    let mut chaos = command(&root().join("target/debug/seamount-chaos").display().to_string());
    // The same choices in every run; `make chaos` draws others.
    chaos.args(["--kills", "100", "--seed", "1"]);
    let mut attack = command(&root().join("target/debug/seamount-attack").display().to_string());
    attack.args(["--busy", "--seconds", "3"]);
    let suite = |name, command| Suite { name, before: None, command };
    let built = |name, row, path| Suite {
        name,
        before: Some((row, script(path, Some("build")))),
        command: script(path, None),
    };
    vec![
        suite("cargo", tests(&["--exclude", "seamount-e2e", "--exclude", "seamount-fuzz"])),
        suite("fuzz", tests(&["--test", "replay"])),
        suite("demo", script("examples/demo.sh", None)),
        suite("chaos", chaos),
        suite("attack", attack),
        built("sanity", "build sanity", "tests/sanity/run.sh"),
        built("e2e", "build e2e", "tests/e2e/run.sh"),
    ]
}

/// The same, ended after [`LIMIT`] with all that it has started, so that the suites after it have their time
/// and what it had to say is seen.
fn limited(suite: &Command) -> Command {
    let mut limited = command("timeout");
    limited.args(["--kill-after=60", LIMIT]).arg(suite.get_program()).args(suite.get_args());
    limited
}

/// Whether processes can be given other users' ids here, as the demo's pods are.
fn has_ids() -> bool {
    let test = "test \"$(id -u)\" = 0 || sudo -n true || command -v newuidmap";
    let mut shell = Command::new("sh");
    shell.args(["-c", test]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.status().is_ok_and(|status| status.success())
}

/// Runs one suite; its output goes to ours and to a file of its own.
fn run_suite(
    name: &'static str,
    logs: &Path,
    command: &mut Command,
    out: &mut impl Write,
) -> anyhow::Result<Outcome> {
    writeln!(out, "==> {name}")?;
    let begun = Instant::now();
    let path = logs.join(format!("{}.log", name.replace(' ', "-")));
    let mut log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).env("CARGO_TERM_COLOR", "never");
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    // The command holds the pipe's writing ends as well; the loop below would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut parser = Parser::default();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("cannot read the suite's output")? > 0 {
        out.write_all(&line)?;
        log.write_all(&line)?;
        parser.line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
    // A build has no tests to count; the demo is one test as a whole, and so is chaos.
    let whole = ["demo", "chaos"].contains(&name).then_some(name);
    Ok(Outcome { name, count: parser.finish(status.success(), whole), took: begun.elapsed() })
}

/// The table at the end, whose last line is the one that counts, and the sum.
fn summary(outcomes: &[Outcome], no_skip: bool) -> (String, Count) {
    let mut text = String::from("\n");
    let mut total = Count::default();
    for Outcome { name, count, took } in outcomes {
        text += &format!(
            "{name:<12} {:>5} passed {:>4} failed {:>4} skipped {:>5} s",
            count.passed,
            count.failed,
            count.skipped.len(),
            took.as_secs()
        );
        if count.not_applicable > 0 {
            text += &format!("  ({} not applicable, see tests/README.md)", count.not_applicable);
        }
        text.push('\n');
        total.add(count);
    }
    for failure in &total.failures {
        text += &format!("FAILED {failure}\n");
    }
    for line in &total.why {
        text += &format!("  {line}\n");
    }
    for skipped in &total.skipped {
        text += &format!("SKIPPED {skipped}\n");
    }
    if no_skip && !total.skipped.is_empty() {
        text += "SEAMOUNT_NO_SKIP=1: nothing may be skipped, so each of these counts as failed\n";
        total.failed += total.skipped.len();
        total.skipped.clear();
    }
    text += &format!("{} passed, {} failed, {} skipped\n", total.passed, total.failed, total.skipped.len());
    (text, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &'static str, passed: usize, failed: usize, skipped: &[&str]) -> Outcome {
        let count = Count {
            passed,
            failed,
            skipped: skipped.iter().map(|s| (*s).to_owned()).collect(),
            ..Count::default()
        };
        Outcome { name, count, took: Duration::ZERO }
    }

    #[test]
    fn the_last_line_sums_all_suites() {
        let (text, _) = summary(&[outcome("cargo", 7, 0, &["a: no root"]), outcome("e2e", 3, 1, &[])], false);
        assert_eq!(text.lines().last(), Some("10 passed, 1 failed, 1 skipped"));
    }

    #[test]
    fn where_nothing_may_be_skipped_a_skip_is_a_failure() {
        let (text, total) = summary(&[outcome("cargo", 7, 0, &["a: no root"])], true);
        assert_eq!(text.lines().last(), Some("7 passed, 1 failed, 0 skipped"));
        assert_eq!(total.failed, 1);
    }

    #[test]
    fn a_limit_is_for_the_tests_and_not_for_their_building() {
        for Suite { name, before, command } in suites() {
            let words = |command: &Command| format!("{command:?}");
            assert!(words(&limited(&command)).contains(LIMIT), "{name}");
            assert!(
                before.is_none_or(|(row, before)| row != name && !words(&before).contains(LIMIT)),
                "{name}"
            );
        }
        assert!(!format!("{:?}", build(&|_| true)).contains(LIMIT));
    }

    #[test]
    fn nothing_is_drawn_at_random() {
        let chaos = suites().into_iter().find(|suite| suite.name == "chaos").unwrap();
        assert!(chaos.command.get_args().any(|word| word == "--seed"));
        // proptest reads it: crates/identity/src/id/tests.rs.
        let config = fs::read_to_string(root().join(".cargo/config.toml")).unwrap();
        assert!(config.contains("PROPTEST_RNG_SEED"));
    }

    #[test]
    fn a_suite_is_shown_logged_and_counted() {
        let logs = std::env::temp_dir().join(format!("xtask-test-{}", std::process::id()));
        fs::create_dir_all(&logs).unwrap();
        // Not our own output: an outer run of this program would count it.
        let mut out = Vec::new();
        let mut shell = command("sh");
        shell.args(["-c", "echo 'running 2 tests'; echo 'SKIPPED b: no root' >&2; echo 'test result: ok. 2 passed; 0 failed; 0 ignored;'"]);
        let outcome = run_suite("cargo", &logs, &mut shell, &mut out).unwrap();
        let log = fs::read_to_string(logs.join("cargo.log")).unwrap();
        fs::remove_dir_all(&logs).unwrap();
        assert_eq!((outcome.count.passed, outcome.count.failed, outcome.count.skipped.len()), (1, 0, 1));
        assert_eq!(log.lines().count(), 3);
        assert_eq!(out, format!("==> cargo\n{log}").into_bytes());
    }
}
