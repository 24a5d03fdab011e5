//! A node, seen from inside its namespaces as root.

use anyhow::{Context as _, Result, bail, ensure};

use crate::cluster::{get, script};
use crate::survivor::endpoint;
use crate::{SYSTEM, until};

/// Runs a command inside node `n1`, `n2`, … and returns what it printed.
pub fn run(node: &str, command: &[&str]) -> Result<String> {
    script(&[&["node", node.trim_start_matches('n')], command].concat(), "")
}

/// Runs a shell script inside a node.
pub fn shell(node: &str, script: &str) -> Result<String> {
    run(node, &["sh", "-c", script])
}

/// The mounts of a node's own mount namespace, one line each (`proc_pid_mountinfo(5)`).
pub fn mounts(node: &str) -> Result<Vec<String>> {
    Ok(run(node, &["cat", "/proc/self/mountinfo"])?.lines().map(str::to_owned).collect())
}

/// Where the identity volume of a pod is on its node.
pub fn volume_path(pod_uid: &str) -> String {
    format!("{}/volumes/kubernetes.io~csi/spiffe/mount", pod_directory(pod_uid))
}

/// A pod's directory on its node.
pub fn pod_directory(pod_uid: &str) -> String {
    format!("/var/lib/kubelet/pods/{pod_uid}")
}

/// The directory where the mounter keeps the state of a node's volumes.
pub fn state_directory() -> String {
    "/var/lib/kubelet/plugins/seamount.dev/state".to_owned()
}

/// The pod of the installation's DaemonSet on a node.
pub fn daemon(node: &str) -> Result<serde_json::Value> {
    let selector = format!("--field-selector=spec.nodeName={node}");
    let list = get(&["pods", "-n", SYSTEM, &selector])?;
    let running =
        list["items"].as_array().into_iter().flatten().find(|p| p["metadata"]["deletionTimestamp"].is_null());
    running.cloned().with_context(|| format!("no pod of {SYSTEM} on {node}"))
}

/// The host's pid of a container of a pod.
pub fn container_pid(node: &str, pod: &serde_json::Value, container: &str) -> Result<u32> {
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let Some(id) = statuses
        .filter(|s| s["name"] == container)
        .find_map(|s| s["containerID"].as_str()?.strip_prefix("containerd://"))
    else {
        bail!("container {container} of {} is not running: {}", pod["metadata"]["name"], pod["status"]);
    };
    pid_of_container(node, id)
}

/// The host's pid of a container.
pub fn pid_of_container(node: &str, id: &str) -> Result<u32> {
    let tasks = run(node, &["ctr", "-n", "k8s.io", "task", "ls"])?;
    tasks
        .lines()
        .filter(|l| l.contains("RUNNING"))
        .find_map(|l| l.strip_prefix(id)?.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("containerd has no running task {id}: {tasks}"))
}

/// The pids of the mounters and agents (`process` is `mounter` or `agent`) in the containers of a node, found
/// by name.
pub fn processes(node: &str, process: &str) -> Result<Vec<u32>> {
    let list = "ctr -n k8s.io task ls | awk '/RUNNING/{print $2}' | while read -r p; do \
        echo \"$p $(tr '\\0' ' ' </proc/$p/cmdline)\"; done 2>/dev/null; true";
    let program = format!("/seamount-{process}");
    let pids = shell(node, list)?;
    Ok(pids
        .lines()
        .filter_map(|l| {
            let mut words = l.split_whitespace();
            let pid = words.next()?.parse().ok()?;
            (words.next()? == program).then_some(pid)
        })
        .collect())
}

/// Sends a signal (`KILL`, `STOP`, `CONT`) to processes of a node at once.
pub fn signal(node: &str, signal: &str, pids: &[u32]) -> Result<()> {
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    shell(node, &format!("kill -{signal} {}", pids.join(" "))).map(drop)
}

/// Runs a command among the processes of a container, as the container's root, with the client's environment.
/// Needs neither the API server nor the kubelet.
pub fn in_container(node: &str, pid: u32, command: &[&str]) -> Result<String> {
    let pid = pid.to_string();
    let enter = ["nsenter", "-t", &pid, "-m", "-u", "-i", "-n", "-p", "--", "/bin/env", &endpoint()];
    run(node, &[&enter, command].concat())
}

/// `cluster.sh VERB NODE ARGUMENTS`: `stop` and `start` (of `kubelet`, `containerd`, or of the node as a
/// whole), `link`.
pub fn control(verb: &str, node: &str, arguments: &[&str]) -> Result<()> {
    script(&[&[verb, node.trim_start_matches('n')], arguments].concat(), "").map(drop)
}

/// Waits until nothing of a pod is left on its node: no directory, no mount.
pub fn forgotten(node: &str, pod_uid: &str) -> Result<()> {
    until(&format!("pod {pod_uid} to leave {node}"), || {
        let directory = shell(node, &format!("ls -d {} 2>/dev/null; true", pod_directory(pod_uid)))?;
        ensure!(directory.trim().is_empty(), "{directory} is there");
        let mounts: Vec<_> = mounts(node)?.into_iter().filter(|l| l.contains(pod_uid)).collect();
        ensure!(mounts.is_empty(), "{mounts:?}");
        Ok(Some(()))
    })
}

/// A field of `/proc/<pid>/status` (`proc_pid_status(5)`).
pub fn status(node: &str, pid: u32, field: &str) -> Result<String> {
    let text = run(node, &["cat", &format!("/proc/{pid}/status")])?;
    let value = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("no {field} in {text}"))?.trim().to_owned())
}

/// The listening sockets of the mounter's own network namespace, where all of its sockets are, in
/// `/proc/net/unix` (`proc_pid_net(5)`: flag `00010000` means listening). Their names there are not those
/// that they got afterwards.
pub fn listeners(node: &str) -> Result<usize> {
    let pid = container_pid(node, &daemon(node)?, "mounter")?;
    let table = run(node, &["cat", &format!("/proc/{pid}/net/unix")])?;
    Ok(table.lines().filter(|l| l.split_whitespace().nth(3) == Some("00010000")).count())
}
