//! The agent's memory: how much it takes, and that it stays under a limit.
//!
//! A process that the kernel kills for its memory rotates nothing for any pod. So the agent looks at itself
//! once a second, and above its limit it cuts the connections of the pod that uses most. Clients connect
//! again; the kubelet and other pods go on.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use seamount_sys::program::page_size;
use seamount_telemetry::metrics::{Area, Gauge, Names, number};

use crate::volumes::{Shed, Volumes};

/// Where neither configuration nor cgroup say anything: far more than a node of 500 volumes with 10,000
/// streams takes.
pub const LIMIT: u64 = 512 << 20;

/// The container's own limit (cgroup v2), as it sees it.
const CGROUP: &str = "/sys/fs/cgroup/memory.max";

/// So much of that is the agent's to use: the kernel counts socket buffers and pages of files there, too.
const SHARE: (u64, u64) = (4, 5);

/// How long what was cut may take to give its memory back, before the next pod is cut: else pods that are not
/// the reason would lose their connections meanwhile.
const REST: Duration = Duration::from_secs(5);

/// How often the log tells of it.
const QUIET: Duration = Duration::from_secs(60);

/// The process's memory.
#[derive(Debug, Default)]
pub struct Metrics {
    bytes: Gauge,
    limit: Gauge,
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add("memory_bytes", "Resident memory of the agent", &self.bytes);
        names.add("memory_limit_bytes", "Above it the pod that uses most loses its connections", &self.limit);
    }
}

impl Metrics {
    /// How much the agent may take.
    pub fn limit(&self, bytes: u64) {
        self.limit.set(number(bytes));
    }
}

/// What is configured, else what the cgroup leaves, else [`LIMIT`].
pub fn limit(configured: Option<u64>) -> u64 {
    configured.unwrap_or_else(|| of_cgroup(&std::fs::read_to_string(CGROUP).unwrap_or_default()))
}

fn of_cgroup(text: &str) -> u64 {
    // "max" where there is none.
    let max = text.trim().parse::<u64>().ok();
    max.map_or(LIMIT, |max| max / SHARE.1 * SHARE.0)
}

/// Looks at the process's memory.
pub struct Watch {
    statm: Option<File>,
    page: u64,
    limit: u64,
    /// When the log told of pods that were cut, and of there being none.
    told: (Option<Instant>, Option<Instant>),
    /// Connections that were cut since the log told of it.
    untold: usize,
    /// When a pod was cut last.
    cut: Option<Instant>,
}

impl Watch {
    /// With this limit in bytes.
    pub fn new(limit: u64) -> Self {
        let statm = File::open("/proc/self/statm")
            .inspect_err(|e| tracing::warn!(error = %e, "the agent cannot see how much memory it takes; memoryLimit is not kept"))
            .ok();
        Self { statm, page: page_size(), limit, told: (None, None), untold: 0, cut: None }
    }

    /// Resident bytes; none where that cannot be seen.
    fn resident(&self) -> Option<u64> {
        let mut text = [0; 128];
        let length = self.statm.as_ref()?.read_at(&mut text, 0).ok()?;
        resident(std::str::from_utf8(text.get(..length)?).ok()?)?.checked_mul(self.page)
    }

    /// One look. Above the limit the pod that uses most loses its connections, and the next look tells
    /// whether that was enough.
    pub fn look(&mut self, volumes: &Volumes, metrics: &Metrics) {
        let Some(resident) = self.resident() else { return };
        metrics.bytes.set(number(resident));
        if resident <= self.limit || self.cut.is_some_and(|cut| cut.elapsed() < REST) {
            return;
        }
        let shed = volumes.shed();
        self.cut = shed.as_ref().map(|_| Instant::now());
        self.untold += shed.as_ref().map_or(0, |shed| shed.connections);
        let told = if shed.is_some() { &mut self.told.0 } else { &mut self.told.1 };
        if told.is_some_and(|told| told.elapsed() < QUIET) {
            return;
        }
        *told = Some(Instant::now());
        let cut = std::mem::take(&mut self.untold);
        let limit = self.limit;
        match shed {
            Some(Shed { pod, name, bytes, .. }) => tracing::warn!(
                %pod, name, bytes, resident, limit, connections = cut,
                "more memory than memoryLimit: the connections of the pod that uses most were cut"
            ),
            None => tracing::warn!(
                resident,
                limit,
                "more memory than memoryLimit, and no pod uses much of it: raise memoryLimit"
            ),
        }
    }
}

/// proc_pid_statm(5): the second number, in pages.
fn resident(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_sees_itself() {
        let bytes = Watch::new(0).resident().unwrap();
        assert!((1 << 20..1 << 40).contains(&bytes), "{bytes}");
        assert_eq!(resident("7812 2021 1733 401 0 511 0\n"), Some(2021));
        assert_eq!((resident(""), resident("1 x")), (None, None));
    }

    #[test]
    fn the_limit_follows_the_container() {
        assert_eq!(limit(Some(7)), 7);
        assert_eq!((of_cgroup("max\n"), of_cgroup("")), (LIMIT, LIMIT));
        assert_eq!(of_cgroup("104857600\n"), 83_886_080);
    }
}
