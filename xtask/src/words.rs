//! The words and the width of the project's prose: comments and documents. What is found may only become
//! less.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use crate::{command, root};

/// Words for people. A program is named, and a text says what it does.
const WORDS: [&str; 10] =
    ["anybody", "anyone", "everybody", "everyone", "nobody", "somebody", "someone", "who", "whoever", "whom"];
/// The name of what is not a word: lines of comments that are wider than code may be.
const WIDE: &str = "wide-comments";
/// rustfmt.toml's `max_width`.
const WIDTH: usize = 110;

/// The arguments of `xtask words`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shows each place of a word, or of `wide-comments`.
    #[arg(long)]
    list: Option<String>,
    /// Writes the lower numbers that were found; it raises none.
    #[arg(long)]
    lower: bool,
}

/// Where a word, or a wide line, is: `path:line: text`.
type Places = BTreeMap<&'static str, Vec<String>>;

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let found = search()?;
    if let Some(name) = &args.list {
        let places =
            found.get(name.as_str()).with_context(|| format!("{name} is not one of what is counted"))?;
        places.iter().for_each(|place| println!("{place}"));
        return Ok(ExitCode::SUCCESS);
    }
    let allowed =
        parse(&fs::read_to_string(limits()).with_context(|| format!("cannot read {}", limits().display()))?)?;
    let mut grown = false;
    for (name, places) in &found {
        let (count, limit) = (places.len(), allowed.get(*name).copied().unwrap_or_default());
        println!("{name:<14} {count:>4} of {limit}");
        if count > limit {
            grown = true;
            eprintln!(
                "xtask: {name}: {count} places, and {limit} are the limit; `cargo run -p xtask -- words --list {name}` shows them"
            );
        }
    }
    if grown {
        eprintln!(
            "xtask: name the program that acts (CONTRIBUTING.md), and wrap comments at {WIDTH} columns"
        );
        return Ok(ExitCode::FAILURE);
    }
    if args.lower {
        fs::write(limits(), render(&found))
            .with_context(|| format!("cannot write {}", limits().display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The limits, committed.
fn limits() -> PathBuf {
    root().join("xtask/words.txt")
}

fn search() -> anyhow::Result<Places> {
    let mut git = command("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rs", "*.md"]);
    let output = git.output().context("cannot start git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let mut found: Places = WORDS.iter().chain([&WIDE]).map(|name| (*name, Vec::new())).collect();
    for path in String::from_utf8(output.stdout)?.lines() {
        // What was removed is listed until it is committed.
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        for (name, place) in places(path, &text) {
            found.entry(name).or_default().push(place);
        }
    }
    Ok(found)
}

/// What is found in one file.
fn places(path: &str, text: &str) -> Vec<(&'static str, String)> {
    let rust = path.ends_with(".rs");
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{path}:{}: {}", number + 1, line.trim());
        if rust && line.trim_start().starts_with("//") && line.chars().count() > WIDTH {
            found.push((WIDE, place()));
        }
        if !rust && line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let mut prose =
            vec![if rust { comment(line) } else { (!fenced).then_some(line) }.unwrap_or_default()];
        if rust && !is_test(path) {
            prose.extend(messages(line));
        }
        let words = prose.into_iter().map(without_code).collect::<Vec<_>>().join(" ").to_lowercase();
        for word in words.split(|c: char| !c.is_alphanumeric() && c != '_') {
            found.extend(WORDS.iter().find(|banned| **banned == word).map(|banned| (*banned, place())));
        }
    }
    found
}

/// The comment on a line of Rust, if there is one.
fn comment(line: &str) -> Option<&str> {
    line.match_indices("//").find_map(|(at, _)| {
        let before = line.get(..at)?;
        let begins = before.is_empty() || before.ends_with(' ');
        // Within a string there is an odd number of quotes before it.
        (begins && before.matches('"').count() % 2 == 0).then(|| line.get(at..)).flatten()
    })
}

/// Tests' own messages are for those that read the test.
fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
}

/// The strings on a line of Rust that are texts: what users read in logs, errors and on the terminal. One
/// word is a name.
fn messages(line: &str) -> Vec<&str> {
    let code = comment(line).and_then(|comment| line.strip_suffix(comment)).unwrap_or(line);
    code.split('"').skip(1).step_by(2).filter(|text| text.contains(' ')).collect()
}

/// The text without what stands between backticks.
fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

/// `name number` in each line; `#` begins a comment.
fn parse(text: &str) -> anyhow::Result<BTreeMap<String, usize>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| -> anyhow::Result<_> {
        let (name, number) = line.split_once(' ').with_context(|| format!("no number: {line:?}"))?;
        Ok((name.to_owned(), number.trim().parse().with_context(|| format!("no number: {line:?}"))?))
    };
    lines.map(entry).collect()
}

fn render(found: &Places) -> String {
    let lines = found.iter().map(|(name, places)| format!("{name} {}\n", places.len()));
    format!(
        "# How often each may be found; it only falls: `cargo run -p xtask -- words --lower`.\n{}",
        lines.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str, text: &str) -> Vec<&'static str> {
        places(path, text).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn words_are_found_in_prose_alone() {
        assert_eq!(names("a.rs", "let who = 1; // Whoever asks\n//! Nobody.\n"), ["whoever", "nobody"]);
        assert_eq!(
            names("a.rs", "let url = \"http://who/\"; let x = \"//who\";\n/// `who` and whole\n"),
            [""; 0]
        );
        assert_eq!(
            names("src/a.rs", "warn!(\"nobody asks\"); // who\nlet user = \"nobody\";\n"),
            ["who", "nobody"]
        );
        assert_eq!(names("src/tests.rs", "panic!(\"nobody asks\");\n"), [""; 0]);
        assert_eq!(names("a.md", "Who?\n```\nwho\n```\n    whoever\n`whom`\n"), ["who", "whoever"]);
    }

    #[test]
    fn comments_are_as_wide_as_code_at_most() {
        let wide = format!("    // {}\n", "ü".repeat(WIDTH - 6));
        assert_eq!(names("a.rs", &wide), [WIDE]);
        assert_eq!(names("a.rs", &wide.replacen('ü', "", 1)), [""; 0]);
        assert_eq!(names("a.md", &wide), [""; 0]);
        // rustfmt's business.
        assert_eq!(names("a.rs", &format!("let x = \"{}\";\n", "x".repeat(WIDTH))), [""; 0]);
    }

    #[test]
    fn a_place_is_named() {
        assert_eq!(places("a.rs", "\n    // who\n"), [("who", "a.rs:2: // who".to_owned())]);
    }

    #[test]
    fn limits_are_read_as_they_are_written() {
        let found = Places::from([("who", vec![String::new(); 3]), (WIDE, Vec::new())]);
        let limits = parse(&render(&found)).unwrap();
        assert_eq!(limits, BTreeMap::from([("who".to_owned(), 3), (WIDE.to_owned(), 0)]));
        assert!(parse("who\n").is_err() && parse("who many\n").is_err());
    }
}
