//! What the kubelet said of the driver.

use seamount_telemetry::metrics::{Area, Gauge, Names};

/// What the kubelet said of the driver.
#[derive(Debug, Default)]
pub struct Metrics {
    registered: Gauge,
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add(
            "kubelet_registered",
            "1 after the kubelet said that the plugin is registered, 0 before, -1 after it said that it failed",
            &self.registered,
        );
    }
}

impl Metrics {
    /// What the kubelet said: registered, not, or (none) nothing yet.
    pub fn registration(&self, registered: Option<bool>) {
        self.registered.set(match registered {
            Some(true) => 1,
            Some(false) => -1,
            None => 0,
        });
    }
}
