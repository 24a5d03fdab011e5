//! What is counted, in the OpenMetrics text format (Prometheus metric naming: base units, `_total`,
//! `_seconds`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use seamount_identity::workload_api::Observer;

/// Upper bounds of the duration histograms, in seconds: a publish takes about a millisecond; the kubelet
/// gives up after two minutes.
const BUCKETS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0, 120.0];

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "label values as they are exposed")]
pub enum Outcome {
    success,
    refused,
    error,
}

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
struct ResultLabel {
    result: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    source: SourceLabel,
    state: VolumeState,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    operation: &'static str,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriverLabel {
    driver: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

type Durations = Family<ResultLabel, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of one agent. Cheap to share in an `Arc`; every method may be called from anywhere.
pub struct Metrics {
    registry: Registry,
    publish: Durations,
    unpublish: Durations,
    volumes: Family<VolumeLabels, Gauge>,
    /// What each volume counts as and when its SVID ends: gauges over all volumes are made from it, under the
    /// same lock, so that the last change is the one that shows. It is held for that alone; whoever holds the
    /// volumes' map may take it, and it takes no other.
    known: Mutex<Volumes>,
    expiry: Seconds,
    overdue: Gauge,
    expired: Gauge,
    authority_up: Gauge,
    authority_requests: Family<ResultLabel, Counter>,
    authority_success: Seconds,
    connections: Gauge,
    streams: Gauge,
    workload_refused: Family<ReasonLabel, Counter>,
    workload_throttled: Counter,
    memory: Gauge,
    memory_limit: Gauge,
    refused: Family<RefusedLabels, Counter>,
    rotations: Family<ResultLabel, Counter>,
    mounter_connected: Gauge,
    mounter_reconnects: Counter,
    registered: Family<DriverLabel, Gauge>,
    key_refreshes: Family<ResultLabel, Counter>,
    keys_refreshed: Seconds,
    descriptors: Gauge,
    connection_limit: Gauge,
    leftovers: Family<WhatLabel, Gauge>,
    log_lines_lost: Counter,
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
    /// From then on its renewal is overdue ([`crate::volumes::health::overdue`]).
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

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own: nothing global, so that tests may have many.
    pub fn new() -> Self {
        let mut r = Registry::with_prefix("seamount");
        let durations: fn() -> Histogram = || Histogram::new(BUCKETS);
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("agent_build", "Release of the agent", version);
        let publish = register(
            &mut r,
            "publish_duration_seconds",
            "NodePublishVolume",
            Durations::new_with_constructor(durations),
        );
        let unpublish = register(
            &mut r,
            "unpublish_duration_seconds",
            "NodeUnpublishVolume",
            Durations::new_with_constructor(durations),
        );
        let metrics = Self {
            publish,
            unpublish,
            volumes: register(
                &mut r,
                "volumes",
                "Published volumes by identity source and state",
                Family::default(),
            ),
            known: Mutex::default(),
            expiry: register(
                &mut r,
                "svid_earliest_expiry_timestamp_seconds",
                "When the first of all SVIDs expires, in Unix time; 0: there is none",
                Seconds::default(),
            ),
            overdue: register(
                &mut r,
                "svids_overdue",
                "SVIDs that should have been renewed by now and are not",
                Gauge::default(),
            ),
            expired: register(
                &mut r,
                "svids_expired",
                "SVIDs that have expired and are not renewed; their pods get Unavailable",
                Gauge::default(),
            ),
            authority_up: register(
                &mut r,
                "authority_up",
                "1 while the authority answers, or none is needed (source directory); 0 while there is none or it does not",
                Gauge::default(),
            ),
            authority_requests: register(
                &mut r,
                "authority_requests",
                "Requests to the authority for an SVID",
                Family::default(),
            ),
            authority_success: register(
                &mut r,
                "authority_last_success_timestamp_seconds",
                "When the authority signed last, in Unix time; 0: not since the agent started",
                Seconds::default(),
            ),
            connections: register(
                &mut r,
                "workload_api_connections",
                "Open Workload API connections",
                Gauge::default(),
            ),
            streams: register(&mut r, "workload_api_streams", "Open Workload API streams", Gauge::default()),
            workload_refused: register(
                &mut r,
                "workload_api_refused",
                "Refused Workload API connections and calls",
                Family::default(),
            ),
            workload_throttled: register(
                &mut r,
                "workload_api_throttled",
                "Times that something of a pod waited because the pod was over its rate: a connection, or new ones",
                Counter::default(),
            ),
            memory: register(&mut r, "memory_bytes", "Resident memory of the agent", Gauge::default()),
            memory_limit: register(
                &mut r,
                "memory_limit_bytes",
                "Above it the pod that uses most loses its connections",
                Gauge::default(),
            ),
            refused: register(&mut r, "csi_refused_requests", "Refused CSI requests", Family::default()),
            rotations: register(&mut r, "svid_rotations", "Attempts to get an SVID", Family::default()),
            mounter_connected: register(
                &mut r,
                "mounter_connected",
                "1 while the mounter is connected",
                Gauge::default(),
            ),
            mounter_reconnects: register(
                &mut r,
                "mounter_connections",
                "Connections made to the mounter",
                Counter::default(),
            ),
            registered: register(
                &mut r,
                "kubelet_registered",
                "By driver: 1 after the kubelet said that it is registered, 0 before, -1 after it said that it failed",
                Family::default(),
            ),
            key_refreshes: register(
                &mut r,
                "token_key_refreshes",
                "Attempts to read the token issuer's keys",
                Family::default(),
            ),
            keys_refreshed: register(
                &mut r,
                "token_keys_timestamp_seconds",
                "When the token issuer's keys were last read, in Unix time; 0: never",
                Seconds::default(),
            ),
            descriptors: register(
                &mut r,
                "descriptor_limit",
                "Descriptors that the agent may have open",
                Gauge::default(),
            ),
            connection_limit: register(
                &mut r,
                "workload_api_connection_limit",
                "Workload API connections that all volumes may have open together",
                Gauge::default(),
            ),
            leftovers: register(
                &mut r,
                "leftovers",
                "Volumes that the kubelet has no record of, and mounts of another driver in volumes of this one, when the \
                 node was looked over last",
                Family::default(),
            ),
            log_lines_lost: register(
                &mut r,
                "log_lines_lost",
                "Lines that were not logged, because whoever reads the log stood still",
                Counter::default(),
            ),
            registry: r,
        };
        // Series that begin at 0, so that the first failure is a change and not a new series.
        for result in [Outcome::success, Outcome::refused, Outcome::error] {
            let label = ResultLabel { result };
            let _ = metrics.publish.get_or_create(&label);
            let _ = metrics.unpublish.get_or_create(&label);
            let _ = metrics.rotations.get_or_create(&label);
            let _ = metrics.authority_requests.get_or_create(&label);
            let _ = metrics.key_refreshes.get_or_create(&label);
        }
        for reason in ["connections", "node connections", "streams", "memory"] {
            let _ = metrics.workload_refused.get_or_create(&ReasonLabel { reason });
        }
        let _ = metrics.refused.get_or_create(&RefusedLabels { operation: "publish", kind: "limit" });
        metrics
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        self.late(SystemTime::now());
        self.log_lines_lost.inc_by(crate::logging::lost());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// One NodePublishVolume.
    pub fn published(&self, result: Outcome, took: Duration) {
        self.publish.get_or_create(&ResultLabel { result }).observe(took.as_secs_f64());
    }

    /// One NodeUnpublishVolume.
    pub fn unpublished(&self, result: Outcome, took: Duration) {
        self.unpublish.get_or_create(&ResultLabel { result }).observe(took.as_secs_f64());
    }

    /// A CSI request was refused; `kind` as of [`crate::csi::request::Refusal::kind`].
    pub fn refused(&self, operation: &'static str, kind: &'static str) {
        self.refused.get_or_create(&RefusedLabels { operation, kind }).inc();
    }

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
        self.overdue.set(i64::try_from(overdue).unwrap_or(i64::MAX));
        self.expired.set(i64::try_from(expired).unwrap_or(i64::MAX));
        (overdue, expired)
    }

    /// Open connections and streams.
    pub fn open(&self) -> (i64, i64) {
        (self.connections.get(), self.streams.get())
    }

    /// The process's limit of descriptors.
    pub fn descriptors(&self) -> u64 {
        u64::try_from(self.descriptors.get()).unwrap_or_default()
    }

    /// Whether identities can be had.
    pub fn authority(&self, up: bool) {
        self.authority_up.set(i64::from(up));
    }

    /// The authority was asked for an SVID.
    pub fn authority_request(&self, result: Outcome, now: SystemTime) {
        self.authority_requests.get_or_create(&ResultLabel { result }).inc();
        if result == Outcome::success {
            self.authority_success.set(unix(now));
        }
    }

    /// An attempt to get an SVID ended.
    pub fn rotation(&self, result: Outcome) {
        self.rotations.get_or_create(&ResultLabel { result }).inc();
    }

    /// The connection to the mounter came up or went down.
    pub fn mounter(&self, connected: bool) {
        self.mounter_connected.set(i64::from(connected));
        if connected {
            self.mounter_reconnects.inc();
        }
    }

    /// What the kubelet said of this driver: registered, not, or (none) nothing yet.
    pub fn registration(&self, driver: &str, registered: Option<bool>) {
        self.registered.get_or_create(&DriverLabel { driver: driver.to_owned() }).set(match registered {
            Some(true) => 1,
            Some(false) => -1,
            None => 0,
        });
    }

    /// The issuer's keys were read, or could not be.
    pub fn keys(&self, result: Outcome, now: SystemTime) {
        self.key_refreshes.get_or_create(&ResultLabel { result }).inc();
        if result == Outcome::success {
            self.keys_refreshed.set(unix(now));
        }
    }

    /// What a look over the whole node has found that nobody should have left.
    pub fn leftovers(&self, orphans: usize, foreign: usize, stacked: usize) {
        for (what, number) in [("orphan", orphans), ("foreign", foreign), ("stacked", stacked)] {
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            self.leftovers.get_or_create(&WhatLabel { what }).set(number);
        }
    }

    /// How many Workload API connections the node may have open.
    pub fn connection_limit(&self, limit: u64) {
        self.connection_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// How much memory the agent takes, in bytes.
    pub fn memory(&self, bytes: u64) {
        self.memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// How much it may take.
    pub fn memory_limit(&self, bytes: u64) {
        self.memory_limit.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The process's limit of descriptors.
    pub fn descriptor_limit(&self, limit: u64) {
        self.descriptors.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }
}

impl Observer for Metrics {
    fn connection(&self, delta: i64) {
        self.connections.inc_by(delta);
    }

    fn stream(&self, delta: i64) {
        self.streams.inc_by(delta);
    }

    fn refused(&self, why: &'static str) {
        self.workload_refused.get_or_create(&ReasonLabel { reason: why }).inc();
    }

    fn throttled(&self) {
        self.workload_throttled.inc();
    }
}

fn register<M: Clone + prometheus_client::registry::Metric>(
    r: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    r.register(name, help, metric.clone());
    metric
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests;
