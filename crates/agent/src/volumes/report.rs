//! The volumes for the operators of the node: what the agent knows of each, and what the mounter finds on
//! disk.
//!
//! Nothing here waits for a volume: one that is busy is told without its identity. Tokens and keys are not in
//! it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use seamount_mounter_client::Found;
use seamount_mounter_protocol::flag;
use seamount_proto::node;

use super::entry::VolumeEntry;
use super::health::{self, Content, OnDisk, Severity, Status};
use super::identity::Identity;
use super::kinds::AnyEntry;
use super::{Key, Volumes, key};
use crate::state::{StateError, Usage};

/// How long the mounter may take for the whole list: less than `seamount node` waits.
const LIST: Duration = Duration::from_secs(3);

/// Unix time in seconds; 0 for times before 1970.
pub fn unix(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// What the mounter found; or why it could not be asked.
enum Disk {
    Found(HashMap<Key, Found>),
    Unasked(String),
}

impl Volumes {
    /// All volumes that the agent or the mounter knows, by namespace, pod and name; and why the mounter could
    /// not be asked, if it could not.
    pub async fn report(&self) -> (Vec<node::Volume>, Option<String>) {
        let mut disk = match tokio::time::timeout(LIST, self.mounter.list()).await {
            Ok(Ok(found)) => {
                super::leftovers::look(&found, &self.metrics, false);
                Disk::Found(found.into_iter().map(|f| (key(&f.volume), f)).collect())
            }
            Ok(Err(e)) => Disk::Unasked(e.to_string()),
            Err(_) => Disk::Unasked(format!("the mounter did not answer List within {} s", LIST.as_secs())),
        };
        let now = SystemTime::now();
        let mut all: Vec<node::Volume> =
            self.all().into_iter().map(|entry| known(&entry, &mut disk, now)).collect();
        let problem = match disk {
            Disk::Found(rest) => {
                all.extend(rest.into_values().map(|found| unknown(&found, now)));
                None
            }
            Disk::Unasked(why) => Some(why),
        };
        all.sort_by(|a, b| {
            let place = |v: &node::Volume| (v.namespace.clone(), v.pod.clone(), v.name.clone());
            place(a).cmp(&place(b)).then_with(|| a.pod_uid.cmp(&b.pod_uid))
        });
        (all, problem)
    }

    /// How many volumes the agent has, by state.
    pub fn by_state(&self) -> Vec<node::VolumeCount> {
        let now = SystemTime::now();
        let mut counts: HashMap<&'static str, u64> = HashMap::new();
        for entry in self.all() {
            *counts.entry(state(&entry.common().status, now)).or_default() += 1;
        }
        let mut counts: Vec<_> = counts
            .into_iter()
            .map(|(state, count)| node::VolumeCount { state: state.to_owned(), count })
            .collect();
        counts.sort_by(|a, b| a.state.cmp(&b.state));
        counts
    }

    /// Validity of the certificate that signed the SVID that ends last; the authority may not have been asked
    /// yet.
    pub fn issuer(&self) -> Option<(SystemTime, SystemTime)> {
        let all = self.all_of::<Identity>().into_iter();
        let held =
            all.filter_map(|e| e.slot.try_lock().ok()?.state.held.as_ref().map(|h| Arc::clone(&h.svid)));
        held.max_by_key(|svid| svid.not_after())?.issuer_validity()
    }

    /// How full the state directory is; the reason where it is not there.
    pub fn usage(&self) -> Result<Usage, String> {
        let state = self.state().map_err(|e| e.to_string())?;
        state.usage().map_err(|e: StateError| e.to_string())
    }
}

fn state(status: &Status, now: SystemTime) -> &'static str {
    match status.content {
        Content::Unknown => "unknown",
        Content::Pending { .. } => "pending",
        Content::Ready { not_after } if not_after <= now => "expired",
        Content::Ready { .. } => "ready",
        Content::External => "directory",
    }
}

fn known(entry: &AnyEntry, disk: &mut Disk, now: SystemTime) -> node::Volume {
    let (view, volume) = (entry.common(), entry.volume());
    let (found, mounts, dead) = match disk {
        Disk::Found(all) => all.remove(&key(volume)).map_or_else(
            || (OnDisk::Nothing, 0, String::new()),
            |f| (OnDisk::Flags(f.flags), f.mounts, f.dead_subpaths),
        ),
        Disk::Unasked(_) => (OnDisk::Unasked, 0, String::new()),
    };
    let mut out = node::Volume {
        namespace: view.namespace.to_string(),
        pod: view.pod.to_string(),
        pod_uid: volume.pod.to_string(),
        name: volume.name.to_string(),
        volume_id: volume.id.to_string(),
        driver: volume.driver.to_string(),
        source: match view.status.content {
            Content::External => "directory",
            _ => "authority",
        }
        .to_owned(),
        state: state(&view.status, now).to_owned(),
        next_attempt: view.due.map_or(0, unix),
        rotate_at: view.status.rotate_at.map_or(0, unix),
        not_after: match view.status.content {
            Content::Ready { not_after } => unix(not_after),
            _ => 0,
        },
        failures: view.failures,
        mounts,
        last_error: view.status.failure.as_deref().unwrap_or_default().to_owned(),
        ..node::Volume::default()
    };
    match entry {
        AnyEntry::Identity(entry) => identity(entry, &mut out),
        AnyEntry::Directory(entry) => match entry.slot.try_lock() {
            Ok(slot) => out.generation = slot.generation,
            Err(_) => out.busy = true,
        },
    }
    let found = match found {
        OnDisk::Flags(flags) => {
            out.on_disk = true;
            (out.orphan, out.foreign) = (flags & flag::ORPHAN != 0, flags & flag::FOREIGN != 0);
            OnDisk::Flags(flags | view.flags)
        }
        other => other,
    };
    out.faults = faults(Some(&view.status), found, &dead, now);
    out
}

/// What only the holder of the volume's lock sees.
fn identity(entry: &VolumeEntry<Identity>, out: &mut node::Volume) {
    let Ok(slot) = entry.slot.try_lock() else {
        out.busy = true;
        return;
    };
    out.generation = slot.generation;
    if let Some(facts) = slot.state.facts.as_ref().filter(|facts| facts.proved()) {
        out.service_account.clone_from(&facts.workload.service_account);
        out.token_expires = unix(facts.token.expires);
    }
    if let Some(held) = &slot.state.held {
        out.spiffe_id = held.svid.id().to_string();
        out.serial = held.svid.serial_hex().to_owned();
        out.not_before = unix(held.svid.not_before());
    }
    if let Some(serving) = &slot.state.serving {
        out.cookie = serving.cookie();
        (out.connections, out.streams) = serving.open();
    }
}

/// A volume of which the agent knows nothing.
fn unknown(found: &Found, now: SystemTime) -> node::Volume {
    let directory = found.has(flag::DIRECTORY);
    node::Volume {
        pod_uid: found.volume.pod.to_string(),
        name: found.volume.name.to_string(),
        volume_id: found.volume.id.to_string(),
        driver: found.volume.driver.to_string(),
        source: if directory { "directory" } else { "unknown" }.to_owned(),
        state: "unserved".to_owned(),
        on_disk: true,
        orphan: found.has(flag::ORPHAN),
        foreign: found.has(flag::FOREIGN),
        mounts: found.mounts,
        faults: faults(None, OnDisk::Flags(found.flags), &found.dead_subpaths, now),
        ..node::Volume::default()
    }
}

fn faults(status: Option<&Status>, disk: OnDisk, dead_subpaths: &str, now: SystemTime) -> Vec<node::Fault> {
    let dead = health::dead_subpaths(dead_subpaths).into_iter();
    let all = dead.chain(health::conditions(status, disk, now));
    all.map(|condition| node::Fault {
        severity: match condition.severity {
            Severity::Degraded => "degraded",
            Severity::Inaccessible => "inaccessible",
        }
        .to_owned(),
        reason: condition.reason.to_owned(),
        message: condition.message,
    })
    .collect()
}
