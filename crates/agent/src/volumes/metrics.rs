//! Volumes, their SVIDs and the rotation.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::family::Family;
use seamount_telemetry::metrics::{
    Area, Gauge, Names, Outcome, Outcomes, ResultLabel, Seconds, number, outcomes, unix,
};

use crate::authority;

/// State of a volume, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "label values as they are exposed")]
pub enum VolumeState {
    pending,
    ready,
    unavailable,
}

/// Source of a volume, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "label values as they are exposed")]
pub enum SourceLabel {
    authority,
    directory,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    source: SourceLabel,
    state: VolumeState,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

/// Volumes, their SVIDs and the rotation.
pub struct Metrics {
    volumes: Family<VolumeLabels, Gauge>,
    /// What each volume counts as and when its SVID ends: gauges over all volumes are made from it, under the
    /// same lock, so that the last change is the one that shows. It is held for that alone; a task that holds
    /// the volumes' map may take it, and it takes no other.
    known: Mutex<Volumes>,
    expiry: Seconds,
    overdue: Gauge,
    expired: Gauge,
    rotations: Outcomes,
    leftovers: Family<WhatLabel, Gauge>,
    /// The authority's, which the volumes ask.
    pub authority: Arc<authority::Metrics>,
}

#[derive(Default)]
struct Volumes {
    by_name: HashMap<String, Known>,
    /// The first end is found without looking at all volumes.
    ends: Count,
    overdue: Count,
}

/// When an SVID is to be replaced, and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// From then on its renewal is overdue ([`super::health::overdue`]).
    pub overdue: SystemTime,
    /// Then it expires.
    pub not_after: SystemTime,
}

/// How many SVIDs end or are overdue when.
type Count = BTreeMap<SystemTime, usize>;

fn recount(old: Option<SystemTime>, new: Option<SystemTime>, times: &mut Count) {
    if old == new {
        return;
    }
    if let Some(time) = new {
        *times.entry(time).or_default() += 1;
    }
    if let Some(time) = old
        && let Some(count) = times.get_mut(&time)
    {
        *count -= 1;
        if *count == 0 {
            times.remove(&time);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
struct Known {
    source: SourceLabel,
    state: VolumeState,
    svid: Option<Schedule>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            volumes: Family::default(),
            known: Mutex::default(),
            expiry: Seconds::default(),
            overdue: Gauge::default(),
            expired: Gauge::default(),
            rotations: outcomes(),
            leftovers: Family::default(),
            authority: Arc::default(),
        }
    }
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add("volumes", "Published volumes by identity source and state", &self.volumes);
        names.add(
            "svid_earliest_expiry_timestamp_seconds",
            "When the first of all SVIDs expires, in Unix time; 0: there is none",
            &self.expiry,
        );
        names.add("svids_overdue", "SVIDs that should have been renewed by now and are not", &self.overdue);
        names.add(
            "svids_expired",
            "SVIDs that have expired and are not renewed; their pods get Unavailable",
            &self.expired,
        );
        names.add("svid_rotations", "Attempts to get an SVID", &self.rotations);
        names.add(
            "leftovers",
            "Volumes that the kubelet has no record of, and mounts of another driver in volumes of this one, when the \
             node was looked over last",
            &self.leftovers,
        );
        self.authority.register(names);
    }

    fn refresh(&self) {
        self.late(SystemTime::now());
    }
}

impl Metrics {
    /// Where a volume stands now. `volume` is `<pod uid>/<volume name>`; it is counted once, whatever came
    /// before.
    pub fn volume(&self, volume: &str, source: SourceLabel, state: VolumeState, svid: Option<Schedule>) {
        let new = Known { source, state, svid };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let old = known.by_name.insert(volume.to_owned(), new);
        self.recount(old, Some(new), &mut known);
    }

    /// A volume is gone.
    pub fn volume_gone(&self, volume: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let old = known.by_name.remove(volume);
        self.recount(old, None, &mut known);
    }

    fn recount(&self, old: Option<Known>, new: Option<Known>, known: &mut Volumes) {
        for (one, delta) in [(old, -1), (new, 1)] {
            if let Some(Known { source, state, .. }) = one {
                self.volumes.get_or_create(&VolumeLabels { source, state }).inc_by(delta);
            }
        }
        let (old, new) = (old.and_then(|k| k.svid), new.and_then(|k| k.svid));
        recount(old.map(|s| s.overdue), new.map(|s| s.overdue), &mut known.overdue);
        recount(old.map(|s| s.not_after), new.map(|s| s.not_after), &mut known.ends);
        self.expiry.set(known.ends.first_key_value().map_or(0.0, |(end, _)| unix(*end)));
    }

    /// How many SVIDs are overdue, those that have expired among them, and how many have expired.
    pub fn late(&self, now: SystemTime) -> (usize, usize) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let until_now = |times: &Count| times.range(..=now).map(|(_, count)| count).sum();
        let (overdue, expired): (usize, usize) = (until_now(&known.overdue), until_now(&known.ends));
        self.overdue.set(number(overdue as u64));
        self.expired.set(number(expired as u64));
        (overdue, expired)
    }

    /// An attempt to get an SVID ended.
    pub fn rotation(&self, result: Outcome) {
        self.rotations.get_or_create(&ResultLabel { result }).inc();
    }

    /// What a look over the whole node has found that nobody should have left.
    pub fn leftovers(&self, orphans: usize, foreign: usize, stacked: usize) {
        for (what, count) in [("orphan", orphans), ("foreign", foreign), ("stacked", stacked)] {
            let count = number(count as u64);
            self.leftovers.get_or_create(&WhatLabel { what }).set(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[track_caller]
    fn has(metrics: &Arc<Metrics>, line: &str) {
        let text = metrics.encode().unwrap();
        assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
    }

    #[test]
    fn each_volume_counts_once_wherever_it_stands() {
        use {SourceLabel::authority, VolumeState::*};
        let metrics = Arc::new(Metrics::default());
        let at = |seconds| {
            let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            Some(Schedule { overdue: not_after - Duration::from_secs(600), not_after })
        };
        metrics.volume("a/v", authority, pending, None);
        metrics.volume("b/v", authority, pending, None);
        has(&metrics, r#"seamount_volumes{source="authority",state="pending"} 2"#);
        metrics.volume("a/v", authority, ready, at(2000));
        metrics.volume("a/v", authority, ready, at(3000));
        metrics.volume("b/v", authority, ready, at(2500));
        has(&metrics, r#"seamount_volumes{source="authority",state="pending"} 0"#);
        has(&metrics, r#"seamount_volumes{source="authority",state="ready"} 2"#);
        has(&metrics, "seamount_svid_earliest_expiry_timestamp_seconds 2500.0");
        let now = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(metrics.late(now(1899)), (0, 0));
        assert_eq!(metrics.late(now(1900)), (1, 0));
        assert_eq!(metrics.late(now(2500)), (2, 1));
        has(&metrics, "seamount_svids_overdue 2");
        has(&metrics, "seamount_svids_expired 2");
        metrics.volume_gone("b/v");
        metrics.volume_gone("b/v");
        has(&metrics, "seamount_svids_expired 1");
        has(&metrics, r#"seamount_volumes{source="authority",state="ready"} 1"#);
        has(&metrics, "seamount_svid_earliest_expiry_timestamp_seconds 3000.0");
        metrics.volume_gone("a/v");
        has(&metrics, "seamount_svid_earliest_expiry_timestamp_seconds 0.0");
    }
}
