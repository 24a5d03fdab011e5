//! The connection to the mounter.

use seamount_telemetry::metrics::{Area, Counter, Gauge, Names};

/// The connection to the mounter.
#[derive(Debug, Default)]
pub struct Metrics {
    connected: Gauge,
    connections: Counter,
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add("mounter_connected", "1 while the mounter is connected", &self.connected);
        names.add("mounter_connections", "Connections made to the mounter", &self.connections);
    }
}

impl Metrics {
    /// The connection came up or went down.
    pub fn connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
        if connected {
            self.connections.inc();
        }
    }
}
