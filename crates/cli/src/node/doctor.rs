//! `doctor`: what is wrong with this node's Seamount, and what to do, in order.
//!
//! [`Evidence`] is what can be seen: the file system, /proc, and what the agent says, if it says anything.
//! [`Findings`] is made of it without looking at anything again. A check whose evidence is missing is skipped
//! with the reason; it is not taken for a fault.

mod checks;
mod volumes;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use seamount_proto::node::GetStatusResponse;
use serde::Serialize;

use super::client::{Client, Failure, Listed};
use super::disk::Disk;
use super::model::SCHEMA;
use super::processes::Processes;
use super::time::unix;

/// All that can be seen.
pub struct Evidence {
    /// The kubelet's root, as given.
    pub root: PathBuf,
    /// The driver, as given.
    pub driver: String,
    /// The file system.
    pub disk: Disk,
    /// The processes.
    pub processes: Processes,
    /// The agent's word.
    pub status: Result<GetStatusResponse, Failure>,
    /// Its volumes.
    pub volumes: Result<Listed, Failure>,
    /// Unix seconds.
    pub now: i64,
}

impl Evidence {
    /// Looks and asks.
    pub async fn gather(root: &Path, driver: &str, client: &Client) -> Self {
        let status = client.status().await;
        let volumes = match &status {
            Ok(_) => client.volumes().await,
            // It would be silent once more.
            Err(e) => Err(e.clone()),
        };
        let each = !matches!(&volumes, Ok((_, None)));
        Self {
            root: root.to_owned(),
            driver: driver.to_owned(),
            disk: Disk::look(root, driver, each),
            processes: Processes::look(root),
            status,
            volumes,
            now: unix(SystemTime::now()),
        }
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing wrong.
    Ok,
    /// Worth knowing; nothing to do at once.
    Note,
    /// Wrong.
    Problem,
    /// Could not be looked at.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub check: &'static str,
    /// How it ended.
    pub result: Outcome,
    /// What was found.
    pub text: String,
    /// What to do, in order.
    pub todo: Vec<String>,
}

impl Check {
    /// Nothing wrong.
    pub fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, result: Outcome::Ok, text: text.into(), todo: Vec::new() }
    }

    /// Worth knowing.
    pub fn note<S: Into<String>>(
        check: &'static str,
        text: impl Into<String>,
        todo: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            result: Outcome::Note,
            todo: todo.into_iter().map(Into::into).collect(),
            ..Self::ok(check, text)
        }
    }

    /// Wrong.
    pub fn problem<S: Into<String>>(
        check: &'static str,
        text: impl Into<String>,
        todo: impl IntoIterator<Item = S>,
    ) -> Self {
        Self { result: Outcome::Problem, ..Self::note(check, text, todo) }
    }

    /// Not looked at.
    pub fn skipped(check: &'static str, text: impl Into<String>) -> Self {
        Self { result: Outcome::Skipped, ..Self::ok(check, text) }
    }
}

/// What all checks come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// No problem.
    Fine,
    /// At least one.
    Problems,
    /// The node could not be looked at.
    Unknown,
}

/// The checks, in their order.
#[derive(Debug, Serialize)]
pub struct Findings {
    schema: &'static str,
    kind: &'static str,
    /// What they come to.
    pub verdict: Verdict,
    /// Each of them.
    pub checks: Vec<Check>,
}

impl Findings {
    /// Checks.
    pub fn new(evidence: &Evidence) -> Self {
        let mut checks = vec![checks::directories(evidence)];
        let unknown = evidence.disk.unreadable.is_some();
        if !unknown {
            checks.extend(checks::all(evidence));
            checks.extend(volumes::all(evidence));
            checks.extend(checks::limits(evidence));
        }
        let problems = checks.iter().any(|c| c.result == Outcome::Problem);
        let verdict = match (unknown, problems) {
            (true, _) => Verdict::Unknown,
            (false, true) => Verdict::Problems,
            (false, false) => Verdict::Fine,
        };
        Self { schema: SCHEMA, kind: "Doctor", verdict, checks }
    }

    /// The exit status.
    pub fn code(&self) -> ExitCode {
        match self.verdict {
            Verdict::Fine => ExitCode::SUCCESS,
            Verdict::Problems => ExitCode::from(1),
            Verdict::Unknown => ExitCode::from(2),
        }
    }

    /// For people: each check on a line, what to do below the ones that need it.
    pub fn text(&self, wide: bool) -> String {
        let mut out = String::new();
        for check in &self.checks {
            let mark = match check.result {
                Outcome::Ok => "ok  ",
                Outcome::Note => "note",
                Outcome::Problem => "BAD ",
                Outcome::Skipped => "?   ",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{mark}  {:<16} {}", check.check, check.text);
            let important = check.result == Outcome::Problem || wide;
            for (i, todo) in check.todo.iter().enumerate().filter(|_| important || check.todo.len() == 1) {
                let _ = writeln!(out, "      {:>16} {}. {todo}", "", i + 1);
            }
        }
        let count = |outcome| self.checks.iter().filter(|c| c.result == outcome).count();
        let (problems, skipped) = (count(Outcome::Problem), count(Outcome::Skipped));
        let first = self.checks.iter().find(|c| c.result == Outcome::Problem).map_or("", |c| c.check);
        let _ = match self.verdict {
            Verdict::Fine if skipped > 0 => {
                writeln!(out, "\nnothing wrong was found; {skipped} could not be looked at")
            }
            Verdict::Fine => writeln!(out, "\nnothing wrong was found"),
            Verdict::Problems => writeln!(out, "\n{problems} wrong; begin with the first: {first}"),
            Verdict::Unknown => writeln!(out, "\nthe node could not be looked at"),
        };
        out
    }
}

#[cfg(test)]
mod tests;
