//! `docs/operations.md` has every warning and error that agent and mounter write, and no other; every reason
//! of a volume's health; and every condition of readiness.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MANUAL: &str = include_str!("../../../docs/operations.md");

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Sources without tests.
fn sources(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name.ends_with("tests") {
            continue;
        }
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The message of each `warn!`, `error!` and `event("warn" | "error", …)`: the first literal at the call's
/// own level.
fn messages(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut out = Vec::new();
    for call in ["tracing::warn!(", "tracing::error!(", "event(\"warn\",", "event(\"error\","] {
        for (at, _) in source.match_indices(call) {
            out.push(first_literal(&source[at + call.len()..]).unwrap_or_else(|| {
                panic!("a message without a literal: {}", &source[at..(at + 80).min(source.len())])
            }));
        }
    }
    // The mounter's own `warn`.
    for (at, call) in source.match_indices(" warn(\"") {
        out.extend(first_literal(&source[at + call.len() - 1..]));
    }
    out
}

fn first_literal(rest: &str) -> Option<String> {
    let mut depth = 0;
    let mut literal: Option<String> = None;
    let mut characters = rest.chars();
    while let Some(c) = characters.next() {
        match (&mut literal, c) {
            (Some(text), '\\') => text.push(characters.next()?),
            (Some(text), '"') if depth == 0 => return Some(text.clone()),
            (Some(_), '"') => literal = None,
            (Some(text), c) => text.push(c),
            (None, '"') => literal = Some(String::new()),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') if depth == 0 => return None,
            (None, ')' | ']' | '}') => depth -= 1,
            (None, _) => {}
        }
    }
    None
}

/// The first columns of the tables below this heading, up to the next heading of the same level or above.
fn table(heading: &str) -> BTreeSet<String> {
    let level = heading.split(' ').next().unwrap().len();
    let (_, rest) = MANUAL.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let end = |line: &&str| !(line.starts_with('#') && line.split(' ').next().unwrap().len() <= level);
    let cells = rest.lines().take_while(end).filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells
        .map(|cell| cell.trim_matches('`').to_owned())
        .filter(|c| !["line", "reason", "condition"].contains(&c.as_str()))
        .collect()
}

#[test]
fn the_manual_has_every_warning_and_error() {
    let mut files = Vec::new();
    for name in [
        "agent",
        "http-client",
        "identity",
        "mounter",
        "mounter-client",
        "pod-token",
        "telemetry",
        "workload-api",
    ] {
        sources(&crates().join(name).join("src"), &mut files);
    }
    let mut said = BTreeSet::new();
    for file in &files {
        said.extend(messages(&fs::read_to_string(file).unwrap()));
    }
    assert!(said.len() > 30, "{said:?}");
    let listed = table("## Log lines");
    let missing: Vec<_> = said.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&said).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/operations.md, \"Log lines\": missing {missing:#?}, said no more {gone:#?}"
    );
}

#[test]
fn no_cell_of_the_manual_is_empty_but_a_unit() {
    let unit = |line: &str| line.starts_with("| `seamount_");
    let empty: Vec<_> = MANUAL
        .lines()
        .filter(|l| {
            l.starts_with("| `") && !unit(l) && l.trim_matches('|').split('|').any(|c| c.trim().is_empty())
        })
        .collect();
    assert!(empty.is_empty(), "{empty:#?}");
}

#[test]
fn the_manual_has_every_reason_and_every_condition() {
    let health = fs::read_to_string(crates().join("agent/src/volumes/health.rs")).unwrap();
    let reason = |text: &str| {
        let good = text.len() > 3
            && text.chars().all(char::is_alphanumeric)
            && text.chars().next().is_some_and(char::is_uppercase);
        good.then(|| text.to_owned())
    };
    let reasons: BTreeSet<String> = health.split('"').skip(1).step_by(2).filter_map(reason).collect();
    assert!(reasons.len() > 8, "{reasons:?}");
    assert_eq!(table("## What to do about a volume's health"), reasons);
    let conditions: BTreeSet<String> =
        seamount_agent::readiness::checks().iter().map(ToString::to_string).collect();
    assert_eq!(table("## Readiness"), conditions);
}

#[test]
fn the_scanner_reads_the_calls_as_they_are_written() {
    let text = r#"tracing::warn!(socket = %path.display(), n = f("no", [1]), "a \"b\" {why}"); event("error", "stops", &[("reason", &e)]);"#;
    assert_eq!(messages(text), ["a \"b\" {why}", "stops"]);
}
