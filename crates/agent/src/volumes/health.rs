//! What is wrong with a volume, if anything: the truth about its socket, its identity and its source. Pure.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use seamount_mounter_protocol::flag;

/// How long a new volume may be without identity before that counts as a fault.
pub const GRACE: Duration = Duration::from_secs(30);

/// When the renewal of an SVID is overdue: a quarter of what was left of its life when it was due has passed.
pub fn overdue(rotate_at: SystemTime, not_after: SystemTime) -> SystemTime {
    rotate_at + not_after.duration_since(rotate_at).unwrap_or_default() / 4
}

/// How bad it is (CSI 1.13 `VolumeHealthErrorType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Usable, but not as it should be.
    Degraded,
    /// Of no use to the pod.
    Inaccessible,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeCondition {
    /// How bad.
    pub severity: Severity,
    /// CamelCase, for machines.
    pub reason: &'static str,
    /// For people: what, why and what to do.
    pub message: String,
}

/// What the agent knows of a volume's content: an identity's SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// No token since the agent started and nothing recorded: the kubelet's next republish brings one.
    Unknown,
    /// Wanted since then, not here yet.
    Pending {
        /// When the volume was published.
        since: SystemTime,
    },
    /// Here.
    Ready {
        /// End of the SVID's validity.
        not_after: SystemTime,
    },
    /// The volume has none of ours: the `directory` source.
    External,
}

/// What the agent knows of a volume, without asking the mounter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its content.
    pub content: Content,
    /// Why the last attempt to get one failed.
    pub failure: Option<Arc<str>>,
    /// Whether the Workload API is being served (never for `directory`).
    pub serving: bool,
    /// When the SVID is to be renewed.
    pub rotate_at: Option<SystemTime>,
}

impl Status {
    /// Of a volume of which nothing is known.
    pub fn unknown() -> Self {
        Self { content: Content::Unknown, failure: None, serving: false, rotate_at: None }
    }
}

/// What the mounter sees at the target path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisk {
    /// The mounter cannot be asked.
    Unasked,
    /// Nothing.
    Nothing,
    /// Something with these bits of [`flag`].
    Flags(u32),
}

/// The faults of a volume, the worst first.
pub fn conditions(status: Option<&Status>, disk: OnDisk, now: SystemTime) -> Vec<VolumeCondition> {
    let mut found = Vec::new();
    on_disk(disk, &mut found);
    match status {
        Some(status) => identity(status, now, &mut found),
        None => {
            if matches!(disk, OnDisk::Flags(f) if f & flag::IDENTITY != 0 && f & flag::ORPHAN == 0) {
                found.push(VolumeCondition {
                    severity: Severity::Degraded,
                    reason: "NotServed",
                    message: "the volume is on disk but not served yet; the kubelet's next republish brings its token"
                        .to_owned(),
                });
            }
        }
    }
    found.sort_by_key(|c| c.severity == Severity::Degraded);
    found
}

/// The fault of a volume of which these containers hold something dead by `subPath`; goes before all others,
/// because a restart of the pod is the only remedy.
pub fn dead_subpaths(containers: &str) -> Option<VolumeCondition> {
    (!containers.is_empty()).then(|| VolumeCondition {
        severity: Severity::Inaccessible,
        reason: "SubPathDead",
        message: format!(
            "the container {containers} mounted the socket by subPath and holds one that is gone; restart the pod, and \
             mount the directory instead"
        ),
    })
}

fn on_disk(disk: OnDisk, found: &mut Vec<VolumeCondition>) {
    let mut add = |severity, reason, message: &str| {
        found.push(VolumeCondition { severity, reason, message: message.to_owned() });
    };
    let flags = match disk {
        OnDisk::Flags(flags) => flags,
        OnDisk::Unasked => {
            return add(
                Severity::Degraded,
                "MounterUnreachable",
                "the mounter cannot be asked; check its container on this node",
            );
        }
        OnDisk::Nothing => {
            return add(
                Severity::Inaccessible,
                "VolumeMissing",
                "nothing is at the volume's path; restart the pod",
            );
        }
    };
    if flags & flag::FOREIGN != 0 {
        add(
            Severity::Degraded,
            "ForeignMount",
            "another driver's mount is there and was left alone; restart the pod to give it a volume of this driver",
        );
    }
    if flags & flag::ORPHAN != 0 {
        add(
            Severity::Degraded,
            "Orphan",
            "the kubelet has no record of the volume: its pod is gone and the kubelet did not unpublish it; restart the \
             kubelet, and if it stays remove the socket and the directory",
        );
    }
    if flags & flag::STALE != 0 {
        add(
            Severity::Inaccessible,
            "SourceRecreated",
            "the source directory was recreated, the pod holds the old one; restart the pod",
        );
    }
    if flags & flag::IDENTITY != 0 && flags & flag::SOCKET == 0 {
        add(
            Severity::Inaccessible,
            "SocketMissing",
            "the Workload API's socket is not in the volume; the next republish makes it again",
        );
    }
}

fn identity(status: &Status, now: SystemTime, found: &mut Vec<VolumeCondition>) {
    let failure = || match &status.failure {
        Some(why) => format!(": {why}"),
        None => String::new(),
    };
    let mut add =
        |severity, reason, message: String| found.push(VolumeCondition { severity, reason, message });
    match &status.content {
        Content::External => return,
        Content::Unknown => add(
            Severity::Inaccessible,
            "IdentityUnknown",
            "no token has come since the agent started; the kubelet's next republish brings one".to_owned(),
        ),
        Content::Pending { since } => {
            let waits = now.duration_since(*since).unwrap_or_default();
            if status.failure.is_some() || waits > GRACE {
                add(
                    Severity::Inaccessible,
                    "IdentityPending",
                    format!("no SVID yet after {} s{}", waits.as_secs(), failure()),
                );
            }
        }
        Content::Ready { not_after } if *not_after <= now => {
            add(Severity::Inaccessible, "IdentityExpired", format!("the SVID has expired{}", failure()));
        }
        Content::Ready { not_after } => {
            let overdue = status.rotate_at.is_some_and(|due| overdue(due, *not_after) <= now);
            if status.failure.is_none() && overdue {
                add(
                    Severity::Degraded,
                    "RotationOverdue",
                    "the SVID should have been renewed by now; the authority is slow, or many volumes wait for it"
                        .to_owned(),
                );
            }
            if status.failure.is_some() {
                add(
                    Severity::Degraded,
                    "RotationFailing",
                    format!("the SVID could not be renewed{}", failure()),
                );
            }
        }
    }
    if !status.serving {
        found.push(VolumeCondition {
            severity: Severity::Inaccessible,
            reason: "NotServed",
            message: "the Workload API is not being served; the next republish starts it again".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests;
