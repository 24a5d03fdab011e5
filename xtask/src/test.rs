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
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(["cargo", "demo", "chaos", "attack", "fuzz", "sanity", "e2e"]))]
    suites: Vec<String>,
}

/// How long a suite may take: three times the slowest of them.
const LIMIT: &str = "40m";

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
    // Binaries first: the suites start them as they lie in target/.
    let mut build = cargo();
    build.args(["build", "--locked", "--workspace", "--bins"]);
    let mut out = std::io::stdout();
    let built = run_suite("build", &logs, &mut build, &mut out)?;
    let is_built = built.count.failed == 0;
    outcomes.push(built);
    if is_built {
        for (name, mut command) in suites()? {
            if !wanted(name) {
                continue;
            }
            if name == "demo" && !has_ids() {
                command = self::command("echo");
                command.arg("SKIPPED demo: needs root, sudo without a password, or newuidmap");
            }
            outcomes.push(run_suite(name, &logs, &mut limited(&command), &mut out)?);
        }
    }
    let no_skip = std::env::var_os("SEAMOUNT_NO_SKIP").is_some_and(|v| v == "1");
    let (text, total) = summary(&outcomes, no_skip);
    print!("{text}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The suites in their order: what fails fast first.
fn suites() -> anyhow::Result<Vec<(&'static str, Command)>> {
    let mut tests = cargo();
    // What a passing test prints has to be seen: it may say that it skipped itself.
    tests.args([
        "test",
        "--locked",
        "--workspace",
        "--exclude",
        "seamount-e2e",
        "--no-fail-fast",
        "--",
        "--show-output",
    ]);
    let mut chaos = command(&root().join("target/debug/seamount-chaos").display().to_string());
    chaos.args(["--kills", "100"]);
    let mut attack = command(&root().join("target/debug/seamount-attack").display().to_string());
    attack.args(["--busy", "--seconds", "3"]);
    // Not the program that runs: the build before has replaced its file.
    let mut fuzz = command(&root().join("target/debug/xtask").display().to_string());
    fuzz.args(["fuzz", "--as-tests", "--seconds", "20"]);
    let script = |path: &str| {
        let mut bash = command("bash");
        bash.arg(path);
        bash
    };
    Ok(vec![
        ("cargo", tests),
        ("demo", script("examples/demo.sh")),
        ("chaos", chaos),
        ("attack", attack),
        ("fuzz", fuzz),
        ("sanity", script("tests/sanity/run.sh")),
        ("e2e", script("tests/e2e/run.sh")),
    ])
}

/// The same, ended after [`LIMIT`] with all that it has started, so that the suites after it have their time and what it
/// had to say is seen.
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
    let path = logs.join(format!("{name}.log"));
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
            "{name:<8} {:>5} passed {:>4} failed {:>4} skipped {:>5} s",
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
