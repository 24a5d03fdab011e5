//! The cluster, through `kubectl` as its administrator.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Set by `run.sh` while the cluster with the installation under test is up.
pub const MARK: &str = "SEAMOUNT_E2E";

/// The repository's root.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs `cluster.sh ARGS` with `input` and returns what it printed.
pub fn script(args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(repository().join("tests/cluster/cluster.sh"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run tests/cluster/cluster.sh")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that fails early closes it; its own message says more.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {}", args.join(" "), output.status, stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs kubectl and returns what it printed.
pub fn kubectl(args: &[&str]) -> Result<String> {
    script(&[&["kubectl"], args].concat(), "")
}

/// Creates or changes an object.
pub fn apply(object: &Value) -> Result<()> {
    script(&["kubectl", "apply", "-f", "-"], &object.to_string())
        .with_context(|| format!("cannot apply {object}"))
        .map(drop)
}

/// An object, or a list, as JSON.
pub fn get(args: &[&str]) -> Result<Value> {
    let text = kubectl(&[&["get", "-o", "json"], args].concat())?;
    serde_json::from_str(&text).with_context(|| format!("kubectl get {} is no JSON", args.join(" ")))
}

/// Changes an object by a JSON merge patch (RFC 7396).
pub fn patch(args: &[&str], patch: &Value) -> Result<()> {
    let patch = patch.to_string();
    kubectl(&[&["patch", "--type=merge", "-p", &patch], args].concat()).map(drop)
}
