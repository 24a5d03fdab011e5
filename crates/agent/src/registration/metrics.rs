//! What the kubelet said of each driver.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use seamount_telemetry::metrics::{Area, Gauge, Names};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriverLabel {
    driver: String,
}

/// What the kubelet said of each driver.
#[derive(Debug, Default)]
pub struct Metrics {
    registered: Family<DriverLabel, Gauge>,
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add(
            "kubelet_registered",
            "By driver: 1 after the kubelet said that it is registered, 0 before, -1 after it said that it failed",
            &self.registered,
        );
    }
}

impl Metrics {
    /// What the kubelet said of this driver: registered, not, or (none) nothing yet.
    pub fn registration(&self, driver: &str, registered: Option<bool>) {
        let label = DriverLabel { driver: driver.to_owned() };
        self.registered.get_or_create(&label).set(match registered {
            Some(true) => 1,
            Some(false) => -1,
            None => 0,
        });
    }
}
