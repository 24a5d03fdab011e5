//! The checks of the volumes: as the agent tells of them, else as they are on disk.

use seamount_proto::node::Volume;

use super::{Check, Evidence};
use crate::node::disk::{Door, OnDisk};
use crate::node::render::plain;

/// How many are named.
const NAMED: usize = 5;

/// Health, and what other drivers and crashes have left.
pub fn all(e: &Evidence) -> Vec<Check> {
    match &e.volumes {
        Ok((volumes, problem)) => {
            let leftovers = match problem {
                None => leftovers(volumes),
                Some(_) => leftovers_on_disk(&e.disk.volumes),
            };
            vec![health(volumes), leftovers]
        }
        Err(_) => vec![on_disk(&e.disk.volumes), leftovers_on_disk(&e.disk.volumes)],
    }
}

fn named<'a>(all: impl Iterator<Item = String> + 'a) -> String {
    let mut names: Vec<String> = all.collect();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    names.join(", ") + &more
}

fn name(v: &Volume) -> String {
    match v.pod.is_empty() {
        true => format!("{}/{}", v.pod_uid, v.name),
        false => format!("{}/{} ({})", plain(&v.namespace), plain(&v.pod), v.name),
    }
}

/// Reasons of leftovers, which have a check of their own.
const LEFT: [&str; 2] = ["Orphan", "ForeignMount"];

fn health(volumes: &[Volume]) -> Check {
    let check = "volumes";
    let faults = |v: &&Volume| v.faults.iter().any(|f| !LEFT.contains(&f.reason.as_str()));
    let ill: Vec<_> = volumes.iter().filter(faults).collect();
    if ill.is_empty() {
        return Check::ok(check, format!("all healthy: {}", volumes.len()));
    }
    // The reasons in the order of how many volumes have them; a remedy for each.
    let mut reasons: Vec<(&str, usize, &str)> = Vec::new();
    for fault in ill.iter().flat_map(|v| &v.faults).filter(|f| !LEFT.contains(&f.reason.as_str())) {
        match reasons.iter_mut().find(|(reason, ..)| *reason == fault.reason) {
            Some((_, count, _)) => *count += 1,
            None => reasons.push((&fault.reason, 1, &fault.message)),
        }
    }
    reasons.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    let todo = reasons.into_iter().map(|(reason, count, message)| {
        format!("{reason} ({count}): {}. {}", plain(message), remedy(reason))
    });
    let names = named(ill.iter().map(|v| name(v)));
    Check::problem(
        check,
        format!("{} of {} volumes are not healthy: {names}", ill.len(), volumes.len()),
        todo,
    )
}

fn remedy(reason: &str) -> &'static str {
    match reason {
        "IdentityPending" | "RotationFailing" | "RotationOverdue" | "IdentityExpired" => {
            "Repair what the reason names, the authority first; it is tried again every minute"
        }
        "IdentityUnknown" | "NotServed" => {
            "Wait two minutes for the kubelet's republish; if it does not come, look at the pod's events and the kubelet's log"
        }
        "SocketMissing" => "It comes back with the kubelet's republish, within two minutes",
        "VolumeMissing" | "SourceRecreated" => "Delete the pod; its controller makes another",
        "SubPathDead" => {
            "Delete the pod. A volumeMount without subPath has none of this: what is mounted is the directory then"
        }
        "MounterUnreachable" => "See the check `mounter`",
        _ => "See docs/operations.md",
    }
}

fn leftovers(volumes: &[Volume]) -> Check {
    let pick = |wanted: fn(&&Volume) -> bool| volumes.iter().filter(wanted).map(name).collect::<Vec<_>>();
    judge(pick(|v| v.mounts > 1), pick(|v| v.orphan), pick(|v| v.foreign && v.mounts <= 1))
}

fn leftovers_on_disk(volumes: &[OnDisk]) -> Check {
    let name = |v: &OnDisk| format!("{}/{}", plain(&v.pod_uid), plain(&v.name));
    let pick = |wanted: fn(&&OnDisk) -> bool| volumes.iter().filter(wanted).map(name).collect::<Vec<_>>();
    // One mount may be the `directory` source's; only the mounter can tell.
    judge(pick(|v| v.mounts > 1), pick(|v| !v.recorded), Vec::new())
}

fn judge(stacked: Vec<String>, orphans: Vec<String>, foreign: Vec<String>) -> Check {
    let check = "leftovers";
    let (mut text, mut todo) = (Vec::new(), Vec::new());
    if !stacked.is_empty() {
        text.push(format!(
            "{} with several mounts on one path: {}",
            stacked.len(),
            named(stacked.into_iter())
        ));
        todo.push(
            "delete the pods: the kubelet's unpublish takes the mounts away; if one stays, umount \
             pods/UID/volumes/kubernetes.io~csi/NAME/mount as often as it is in /proc/self/mountinfo"
                .to_owned(),
        );
    }
    if !orphans.is_empty() {
        text.push(format!(
            "{} that the kubelet has no record of: {}",
            orphans.len(),
            named(orphans.into_iter())
        ));
        todo.push(
            "is there a pod with this UID (kubectl get pods -A -o jsonpath='{.items[*].metadata.uid}')? If not: restart the \
             kubelet, which cleans up, and if it stays: rm spire-agent.sock agent.sock socket in the directory, then rmdir it"
                .to_owned(),
        );
    }
    if !foreign.is_empty() {
        text.push(format!("{} with another driver's mount: {}", foreign.len(), named(foreign.into_iter())));
        todo.push("delete the pods; their successors get a volume of this driver".to_owned());
    }
    if text.is_empty() {
        return Check::ok(check, "no orphans, no stacked and no foreign mounts");
    }
    Check::problem(check, text.join("; "), todo)
}

fn on_disk(volumes: &[OnDisk]) -> Check {
    let check = "volumes";
    let name = |v: &&OnDisk| format!("{}/{}", plain(&v.pod_uid), plain(&v.name));
    let ours = || volumes.iter().filter(|v| v.recorded && v.mounts == 0);
    let dead: Vec<_> = ours().filter(|v| v.published && v.socket != Door::Open).map(|v| name(&v)).collect();
    let total = volumes.iter().filter(|v| v.recorded).count();
    if dead.is_empty() {
        return Check::skipped(
            check,
            format!(
                "the agent does not answer; {total} volumes on disk, each with a socket that a process keeps"
            ),
        );
    }
    Check::problem(
        check,
        format!(
            "{} of {total} volumes have a socket that no process keeps: {}",
            dead.len(),
            named(dead.into_iter())
        ),
        [
            "start mounter and agent again: sockets and identities come back with them",
            "a pod's client connects again by itself",
        ],
    )
}
