//! What is left behind: counted against what there has to be.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::node::{DRIVER, Node, Who};
use crate::tally::{Fault, Tally};

/// Connections close and processes finish work behind an answer: how long that may take.
const SETTLE: Duration = Duration::from_secs(30);
/// Descriptors of one volume in the agent (the listener and a duplicate to give to a new mounter) and in the
/// mounter.
const PER_VOLUME: [(Who, usize); 2] = [(Who::Agent, 2), (Who::Mounter, 1)];

/// What the two processes hold without any volume.
#[derive(Debug, Clone, Copy)]
pub struct Base([usize; 2]);

/// Counts what a quiet node without volumes holds.
pub async fn base(node: &Node) -> Base {
    // What a start opens for a moment is closed by then.
    let mut last = descriptors(node);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = descriptors(node);
        if now == last {
            return Base(now);
        }
        last = now;
    }
}

/// Compares a quiet node that has these volumes, and no clients, with what it must hold.
pub async fn check(node: &Node, base: Base, volumes: usize, tally: &Tally) {
    let start = Instant::now();
    while !found(node, base, volumes).is_empty() && start.elapsed() < SETTLE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (fault, number, text) in found(node, base, volumes) {
        tally.faults(fault, number, &format!("with {volumes} volumes: {text}"));
    }
}

/// Processes that are still in this mount namespace, this one apart.
pub fn check_processes(tally: &Tally) {
    let ours = std::fs::read_link("/proc/thread-self/ns/mnt").ok();
    let me = std::process::id().to_string();
    for name in entries(Path::new("/proc")) {
        let number = name.parse::<u32>().is_ok() && name != me;
        if number
            && std::fs::read_link(format!("/proc/{name}/ns/mnt")).ok().is_some_and(|ns| Some(ns) == ours)
        {
            let program = std::fs::read_to_string(format!("/proc/{name}/comm")).unwrap_or_default();
            tally.fault(Fault::LeakedProcess, &format!("pid {name}: {}", program.trim_end()));
        }
    }
}

fn found(node: &Node, Base(base): Base, volumes: usize) -> Vec<(Fault, usize, String)> {
    let mut found = Vec::new();
    let now = descriptors(node);
    for (((who, each), base), now) in PER_VOLUME.into_iter().zip(base).zip(now) {
        let wanted = base + each * volumes;
        if now != wanted {
            let text = format!("{who:?} has {now} descriptors, expected {wanted}: {}", kinds(node, who));
            found.push((Fault::LeakedDescriptor, now.abs_diff(wanted), text));
        }
    }
    // The kubelet's root and the state directory.
    let root = node.kubelet.root().display().to_string();
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mounts: Vec<_> =
        table.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| p.starts_with(&root)).collect();
    if mounts.len() != 2 {
        found.push((Fault::LeakedMount, mounts.len().abs_diff(2), format!("{mounts:?}")));
    }
    let directory = |part: &str| entries(&node.kubelet.root().join(part));
    let pods = directory("pods");
    if pods.len() != volumes {
        found.push((Fault::LeakedDirectory, pods.len().abs_diff(volumes), format!("{} pods", pods.len())));
    }
    for (part, wanted) in [
        ("plugins/seamount.dev".to_owned(), ["lock", "state", "take-over.sock"].map(String::from).to_vec()),
        (format!("plugins/{DRIVER}"), vec!["csi.sock".to_owned()]),
        ("plugins_registry".to_owned(), vec![format!("{DRIVER}-reg.sock")]),
    ] {
        let there = directory(&part);
        let wanted = BTreeSet::from_iter(wanted);
        if there != wanted {
            let number = there.symmetric_difference(&wanted).count();
            found.push((Fault::LeakedDirectory, number, format!("{part}: {there:?}")));
        }
    }
    for pod in pods {
        let there = directory(&format!("pods/{pod}/volumes/kubernetes.io~csi/spiffe/mount"));
        if there.len() != 3 {
            found.push((Fault::LeakedDirectory, there.len().abs_diff(3), format!("{pod}: {there:?}")));
        }
    }
    let records = entries(&node.state());
    if records.len() != volumes + 1 {
        let text = format!("{} records and the node's own: {records:?}", records.len().saturating_sub(1));
        found.push((Fault::LeakedRecord, records.len().abs_diff(volumes + 1), text));
    }
    found
}

fn descriptors(node: &Node) -> [usize; 2] {
    PER_VOLUME
        .map(|(who, _)| node.pid(who).map_or(0, |pid| entries(Path::new(&format!("/proc/{pid}/fd"))).len()))
}

/// What a process's descriptors are, for the message.
fn kinds(node: &Node, who: Who) -> String {
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    let directory = format!("/proc/{}/fd", node.pid(who).unwrap_or_default());
    for name in entries(Path::new(&directory)) {
        let link =
            std::fs::read_link(format!("{directory}/{name}")).unwrap_or_default().display().to_string();
        let kind = link.split(":[").next().unwrap_or_default();
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    format!("{kinds:?}")
}

fn entries(directory: &Path) -> BTreeSet<String> {
    let read = std::fs::read_dir(directory).into_iter().flatten();
    read.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
}
