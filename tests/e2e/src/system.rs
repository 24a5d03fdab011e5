//! The installation under test: its DaemonSet, its configuration, and how both come back.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::{get, kubectl, patch};
use crate::test::text;
use crate::{SYSTEM, node, until};

/// The nodes of the cluster.
pub const NODES: [&str; 2] = ["n1", "n2"];

/// Puts something back as it was, however the test ends.
pub struct Restore(Box<dyn Fn() -> Result<()>>);

impl Restore {
    /// By this.
    pub fn new(undo: impl Fn() -> Result<()> + 'static) -> Self {
        Self(Box::new(undo))
    }

    /// Now, and tells whether it worked.
    pub fn now(self) -> Result<()> {
        let outcome = (self.0)();
        std::mem::forget(self);
        outcome
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Err(error) = (self.0)() {
            println!("cannot restore what the test changed: {error:#}");
        }
    }
}

/// Deletes the DaemonSet's pods and waits until new ones run both processes on all nodes. They need not be
/// ready.
pub fn restart_daemons() -> Result<()> {
    let uids = || -> Result<Vec<String>> {
        NODES.iter().map(|n| Ok(text(&node::daemon(n)?["metadata"]["uid"]))).collect()
    };
    let before = uids()?;
    kubectl(&["delete", "pods", "-n", SYSTEM, "--all", "--timeout=120s"])?;
    until("the new pods of the DaemonSet", || {
        for n in NODES {
            let pod = node::daemon(n)?;
            ensure!(!before.contains(&text(&pod["metadata"]["uid"])), "still the old pod on {n}");
            let running = statuses(&pod).iter().filter(|s| !s["state"]["running"].is_null()).count();
            ensure!(running == 2, "{n}: {}", pod["status"]);
        }
        Ok(Some(()))
    })
}

/// Waits until the DaemonSet's pods are of its newest revision and ready on all nodes.
pub fn daemons_ready() -> Result<()> {
    kubectl(&["rollout", "status", "daemonset/seamount-node", "-n", SYSTEM, "--timeout=180s"]).map(drop)
}

/// Waits until a node and the DaemonSet's pod on it are ready.
pub fn ready_on(name: &str) -> Result<Value> {
    until(&format!("{name} to be ready"), || {
        let node = get(&["node", name])?;
        ensure!(is_ready(&node), "node {name}: {}", node["status"]["conditions"]);
        let pod = node::daemon(name)?;
        let all = statuses(&pod);
        ensure!(is_ready(&pod) && all.len() == 2, "{name}: {}", pod["status"]);
        // What the API says may be of before: these are the processes of now.
        for process in ["agent", "mounter"] {
            node::container_pid(name, &pod, process)?;
        }
        Ok(Some(pod))
    })
}

/// The test that found the cluster out of order first, and how.
static BROKEN: Mutex<Option<String>> = Mutex::new(None);

/// Makes sure that a test finds these nodes in order. Once they were not, the tests that follow fail at once
/// with that reason: each would wait in vain, and what it then says would hide what happened first.
pub fn in_order(test: &str, nodes: &[&str]) -> Result<()> {
    let broken = || BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(first) = &*broken() {
        bail!("not tried: {first}");
    }
    let found = nodes.iter().try_for_each(|n| ready_on(n).map(drop));
    found.inspect_err(|e| {
        broken().get_or_insert_with(|| format!("{test} found the cluster out of order: {e:#}"));
    })
}

/// Whether a node or a pod has the condition `Ready`.
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The statuses of a pod's containers.
pub fn statuses(pod: &Value) -> Vec<Value> {
    pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default()
}

/// What the agent of a node has logged.
pub fn agent_log(node: &str) -> Result<String> {
    let pod = text(&node::daemon(node)?["metadata"]["name"]);
    kubectl(&["logs", &pod, "-c", "agent", "-n", SYSTEM])
}

/// Gives new SVIDs another lifetime (as the configuration writes it) until the guard is dropped.
pub fn with_svid_ttl(ttl: &str) -> Result<Restore> {
    let map = ["configmap", "seamount-agent", "-n", SYSTEM];
    let good = get(&map)?["data"].clone();
    let yaml = text(&good["agent.yaml"]);
    let line = yaml.lines().find(|l| l.trim_start().starts_with("svidTtl:")).context("no svidTtl")?;
    let indent = line.split("svidTtl").next().unwrap_or_default();
    let changed = yaml.replace(line, &format!("{indent}svidTtl: {ttl}"));
    let apply = move |data: &Value| -> Result<()> {
        patch(&map, &json!({"data": data}))?;
        restart_daemons()?;
        daemons_ready()
    };
    let restore = Restore::new(move || apply(&good));
    apply(&json!({"agent.yaml": changed}))?;
    Ok(restore)
}
