//! Clippy and the unit tests of what is being worked on: the answer to an edit, in less than a minute.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{cargo, command, root, succeed};

/// The arguments of `xtask quick`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Packages, or the names of their directories; without any, those with changes that are not committed.
    packages: Vec<String>,
}

/// A package of the workspace.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    name: String,
    directory: PathBuf,
    /// cargo's options for its unit tests.
    units: Vec<&'static str>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let members = members(&serde_json::from_str(&output(&mut metadata)?)?).context("cargo metadata")?;
    let chosen = if args.packages.is_empty() {
        let mut git = command("git");
        touched(
            &members,
            &output(git.args(["status", "--porcelain", "--no-renames", "--untracked-files=all"]))?,
        )
    } else {
        args.packages.iter().map(|name| named(&members, name)).collect::<anyhow::Result<_>>()?
    };
    if chosen.is_empty() {
        println!("quick: no package has changes that are not committed; name one: make quick CRATE=agent");
    }
    // One at a time: two together would have other features than each has alone, and be built again.
    for member in chosen {
        println!("==> {}", member.name);
        let package = ["--locked", "--package", &member.name];
        succeed(cargo().arg("clippy").args(package).args(["--all-targets", "--", "-D", "warnings"]))?;
        if !member.units.is_empty() {
            succeed(cargo().arg("test").args(package).args(&member.units))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn output(command: &mut std::process::Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Out of `cargo metadata`.
fn members(metadata: &Value) -> Option<Vec<Member>> {
    let member = |package: &Value| {
        let manifest = Path::new(package.get("manifest_path")?.as_str()?);
        let targets = package.get("targets")?.as_array()?;
        let has = |kind: &str| {
            let kinds =
                targets.iter().filter(|target| target.get("test").and_then(Value::as_bool) == Some(true));
            kinds.filter_map(|target| target.get("kind")?.as_array()).flatten().any(|found| found == kind)
        };
        let units = [("lib", "--lib"), ("bin", "--bins")].into_iter().filter(|(kind, _)| has(kind));
        Some(Member {
            name: package.get("name")?.as_str()?.to_owned(),
            directory: manifest.parent()?.strip_prefix(root()).ok()?.to_owned(),
            units: units.map(|(_, option)| option).collect(),
        })
    };
    metadata.get("packages")?.as_array()?.iter().map(member).collect()
}

/// The packages of the paths in `git status --porcelain`.
fn touched<'a>(members: &'a [Member], status: &str) -> Vec<&'a Member> {
    let paths: Vec<&Path> = status.lines().filter_map(|line| line.get(3..)).map(Path::new).collect();
    members.iter().filter(|member| paths.iter().any(|path| path.starts_with(&member.directory))).collect()
}

fn named<'a>(members: &'a [Member], name: &str) -> anyhow::Result<&'a Member> {
    let is_it = |member: &&Member| member.name == name || member.directory.ends_with(name);
    members.iter().find(is_it).with_context(|| {
        let all: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        format!("there is no package {name:?}; there are {}", all.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> Vec<Member> {
        let package = |directory: &str, name: &str, targets: Value| serde_json::json!({"name": name, "manifest_path": root().join(directory).join("Cargo.toml"), "targets": targets});
        let target = |kind: &str, test: bool| serde_json::json!({"kind": [kind], "test": test});
        let both = serde_json::json!([target("lib", true), target("bin", true), target("test", true)]);
        members(&serde_json::json!({"packages": [
            package("crates/agent", "seamount-agent", both),
            package("crates/cli", "seamount", serde_json::json!([target("bin", true)])),
            package("tests/fuzz", "seamount-fuzz", serde_json::json!([target("lib", false)])),
        ]}))
        .unwrap()
    }

    #[test]
    fn a_package_has_its_unit_tests() {
        let units: Vec<_> = workspace().into_iter().map(|member| member.units).collect();
        assert_eq!(units, [vec!["--lib", "--bins"], vec!["--bins"], vec![]]);
    }

    #[test]
    fn a_package_is_named_by_its_directory_as_well() {
        let members = workspace();
        for name in ["agent", "seamount-agent", "crates/agent"] {
            assert_eq!(named(&members, name).unwrap().name, "seamount-agent");
        }
        assert_eq!(named(&members, "cli").unwrap().name, "seamount");
        assert!(named(&members, "gent").unwrap_err().to_string().contains("seamount-agent, seamount"));
    }

    #[test]
    fn what_was_changed_is_found() {
        let members = workspace();
        let names = |status: &str| -> Vec<&str> {
            touched(&members, status).into_iter().map(|member| member.name.as_str()).collect()
        };
        assert_eq!(
            names(" M crates/agent/src/lib.rs\n?? tests/fuzz/src/new.rs\nM  README.md\n"),
            ["seamount-agent", "seamount-fuzz"]
        );
        assert_eq!(names(" M crates/agents.rs\n"), [""; 0]);
    }
}
