//! The kubelet's calls.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use seamount_telemetry::metrics::{Area, Counter, Names, Outcome, ResultLabel};

/// Upper bounds of the duration histograms, in seconds: a publish takes about a millisecond; the kubelet
/// gives up after two minutes.
const BUCKETS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    operation: &'static str,
    kind: &'static str,
}

type Durations = Family<ResultLabel, Histogram, fn() -> Histogram>;

/// The kubelet's calls.
pub struct Metrics {
    publish: Durations,
    unpublish: Durations,
    refused: Family<RefusedLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let durations = || {
            let family = Durations::new_with_constructor(|| Histogram::new(BUCKETS));
            for result in Outcome::ALL {
                let _ = family.get_or_create(&ResultLabel { result });
            }
            family
        };
        let metrics = Self { publish: durations(), unpublish: durations(), refused: Family::default() };
        let _ = metrics.refused.get_or_create(&RefusedLabels { operation: "publish", kind: "limit" });
        metrics
    }
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add("publish_duration_seconds", "NodePublishVolume", &self.publish);
        names.add("unpublish_duration_seconds", "NodeUnpublishVolume", &self.unpublish);
        names.add("csi_refused_requests", "Refused CSI requests", &self.refused);
    }
}

impl Metrics {
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[track_caller]
    fn has(metrics: &Arc<Metrics>, line: &str) {
        let text = metrics.encode().unwrap();
        assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
    }

    #[test]
    fn operations_are_counted_by_result() {
        let metrics = Arc::new(Metrics::default());
        metrics.published(Outcome::success, Duration::from_millis(2));
        metrics.published(Outcome::success, Duration::from_millis(20));
        metrics.published(Outcome::refused, Duration::from_micros(100));
        metrics.unpublished(Outcome::error, Duration::from_secs(200));
        metrics.refused("publish", "mismatch");
        has(&metrics, r#"seamount_publish_duration_seconds_count{result="success"} 2"#);
        has(&metrics, r#"seamount_publish_duration_seconds_bucket{le="0.0025",result="success"} 1"#);
        has(&metrics, r#"seamount_publish_duration_seconds_count{result="refused"} 1"#);
        has(&metrics, r#"seamount_unpublish_duration_seconds_bucket{le="120.0",result="error"} 0"#);
        has(&metrics, r#"seamount_unpublish_duration_seconds_count{result="error"} 1"#);
        has(&metrics, r#"seamount_csi_refused_requests_total{operation="publish",kind="mismatch"} 1"#);
    }
}
