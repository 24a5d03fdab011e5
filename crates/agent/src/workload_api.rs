//! What pods do on their sockets.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use seamount_telemetry::metrics::{Area, Counter, Gauge, Names, number};
use seamount_workload_api::Observer;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// What pods do on their sockets.
#[derive(Debug)]
pub struct Metrics {
    connections: Gauge,
    limit: Gauge,
    streams: Gauge,
    refused: Family<ReasonLabel, Counter>,
    throttled: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let refused = Family::default();
        for reason in ["connections", "node connections", "streams", "memory"] {
            let _: &Counter = &refused.get_or_create(&ReasonLabel { reason });
        }
        Self {
            connections: Gauge::default(),
            limit: Gauge::default(),
            streams: Gauge::default(),
            refused,
            throttled: Counter::default(),
        }
    }
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add("workload_api_connections", "Open Workload API connections", &self.connections);
        names.add(
            "workload_api_connection_limit",
            "Workload API connections that all volumes may have open together",
            &self.limit,
        );
        names.add("workload_api_streams", "Open Workload API streams", &self.streams);
        names.add("workload_api_refused", "Refused Workload API connections and calls", &self.refused);
        names.add(
            "workload_api_throttled",
            "Times that something of a pod waited because the pod was over its rate: a connection, or new ones",
            &self.throttled,
        );
    }
}

impl Metrics {
    /// Open connections and streams.
    pub fn open(&self) -> (i64, i64) {
        (self.connections.get(), self.streams.get())
    }

    /// How many connections the node may have open.
    pub fn limit(&self, limit: u64) {
        self.limit.set(number(limit));
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
        self.refused.get_or_create(&ReasonLabel { reason: why }).inc();
    }

    fn throttled(&self) {
        self.throttled.inc();
    }
}
