//! The mounter's budget: what a reviewer has to read, and what it trusts.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};

use crate::{cargo, root};

/// Lines of code as rustfmt lays them out by default, without blank lines, comments and tests.
const LINES: usize = 2500;
/// rustfmt's defaults, so that the number does not depend on this project's own, wider layout.
const LAYOUT: &str = "max_width=100,use_small_heuristics=Default";
/// Crates in the dependency tree, with the mounter itself.
const CRATES: usize = 20;
/// The feature of `seamount-sys` that the mounter asks for.
const FEATURE: &str = "mounter";

/// Runs the subcommand.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut total = 0;
    for root_file in
        ["crates/mounter/src/main.rs", "crates/mounter-protocol/src/lib.rs", "crates/sys/src/lib.rs"]
    {
        for (file, lines) in count(&root().join(root_file))? {
            println!("{lines:>6}  {}", file.strip_prefix(root()).unwrap_or(&file).display());
            total += lines;
        }
    }
    let crates = crates()?;
    println!("mounter: {total} lines of code (limit {LINES}), {} crates (limit {CRATES})", crates.len());
    if total <= LINES && crates.len() <= CRATES {
        return Ok(ExitCode::SUCCESS);
    }
    if crates.len() > CRATES {
        println!("crates: {}", crates.into_iter().collect::<Vec<_>>().join(", "));
    }
    eprintln!(
        "xtask: the mounter is over its budget: it is the privileged half and has to stay readable in one sitting"
    );
    Ok(ExitCode::FAILURE)
}

fn crates() -> anyhow::Result<BTreeSet<String>> {
    let args =
        ["tree", "--locked", "-p", "seamount-mounter", "-e", "normal", "--prefix", "none", "--format", "{p}"];
    let output = cargo().args(args).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    // "name version (path) (*)": the name and the version say which crate it is.
    let words = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    Ok(String::from_utf8(output.stdout)?.lines().filter(|l| !l.is_empty()).map(words).collect())
}

/// Lines of code per file, of a module and those beneath it that are compiled for the mounter.
fn count(file: &Path) -> anyhow::Result<Vec<(PathBuf, usize)>> {
    let Scan { lines, modules } = scan(&laid_out(file)?);
    let mut list = vec![(file.to_owned(), lines)];
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let parent = file.parent().unwrap_or(file);
    let beneath = if ["lib", "main"].contains(&stem) { parent.to_owned() } else { parent.join(stem) };
    for module in modules {
        list.extend(count(&beneath.join(format!("{module}.rs")))?);
    }
    Ok(list)
}

/// The file's text in rustfmt's default layout.
fn laid_out(file: &Path) -> anyhow::Result<String> {
    let text = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024", "--config", LAYOUT]).stdin(text).stderr(Stdio::inherit());
    let output = rustfmt.output().context("cannot start rustfmt")?;
    ensure!(output.status.success(), "rustfmt cannot lay out {}", file.display());
    String::from_utf8(output.stdout).with_context(|| format!("{} is not UTF-8", file.display()))
}

#[derive(Debug, PartialEq)]
struct Scan {
    lines: usize,
    modules: Vec<String>,
}

/// Counts a file that rustfmt has formatted: an item ends at `;` or at a brace with the item's own
/// indentation.
fn scan(text: &str) -> Scan {
    let mut found = Scan { lines: 0, modules: Vec::new() };
    let mut lines = text.lines().filter(|line| {
        let code = line.trim();
        !code.is_empty() && !code.starts_with("//")
    });
    // Attributes belong to the item after them, and are left out with it.
    let mut attributes = String::new();
    let mut attribute_lines = 0;
    while let Some(line) = lines.next() {
        let code = line.trim();
        if code.starts_with("#[") {
            let mut whole = code.to_owned();
            attribute_lines += 1;
            while !whole.ends_with(']') {
                let Some(next) = lines.next() else { break };
                whole.push_str(next.trim());
                attribute_lines += 1;
            }
            attributes.push_str(&whole);
            continue;
        }
        let left_out = std::mem::take(&mut attributes);
        let with_attributes = std::mem::take(&mut attribute_lines);
        if is_left_out(&left_out) {
            let indent = line.len() - line.trim_start().len();
            let mut last = line;
            while !(last.ends_with([';', ','])
                || last.ends_with('}') && last.len() - last.trim_start().len() == indent)
            {
                let Some(next) = lines.next() else { break };
                // A brace of the item's own indentation ends it; a `;` within it does not.
                last = if next.len() - next.trim_start().len() > indent { "" } else { next };
            }
            continue;
        }
        found.lines += 1 + with_attributes;
        let item = ["pub(crate) ", "pub "].iter().find_map(|p| code.strip_prefix(p)).unwrap_or(code);
        if let Some(name) = item.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            found.modules.push(name.to_owned());
        }
    }
    found
}

/// Whether `cfg` attributes leave an item out of the mounter. What is not understood is counted.
fn is_left_out(attributes: &str) -> bool {
    attributes.split("#[").any(|attribute| {
        let Some(condition) = attribute.strip_prefix("cfg(") else { return false };
        if condition.contains("not(") {
            return false;
        }
        condition.starts_with("test)")
            || condition.starts_with("all(test")
            || condition.contains("feature = ") && !condition.contains(&format!("feature = \"{FEATURE}\""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn blank_lines_comments_and_tests_are_not_code() {
        let text = "//! Doc.\n\n/// Doc.\npub fn f() {\n    // why\n    g();\n}\n\n#[cfg(test)]\nmod tests {\n    use x;\n    fn t() {\n    }\n}\n\nconst A: u8 = 1;\n";
        assert_eq!(scan(text), Scan { lines: 4, modules: vec![] });
    }

    #[test]
    fn modules_of_other_features_are_left_out() {
        let text = "#[cfg(feature = \"play\")]\npub mod play;\n#[cfg(feature = \"mounter\")]\npub mod mounter;\nmod both;\n#[cfg(test)]\nmod tests;\n\
                    #[cfg(any(feature = \"play\", feature = \"mounter\"))]\npub(crate) mod shared;\n";
        assert_eq!(scan(text), Scan { lines: 5, modules: modules(&["mounter", "both", "shared"]) });
    }

    #[test]
    fn an_item_of_several_lines_is_left_out_whole() {
        let text = "#[cfg(feature = \"play\")]\n#[derive(Debug)]\npub fn f(\n    a: u8,\n    b: u8,\n) -> u8 {\n    g();\n    a\n}\nfn h() {}\n";
        assert_eq!(scan(text), Scan { lines: 1, modules: vec![] });
    }

    #[test]
    fn an_attribute_counts_with_its_item() {
        let text = "#[allow(\n    clippy::x,\n    reason = \"y\"\n)]\nfn f() {}\n";
        assert_eq!(scan(text), Scan { lines: 5, modules: vec![] });
    }

    #[test]
    fn code_without_tests_is_counted_when_in_doubt() {
        for text in ["#[cfg(not(test))]\nfn f() {}\n", "#[cfg(target_os = \"linux\")]\nfn f() {}\n"] {
            assert_eq!(scan(text).lines, 2, "{text}");
        }
    }
}
